"""The versions of AutoAttack, and models of few classes, on linear models of known robustness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import AUTOATTACK_MODULE, shorten_stages
from linear_model import examples, linear, radii, random_weights

from jaxadv.attacks import ATTACKS, autoattack, checks
from jaxadv.attacks.autoattack import _max_queries, _version_stages

pytestmark = pytest.mark.slow  # compiles much

KEY = jax.random.key(0)
# Forward passes of an image in 100 steps: APGD also takes one at the start, FAB two in each step.
APGD, FAB, SQUARE = 101, 200, 5000


@pytest.mark.parametrize(
    ("version", "budgets"),
    # As in Croce & Hein's autoattack.py, with the restarts, targets and samples that it sets.
    [
        ("standard", {"apgd_ce": APGD, "apgd_t": 9 * APGD, "fab_t": 9 * FAB, "square": SQUARE}),
        (
            "plus",
            {
                "apgd_ce": 5 * APGD,
                "apgd_dlr": 5 * APGD,
                "fab": 5 * FAB,
                "square": SQUARE,
                "apgd_t": 9 * APGD,
                "fab_t": 9 * FAB,
            },
        ),
        ("rand", {"apgd_ce": 20 * APGD, "apgd_dlr": 20 * APGD}),
    ],
)
@pytest.mark.parametrize("num_classes", [10, 200])
def test_a_version_has_the_attacks_and_budgets_of_the_reference(version, budgets, num_classes):
    stages = _version_stages(version, num_classes)
    assert [(name, stage.max_queries) for name, stage in stages.items()] == list(budgets.items())
    assert _max_queries(version, num_classes) == sum(budgets.values())


@pytest.mark.parametrize(("num_classes", "num_targets"), [(2, 1), (3, 2), (5, 4), (10, 9), (11, 9)])
def test_all_other_classes_are_targets_and_at_most_nine(num_classes, num_targets):
    stages = _version_stages("standard", num_classes)
    assert stages["apgd_t"].max_queries == num_targets * APGD
    assert stages["fab_t"].max_queries == num_targets * FAB
    assert stages["apgd_t"].arguments["num_targets"] == num_targets


@pytest.fixture
def short_stages(monkeypatch):
    shorten_stages(monkeypatch, num_steps=12, num_queries=30)


def attacked(num_classes, version, norm="linf"):
    """Run a version on a linear model; return the result, eps and the distances.

    The first two of 16 images are misclassified.
    """
    weights = random_weights(num_classes)
    logits_fn = linear(weights)
    images, _ = examples(n=16, low=0.3, high=0.7)
    labels = logits_fn(None, images).argmax(axis=1)
    labels = labels.at[:2].set((labels[:2] + 1) % num_classes)
    distances = np.sort(radii(weights, images, labels, norm))
    # Between two distances: the widest gap in the middle, so that an overshoot does not matter.
    middle = distances[5:12]
    i = np.diff(middle).argmax()
    eps = float(middle[i : i + 2].mean())
    found = autoattack(
        KEY, logits_fn, images, labels, eps=eps, norm=norm, version=version, batch_size=32
    )
    return found, eps, radii(weights, images, labels, norm)


def assert_exact(found, eps, distances):
    robust = found.broken_by == -1
    np.testing.assert_array_equal(robust, distances > eps)
    assert (found.broken_by[:2] == 0).all()
    accuracies = list(found.accuracies().values())
    assert accuracies[0] == 14 / 16
    assert accuracies[-1] == (distances > eps).mean()
    assert 0.2 < accuracies[-1] < 0.8


@pytest.mark.usefixtures("short_stages")
@pytest.mark.parametrize("version", ["plus"])
def test_a_version_finds_the_exact_robust_accuracy(version):
    found, eps, distances = attacked(5, version)
    assert found.attacks == ("clean", *_version_stages(version, 5))
    assert_exact(found, eps, distances)
    assert (found.queries[distances > eps] == _max_queries(version, 5)).all()
    assert not found.flags


@pytest.mark.usefixtures("short_stages")
@pytest.mark.parametrize(("num_classes", "norm"), [(2, "linf"), (3, "l2")])
def test_few_classes_have_the_exact_robust_accuracy_and_a_flag(num_classes, norm):
    found, eps, distances = attacked(num_classes, "standard", norm)
    assert_exact(found, eps, distances)
    assert set(found.flags) == {"few_classes"}
    assert f"With {num_classes} classes" in found.flags["few_classes"]


@pytest.mark.parametrize("name", ["autoattack", "pgd", "square"])
def test_one_class_is_refused(name):
    """A single logit is always the largest, so no attack could ever succeed."""
    images = examples(n=4)[0]
    budgets = {"pgd": {"step_size": 0.1, "num_steps": 1}, "square": {"num_queries": 1}}

    def one_logit(key, images):
        return images.mean((1, 2, 3))[:, None]

    with pytest.raises(ValueError, match="class"):
        ATTACKS[name].attack_fn(
            KEY, one_logit, images, jnp.zeros(4, jnp.int32), eps=0.1, **budgets.get(name, {})
        )


def test_checks_list_the_versions():
    assert tuple(AUTOATTACK_MODULE._stages(9)) == checks.VERSIONS
