"""An example never sees another: alone it meets what it meets in any batch."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import CALLS, FUNCTIONS
from linear_model import SIZE, WEIGHTS, apply, examples, length, radii

from jaxadv.attacks import GRADIENT_FREE, RESUMABLE, fab
from jaxadv.attacks.autoattack import VERSIONS, run_version
from jaxadv.attacks.batches import Examples, Model
from jaxadv.losses import margin
from jaxadv.prng import example_keys

KEY = jax.random.key(0)
N = 6
W = jnp.asarray(WEIGHTS, jnp.float32)
EPS = {"linf": 0.01, "l2": 0.06}
# More steps than those of `calls`, so that one state can be far behind another.
LONGER = {
    "apgd": {"num_steps": 12, "num_targets": 2},
    "fab": {"num_steps": 6, "num_targets": 2, "num_restarts": 2},
    "nes": {"momentum": 0.5, "num_queries": 41},
    "nes_label_only": {"num_queries": 60, "sigma": 0.3, "label_radius": 0.3},
    "square": {"num_queries": 30},
    "random_search": {"num_queries": 30},
}
WHOLE = {  # queries of the whole search
    "apgd": 26, "fab": 48, **{name: LONGER[name]["num_queries"] for name in GRADIENT_FREE},
}  # fmt: skip
BEHIND, AHEAD = 4, 20  # queries that rows have spent when they are resumed together
NOISE = {"deterministic": 0.0, "random": 0.3}

both_norms = pytest.mark.parametrize("norm", EPS)
both_models = pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)


def model_of(ids, noise):
    """A linear model whose noise follows from the key and the number of each example.

    It multiplies and sums instead of a matrix product, whose order may follow from the batch.
    """

    def logits_fn(key, images):
        logits = (images.reshape(-1, SIZE, 1) * W).sum(axis=1)
        if not noise:
            return logits
        return logits + noise * jax.vmap(lambda key: jax.random.normal(key, (5,)))(
            example_keys(key, ids)
        )

    return logits_fn


def problem():
    """Images that are misclassified as they are, in reach, and, the last four, out of reach."""
    images = examples(n=64, low=0.3, high=0.7)[0]
    labels = model_of(None, 0)(None, images).argmax(axis=1)
    nearest_first = np.argsort(radii(WEIGHTS, images, labels, "linf"))
    rows = nearest_first[[0, 20, -1, -2, -3, -4]]
    labels = labels[rows]
    return images[rows], labels.at[0].set((labels[0] + 1) % 5)


IMAGES, LABELS = problem()
IDS = jnp.arange(N) + 3  # no positions


@cache
def compiled(name, norm, noise):
    """An attack that knows neither its arrays nor its budget before it runs.

    Inside of `jit` numbers of examples may be equal, as in batches that are padded.
    """
    options = {**CALLS[name], "eps": EPS[norm], **LONGER.get(name, {})}
    options |= {} if name == "n_fgsm" else {"norm": norm}
    options.pop("num_queries", None)

    @jax.jit
    def attack(images, labels, ids, num_queries, resume):
        changes = {} if name == "fgsm" else {"example_ids": ids}
        if name in RESUMABLE:
            changes |= {"num_queries": num_queries, "resume": resume}
        return FUNCTIONS[name](KEY, model_of(ids, noise), images, labels, **options, **changes)

    def run(rows, num_queries=None, resume=None):
        num_queries = num_queries or WHOLE.get(name)
        return attack(IMAGES[rows], LABELS[rows], IDS[rows], num_queries, resume)

    return run


@cache
def whole(name, norm, noise):
    return compiled(name, norm, noise)(np.arange(N))


def assert_equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_equal_but_for_rounding(one, other):
    """Compiled for another size XLA sums in another order, so that the last bits may differ."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=5e-7)


def take(tree, rows):
    return jax.tree.map(lambda array: array[rows], tree)


WAYS = {
    "in another order": [5, 2, 0, 4, 1, 3],
    "padded with itself": [3] * N,
    "padded": [1, 4, 4, 4, 4, 4],
    "alone": [4],
    "no images": [],
}


@pytest.mark.parametrize("name", CALLS)
@both_norms
@both_models
@pytest.mark.parametrize("rows", WAYS.values(), ids=WAYS)
def test_an_example_meets_the_same_in_every_batch(name, norm, noise, rows):
    if name == "n_fgsm" and norm == "l2":
        pytest.skip("n_fgsm has one norm")
    rows = np.array(rows, int)
    found = compiled(name, norm, noise)(rows)
    compare = assert_equal if len(rows) == N else assert_equal_but_for_rounding
    compare(found, take(whole(name, norm, noise), rows))


@pytest.mark.parametrize("name", RESUMABLE)
@both_norms
@both_models
def test_states_at_different_steps_go_on_together(name, norm, noise):
    run, expected = compiled(name, norm, noise), whole(name, norm, noise)
    behind, ahead = (run(np.arange(N), num_queries) for num_queries in (BEHIND, AHEAD))
    first = np.arange(N) % 2 == 1
    state = jax.tree.map(
        lambda a, b: jnp.where(first.reshape(-1, *[1] * (a.ndim - 1)), a, b), behind, ahead
    )
    going = np.asarray(~state.success)
    assert state.steps[going & first].max() < state.steps[going & ~first].max()
    assert_equal(run(np.arange(N), resume=state), expected)


SHORT = {
    "standard": {
        "apgd_ce": {"attack": "apgd", "loss": "cross_entropy", "num_steps": 6},
        "fab_t": {"attack": "fab", "num_targets": 9, "num_steps": 5},
        "square": {"attack": "square", "num_queries": 15},
    },
    "rand": {
        "apgd_ce": {
            "attack": "apgd", "loss": "cross_entropy", "num_steps": 30, "num_noise_samples": 2,
        },
    },
}  # fmt: skip


NO_ROWS = dict.fromkeys(("attacks", "unconfirmed", "seconds", "flags"))


def deterministic(context, ids):
    return model_of(ids, NOISE["deterministic"])


def random(context, ids):
    return model_of(ids, NOISE["random"])


def run_autoattack(make_logits_fn, rows, norm, version, batch_size):
    examples = Examples(*(np.asarray(array)[rows] for array in (IMAGES, LABELS, IDS)))
    return run_version(
        KEY, Model(make_logits_fn, ()), examples, 5, eps=2 * EPS[norm], norm=norm,
        version=version, batch_size=batch_size,
    )  # fmt: skip


@both_norms
@pytest.mark.parametrize(
    ("make_logits_fn", "version"),
    [(deterministic, "standard"), (random, "standard"), (random, "rand")],
)
def test_autoattack_finds_the_same_in_every_batch(make_logits_fn, version, norm, monkeypatch):
    """Also of rows whose success a second look does not confirm, and which are attacked again."""
    monkeypatch.setitem(VERSIONS, version, SHORT[version])
    together = run_autoattack(make_logits_fn, np.arange(N), norm, version, 64)
    parts = [[3], [0], [1, 2, 4, 5]]
    found = [run_autoattack(make_logits_fn, rows, norm, version, 64) for rows in parts]
    larger = run_autoattack(make_logits_fn, np.arange(N), norm, version, 256)
    assert len(np.unique(together.broken_by)) > 1
    if make_logits_fn is random:
        assert sum(together.unconfirmed.values()) > 0
    for other, rows in [(larger, np.arange(N)), *zip(found, parts, strict=True)]:
        arrays = take(together._replace(**NO_ROWS), np.array(rows))
        assert_equal_but_for_rounding(other._replace(**NO_ROWS), arrays)
    for attack, count in together.unconfirmed.items():
        assert sum(one.unconfirmed[attack] for one in found) == count


def test_autoattack_of_no_images_is_no_work(monkeypatch):
    monkeypatch.setitem(VERSIONS, "standard", SHORT["standard"])
    found = run_autoattack(deterministic, np.arange(0), "linf", "standard", 64)
    assert found.images.shape == (0, *IMAGES.shape[1:])


@both_norms
@pytest.mark.parametrize("lead", [0.5, -0.5], ids=["nearer", "at once"])
def test_a_success_that_is_withdrawn_hides_no_farther_one(norm, lead):
    """The first call sees a boundary that is nearer, or the clean images on its other side."""
    images, labels = IMAGES[1:], LABELS[1:]
    distances = radii(WEIGHTS, images, labels, norm)
    shift = (1 - lead) * jax.nn.one_hot(labels, 5)
    margins = -margin(apply(W, None, images), labels)

    def model(shift, key, images):
        return apply(W, key, images) - shift

    options = {"eps": 1.5 * float(distances.max()), "norm": norm, "num_steps": 4, "num_targets": 4}
    lucky = fab(KEY, partial(model, shift * margins[:, None]), images, labels, **options)
    assert lucky.success.all()
    assert (lucky.memory.distance < 0.9 * distances).all()
    unconfirmed = lucky._replace(success=jnp.zeros_like(lucky.success))
    found = fab(KEY, partial(model, 0 * shift), images, labels, **options, resume=unconfirmed)
    assert found.success.all()
    lengths = length(found.images - images, norm)
    np.testing.assert_allclose(found.memory.distance, lengths, atol=1e-6)
    assert (found.memory.distance >= distances * (1 - 1e-5)).all()
    assert (found.memory.distance <= options["eps"]).all()
