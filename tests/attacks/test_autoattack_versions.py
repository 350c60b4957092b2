"""The versions of AutoAttack, and models of few classes, on linear models of known robustness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import AUTOATTACK_MODULE, shorten_stages
from linear_model import examples, linear, radii, random_weights

from jaxadv.attacks import ATTACKS, autoattack, checks
from jaxadv.attacks.autoattack import _square_after_gradients, _version_stages, max_queries

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
    for norm in ("linf", "l2"):
        stages = _version_stages(version, norm, num_classes)
        queries = {name: stage.max_queries for name, stage in stages.items()}
        assert list(queries.items()) == list(budgets.items())
        assert max_queries({"version": version, "norm": norm}, num_classes) == sum(budgets.values())


def test_in_l1_apgd_has_more_restarts_fewer_targets_and_three_phases():
    stages = _version_stages("standard", "l1", 10)
    budgets = {"apgd_ce": 5 * 103, "apgd_t": 5 * 103, "fab_t": 9 * FAB, "square": SQUARE}
    assert {name: stage.max_queries for name, stage in stages.items()} == budgets
    assert _version_stages("standard", "l1", 3)["apgd_t"].max_queries == 2 * 103
    plus = _version_stages("plus", "l1", 10)
    assert plus["apgd_t"].max_queries == 9 * 103
    assert _version_stages("rand", "l1", 10)["apgd_ce"].max_queries == 20 * 103


@pytest.mark.parametrize(("num_classes", "num_targets"), [(2, 1), (3, 2), (5, 4), (10, 9), (11, 9)])
def test_all_other_classes_are_targets_and_at_most_nine(num_classes, num_targets):
    stages = _version_stages("standard", "linf", num_classes)
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
    assert found.attacks == ("clean", *_version_stages(version, "linf", 5))
    assert_exact(found, eps, distances)
    assert (found.queries[distances > eps] == max_queries({"version": version}, 5)).all()
    assert not found.flags


@pytest.mark.usefixtures("short_stages")
@pytest.mark.parametrize(("num_classes", "norm"), [(2, "linf"), (3, "l2"), (3, "l1")])
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
    assert (*AUTOATTACK_MODULE._stages("linf", 9), "custom") == checks.VERSIONS


CUSTOM = {
    "apgd_margin": {"attack": "apgd", "loss": "margin", "num_steps": 12},
    "random": {"attack": "random_search", "num_queries": 15},
    "fab_t": {"attack": "fab", "num_targets": 2, "num_steps": 6},
}


def run_custom(attacks=CUSTOM, **changes):
    images, _ = examples(n=40, low=0.3, high=0.7)
    logits_fn = linear(random_weights(3))
    labels = logits_fn(None, images).argmax(1).at[:3].add(1) % 3
    eps = float(np.median(radii(random_weights(3), images, labels, "linf")))
    arguments = {"eps": eps, "version": "custom", "attacks": attacks, "batch_size": 64, **changes}
    return autoattack(KEY, logits_fn, images, labels, **arguments)


def test_a_custom_version_runs_its_attacks_in_their_order():
    found = run_custom()
    assert found.attacks == ("clean", *CUSTOM)
    robust = found.broken_by == -1
    assert 0 < robust.sum() < 37
    assert (found.queries[robust] == max_queries({"attacks": CUSTOM, "version": "custom"})).all()
    assert max_queries({"attacks": CUSTOM, "version": "custom"}) == 13 + 15 + 2 * 2 * 6
    reverse = run_custom(dict(reversed(CUSTOM.items())))
    assert reverse.attacks == ("clean", *reversed(CUSTOM))
    np.testing.assert_array_equal(reverse.broken_by == -1, robust)


def test_individual_attacks_see_all_examples():
    """Each attack fools the examples that it fools when it is alone."""
    together = run_custom(individual=True)
    accuracies = together.individual_accuracies()
    assert list(accuracies) == list(CUSTOM)
    for name, attack in CUSTOM.items():
        alone = run_custom({name: attack})
        assert accuracies[name] == pytest.approx((alone.broken_by == -1).mean(), abs=0.03)
    assert accuracies["random"] > accuracies["apgd_margin"]
    any_fooled = np.any(list(together.fooled.values()), axis=0)
    np.testing.assert_array_equal(any_fooled, together.broken_by > 0)
    in_turn = run_custom()
    np.testing.assert_array_equal(in_turn.broken_by, together.broken_by)
    np.testing.assert_array_equal(in_turn.images, together.images)
    assert together.queries.sum() > in_turn.queries.sum()
    with pytest.raises(ValueError, match="individual=True"):
        in_turn.individual_accuracies()
    assert sum(map(np.sum, in_turn.fooled.values())) == (in_turn.broken_by > 0).sum()


def test_a_budget_limits_the_gradient_attacks_of_a_custom_version():
    attacks = {
        "apgd": {"attack": "apgd", "num_queries": 7},
        "fab": {"attack": "fab", "num_targets": 2, "num_queries": 9},
    }
    found = run_custom(attacks)
    assert max_queries({"version": "custom", "attacks": attacks}) == 16
    assert (found.queries <= 16).all()


def test_the_flag_of_square_needs_an_earlier_attack_with_gradients():
    square = {"attack": "square", "num_queries": 1}
    stages = [
        _version_stages("custom", "linf", 3, attacks)
        for attacks in (
            {"nes": {"attack": "nes", "num_queries": 9, "step_size": 0.1}, "square": square},
            {"apgd": {"attack": "apgd"}, "sq": square},
        )
    ]
    assert [_square_after_gradients(one) for one in stages] == [None, "sq"]


@pytest.mark.parametrize(
    ("attacks", "message"),
    [
        ({}, 'attacks is empty: the version "custom" needs attacks by name'),
        ({"a": {"attack": "pgd"}}, r"attacks\.a\.attack must be one of apgd, fab, square"),
        ({"a": {"num_steps": 3}}, r"attacks\.a\.attack must be one of apgd, fab, square"),
        ({"a": {"attack": "square"}}, r"attacks\.a lacks num_queries"),
        ({"a": {"attack": "apgd", "eps": 0.1}}, r"attacks\.a\.eps is no argument here"),
        ({"a": {"attack": "apgd", "num_steps": -1}}, r"attacks\.a\.num_steps is -1"),
        ({"a": {"attack": "fab", "num_targets": 3}}, r"attacks\.a\.num_targets is 3"),
        ({"clean": {"attack": "apgd"}}, 'attacks has the name "clean"'),
    ],
)
def test_invalid_custom_attacks_are_named(attacks, message):
    with pytest.raises(ValueError, match=message):
        run_custom(attacks)


def test_attacks_need_the_version_custom():
    with pytest.raises(ValueError, match='set version to "custom"'):
        run_custom(version="standard")
