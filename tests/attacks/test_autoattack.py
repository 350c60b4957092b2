"""AutoAttack on linear models, where it is known who falls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import LOGITS_FN, WEIGHTS, examples, length, radii

from jaxadv.attacks import autoattack
from jaxadv.attacks.autoattack import VERSIONS, most_queries
from jaxadv.attacks.cascade import CLEAN, STANDING
from jaxadv.attacks.flags import probe, raise_flags

KEY = jax.random.key(0)
IMAGES, _ = examples(n=24, low=0.3, high=0.7)
# The first three are misclassified as they stand.
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
    monkeypatch.setitem(VERSIONS, "standard", SHORT)


def run(**changes):
    distances = radii(WEIGHTS, IMAGES, LABELS, changes.get("norm", "linf"))
    eps = float(np.median(distances[3:]))
    arguments = {"eps": eps, "batch_size": 64, **changes}
    return autoattack(KEY, LOGITS_FN, IMAGES, LABELS, **arguments), distances, eps


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_those_fall_whose_boundary_is_in_reach(norm):
    found, distances, eps = run(norm=norm)
    clear = np.abs(distances / eps - 1) > 0.08  # FAB goes a twentieth beyond the boundary
    np.testing.assert_array_equal((found.broken_by != STANDING)[clear], (distances < eps)[clear])
    assert (found.broken_by[:3] == CLEAN).all()
    assert (found.broken_by[3:] != CLEAN).all()
    broken = found.broken_by > CLEAN
    assert 0 < broken.sum() < 21
    wrong = LOGITS_FN(None, jnp.asarray(found.images)).argmax(axis=1) != LABELS
    sure = np.abs(found.margins) > 1e-4  # on the boundary rounding decides
    np.testing.assert_array_equal(wrong[sure], (found.broken_by != STANDING)[sure])
    assert sure.sum() > 20
    assert (length(found.images - np.asarray(IMAGES), norm) <= eps * (1 + 1e-5)).all()
    assert (found.images[found.broken_by == STANDING] == IMAGES[found.broken_by == STANDING]).all()
    assert found.accuracies()["clean"] == 21 / 24
    assert found.accuracies()["square"] == (found.broken_by == STANDING).mean()
    assert not found.flags


def test_the_ledger_of_an_example_counts_all_attacks():
    found, distances, eps = run()
    standing = found.broken_by == STANDING
    assert (found.queries[standing] == most_queries("standard", 5)).all()
    assert most_queries("standard", 5) == 6 + 4 * 21 + 4 * 2 * 10 + 30
    assert (found.gradients[standing] == 6 + 4 * 21 + 4 * 10).all()
    assert (found.queries[:3] == 0).all()
    # FAB went on to the boundary of those that stand.
    np.testing.assert_allclose(found.distances[standing], distances[standing], rtol=0.03)
    assert (found.distances[found.broken_by > CLEAN] <= eps * (1 + 1e-5)).all()


def test_the_batch_size_changes_nothing():
    one, distances, eps = run()
    other, _, _ = run(batch_size=400)
    clear = np.abs(distances / eps - 1) > 0.02
    np.testing.assert_array_equal(one.broken_by[clear], other.broken_by[clear])


class KilledError(Exception):
    pass


class Dying(dict):
    """A ledger in whose hands the program dies, after so many records."""

    def __init__(self, left):
        super().__init__()
        self.left = left

    def __setitem__(self, name, record):
        super().__setitem__(name, record)
        self.left -= 1
        if not self.left:
            raise KilledError


def test_killed_at_any_record_it_ends_in_the_same_result(monkeypatch):
    monkeypatch.setattr("jaxadv.attacks.batches._SECONDS_BETWEEN_SAVES", -1)  # each segment
    whole, _, _ = run()
    for left in (1, 4, 9):
        ledger = Dying(left)
        with pytest.raises(KilledError):
            run(ledger=ledger)
        again, _, _ = run(ledger=ledger)
        for name in ("images", "broken_by", "steps", "queries", "gradients", "distances"):
            np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))


def test_an_attack_goes_on_where_a_second_look_does_not_confirm_it(monkeypatch):
    """Under noise some first looks are luck; who is within reach falls all the same."""
    monkeypatch.setitem(
        VERSIONS,
        "rand",
        {"apgd_ce": {"attack": "apgd", "loss": "cross_entropy", "num_steps": 60,
                     "num_noise_samples": 2}},
    )  # fmt: skip

    def noisy(key, images):
        return 10 * LOGITS_FN(None, images) + jax.random.normal(key, (len(images), 5))

    distances = radii(WEIGHTS, IMAGES, LABELS, "linf")
    eps = float(np.median(distances[3:]))
    found = autoattack(KEY, noisy, IMAGES, LABELS, eps=eps, version="rand", batch_size=64)
    assert found.unconfirmed["apgd_ce"] > 0
    assert (found.broken_by != STANDING)[distances < 0.7 * eps].all()
    assert (found.margins[found.broken_by == 1] > 0).all()
    assert (found.queries <= most_queries("rand", 5)).all()


def test_flags_tell_of_models_that_it_is_not_made_for():
    def softmax(key, images):
        return jax.nn.softmax(LOGITS_FN(None, images))

    def random(key, images):
        return LOGITS_FN(None, images + 0.05 * jax.random.normal(key, images.shape))

    def flat(key, images):
        return jnp.round(10 * LOGITS_FN(None, images))

    def flags(fn, num_classes=5, version="standard", **accuracies):
        probed = jax.tree.map(np.asarray, probe(KEY, fn, IMAGES[3:], LABELS[3:]))
        finite = np.zeros(len(IMAGES), int)
        return set(raise_flags(probed, num_classes, version, accuracies, finite > 0, finite))

    assert flags(LOGITS_FN) == set()
    assert flags(softmax) == {"softmax"}
    assert flags(random) == {"randomised"}
    assert flags(random, version="rand") == set()
    assert flags(flat) == {"zero_gradient"}
    assert flags(LOGITS_FN, num_classes=3) == {"few_classes"}
    assert flags(LOGITS_FN, clean=0.9, apgd_ce=0.5, square=0.4) == {"square"}
    assert flags(LOGITS_FN, clean=0.9, apgd_ce=0.5, square=0.499) == set()
    assert flags(LOGITS_FN, clean=0.9, fab=0.5, square=0.4, apgd_t=0.3) == {"square"}


def test_it_cannot_be_traced():
    with pytest.raises(ValueError, match="inside of jit"):
        jax.jit(lambda x: autoattack(KEY, LOGITS_FN, x, LABELS, eps=0.1).images)(IMAGES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"version": "fast"}, "version is 'fast': it must be"), ({"eps": -1.0}, "eps is -1")],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        run(**changes)
