"""AutoAttack on linear models, whose robust examples are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import patch_stages
from linear_model import LOGITS_FN, WEIGHTS, examples, length, radii

from jaxadv.attacks import autoattack
from jaxadv.attacks.autoattack import max_queries
from jaxadv.attacks.autoattack_flags import probe, raise_flags
from jaxadv.attacks.ensemble import CLEAN, ROBUST

pytestmark = pytest.mark.slow  # compiles much

KEY = jax.random.key(0)
IMAGES, _ = examples(n=24, low=0.3, high=0.7)
# The first three are misclassified without perturbation.
LABELS = LOGITS_FN(None, IMAGES).argmax(axis=1)
LABELS = LABELS.at[:3].set((LABELS[:3] + 1) % 5)
SHORT = {
    "apgd_ce": {"attack": "apgd", "loss": "cross_entropy", "num_steps": 5},
    "apgd_t": {"attack": "apgd", "loss": "dlr", "num_targets": 9, "num_steps": 20},
    "fab_t": {"attack": "fab", "num_targets": 9, "num_steps": 10},
    "square": {"attack": "square", "num_queries": 30},
}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    patch_stages(monkeypatch, {"standard": SHORT})


def run(**changes):
    distances = radii(WEIGHTS, IMAGES, LABELS, changes.get("norm", "linf"))
    eps = float(np.median(distances[3:]))
    arguments = {"eps": eps, "batch_size": 64, **changes}
    return autoattack(KEY, LOGITS_FN, IMAGES, LABELS, **arguments), distances, eps


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_examples_whose_boundary_is_within_eps_are_fooled(norm):
    found, distances, eps = run(norm=norm)
    clear = np.abs(distances / eps - 1) > 0.08  # FAB moves 5 % beyond the boundary
    np.testing.assert_array_equal((found.broken_by != ROBUST)[clear], (distances < eps)[clear])
    assert (found.broken_by[:3] == CLEAN).all()
    assert (found.broken_by[3:] != CLEAN).all()
    fooled = found.broken_by > CLEAN
    assert 0 < fooled.sum() < 21
    wrong = LOGITS_FN(None, jnp.asarray(found.images)).argmax(axis=1) != LABELS
    sure = np.abs(found.margins) > 1e-4  # on the boundary rounding decides
    np.testing.assert_array_equal(wrong[sure], (found.broken_by != ROBUST)[sure])
    assert sure.sum() > 20
    assert (length(found.images - np.asarray(IMAGES), norm) <= eps * (1 + 1e-5)).all()
    robust = found.broken_by == ROBUST
    assert (found.images[robust] == IMAGES[robust]).all()
    assert found.accuracies()["clean"] == 21 / 24
    assert found.accuracies()["square"] == robust.mean()
    assert not found.flags


def test_query_counts_include_all_attacks():
    found, distances, eps = run()
    robust = found.broken_by == ROBUST
    assert (found.queries[robust] == max_queries({}, 5)).all()
    assert max_queries({}, 5) == 6 + 4 * 21 + 4 * 2 * 10 + 30
    assert (found.gradients[robust] == 6 + 4 * 21 + 4 * 10).all()
    assert (found.queries[:3] == 0).all()
    # FAB finds the boundary of robust examples too, beyond eps.
    np.testing.assert_allclose(found.distances[robust], distances[robust], rtol=0.03)
    assert (found.distances[found.broken_by > CLEAN] <= eps * (1 + 1e-5)).all()


def test_results_do_not_depend_on_the_batch_size():
    one, distances, eps = run()
    other, _, _ = run(batch_size=400)
    clear = np.abs(distances / eps - 1) > 0.02
    np.testing.assert_array_equal(one.broken_by[clear], other.broken_by[clear])


class KilledError(Exception):
    pass


class KillingCache(dict):
    """A resume cache that kills the program after `left` records."""

    def __init__(self, left):
        super().__init__()
        self.left = left

    def __setitem__(self, name, record):
        super().__setitem__(name, record)
        self.left -= 1
        if not self.left:
            raise KilledError


def test_a_killed_call_resumes_to_the_same_result(monkeypatch):
    monkeypatch.setattr("jaxadv.attacks.batching._SECONDS_BETWEEN_SAVES", -1)  # each segment
    whole, _, _ = run()
    for left in (1, 4, 9):
        cache = KillingCache(left)
        with pytest.raises(KilledError):
            run(ledger=cache)
        resumed, _, _ = run(ledger=cache)
        for name in ("images", "broken_by", "steps", "queries", "gradients", "distances"):
            np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name))


def test_an_attack_continues_after_an_unconfirmed_success(monkeypatch):
    """Under noise some first successes are chance; examples within eps are fooled anyway."""
    apgd_ce = {"attack": "apgd", "loss": "cross_entropy", "num_steps": 60, "num_noise_samples": 2}
    patch_stages(monkeypatch, {"rand": {"apgd_ce": apgd_ce}})

    def noisy(key, images):
        return 10 * LOGITS_FN(None, images) + jax.random.normal(key, (len(images), 5))

    distances = radii(WEIGHTS, IMAGES, LABELS, "linf")
    eps = float(np.median(distances[3:]))
    found = autoattack(KEY, noisy, IMAGES, LABELS, eps=eps, version="rand", batch_size=64)
    assert found.unconfirmed["apgd_ce"] > 0
    assert (found.broken_by != ROBUST)[distances < 0.7 * eps].all()
    assert (found.margins[found.broken_by == 1] > 0).all()
    assert (found.queries <= max_queries({"version": "rand"}, 5)).all()


def test_flags_report_models_that_autoattack_cannot_evaluate():
    def softmax(key, images):
        return jax.nn.softmax(LOGITS_FN(None, images))

    def random(key, images):
        return LOGITS_FN(None, images + 0.05 * jax.random.normal(key, images.shape))

    def flat(key, images):
        return jnp.round(10 * LOGITS_FN(None, images))

    def flags(fn, num_classes=5, version="standard", **accuracies):
        probed = jax.tree.map(np.asarray, probe(KEY, fn, IMAGES[3:], LABELS[3:]))
        finite = np.zeros(len(IMAGES), int)
        square = "square" if "square" in accuracies else None
        averages_noise = version == "rand"
        return set(
            raise_flags(
                probed, num_classes, averages_noise, accuracies, finite > 0, finite, square, False
            )
        )

    assert flags(LOGITS_FN) == set()
    assert flags(softmax) == {"softmax"}
    assert flags(random) == {"randomised"}
    assert flags(random, version="rand") == set()
    assert flags(flat) == {"zero_gradient"}
    assert flags(LOGITS_FN, num_classes=3) == {"few_classes"}
    assert flags(LOGITS_FN, clean=0.9, apgd_ce=0.5, square=0.4) == {"square"}
    assert flags(LOGITS_FN, clean=0.9, apgd_ce=0.5, square=0.499) == set()
    assert flags(LOGITS_FN, clean=0.9, fab=0.5, square=0.4, apgd_t=0.3) == {"square"}


def test_a_call_inside_jit_raises_an_error():
    with pytest.raises(ValueError, match="inside of jit"):
        jax.jit(lambda x: autoattack(KEY, LOGITS_FN, x, LABELS, eps=0.1).images)(IMAGES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"version": "fast"}, "version is 'fast': it must be"), ({"eps": -1.0}, "eps is -1")],
)
def test_invalid_arguments_raise_an_error_with_their_name(changes, message):
    with pytest.raises(ValueError, match=message):
        run(**changes)
