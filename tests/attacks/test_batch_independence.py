"""The result of an example does not depend on the rest of its batch."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import BLACK_BOX, CALLS, FUNCTIONS, RESUMABLE, ids_of, patch_stages, skip_other_norms
from linear_model import SIZE, WEIGHTS, apply, examples, length, radii

from jaxadv.attacks import fab
from jaxadv.attacks.autoattack import run_version
from jaxadv.attacks.batching import Examples, Model
from jaxadv.core.losses import margin
from jaxadv.core.rng import example_keys

pytestmark = pytest.mark.slow  # compiles much

KEY = jax.random.key(0)
N = 6
W = jnp.asarray(WEIGHTS, jnp.float32)
EPS = {"linf": 0.01, "l2": 0.06, "l1": 0.15, "l0": 1.0}
# More steps than in `calls`, so that one state can be far behind another.
LONGER = {
    "apgd": {"num_steps": 12, "num_targets": 2},
    "fab": {"num_steps": 6, "num_targets": 2, "num_restarts": 2},
    "nes": {"momentum": 0.5, "num_queries": 41},
    "nes_label_only": {"num_queries": 60, "sigma": 0.3, "label_radius": 0.3},
    "hop_skip_jump": {"num_queries": 60},
    "rays": {"num_queries": 30},
    "sparse_rs": {"num_queries": 30},
    "square": {"num_queries": 30},
    "random_search": {"num_queries": 30},
}
TOTAL_QUERIES = {
    "apgd": 26, "fab": 48, **{name: LONGER[name]["num_queries"] for name in BLACK_BOX},
}  # fmt: skip
BEHIND, AHEAD = 4, 20  # queries of the rows that are resumed together
NOISE = {"deterministic": 0.0, "random": 0.3}

all_norms = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
with_l0 = pytest.mark.parametrize("norm", EPS)
both_models = pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)


def model_of(ids, noise):
    """A linear model whose noise depends on the key and on the id of each example.

    It multiplies and sums, because the summation order of a matrix product may depend on the batch.
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
    """Images that are misclassified, vulnerable and, the last four, robust."""
    images = examples(n=64, low=0.3, high=0.7)[0]
    labels = model_of(None, 0)(None, images).argmax(axis=1)
    nearest_first = np.argsort(radii(WEIGHTS, images, labels, "linf"))
    rows = nearest_first[[0, 20, -1, -2, -3, -4]]
    labels = labels[rows]
    return images[rows], labels.at[0].set((labels[0] + 1) % 5)


IMAGES, LABELS = problem()
IDS = jnp.arange(N) + 3  # not the positions


@cache
def compiled(name, norm, noise):
    """An attack inside of `jit`, where arrays and budgets are traced.

    There, ids may be equal, as in padded batches.
    """
    options = {**CALLS[name], "eps": EPS[norm], **LONGER.get(name, {})}
    options |= {} if name == "n_fgsm" else {"norm": norm}
    options.pop("num_queries", None)

    @jax.jit
    def attack(images, labels, ids, num_queries, resume):
        changes = ids_of(name, ids)
        if name in RESUMABLE:
            changes |= {"num_queries": num_queries, "resume": resume}
        return FUNCTIONS[name](KEY, model_of(ids, noise), images, labels, **options, **changes)

    def run(rows, num_queries=None, resume=None):
        num_queries = num_queries or TOTAL_QUERIES.get(name)
        return attack(IMAGES[rows], LABELS[rows], IDS[rows], num_queries, resume)

    return run


@cache
def uninterrupted(name, norm, noise):
    return compiled(name, norm, noise)(np.arange(N))


def assert_equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_close(one, other, atol=5e-7):
    """XLA may sum in another order for another batch size, so that the last bits differ."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=atol)


def take(tree, rows):
    return jax.tree.map(lambda array: array[rows], tree)


ROWS = {
    "in another order": [5, 2, 0, 4, 1, 3],
    "padded with one example": [3] * N,
    "padded": [1, 4, 4, 4, 4, 4],
    "alone": [4],
    "no images": [],
}


@pytest.mark.parametrize("name", CALLS)
@with_l0
@both_models
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_results_do_not_depend_on_the_batch(name, norm, noise, rows):
    skip_other_norms(name, norm)
    rows = np.array(rows, int)
    found = compiled(name, norm, noise)(rows)
    expected = take(uninterrupted(name, norm, noise), rows)
    if len(rows) == N:
        assert_equal(found, expected)
    else:
        # HopSkipJump divides differences of images by the small radius of its samples.
        assert_close(found, expected, atol=1e-5 if name == "hop_skip_jump" else 5e-7)


@pytest.mark.parametrize("name", RESUMABLE)
@all_norms
@both_models
def test_states_at_different_steps_can_be_resumed_together(name, norm, noise):
    skip_other_norms(name, norm)
    run, expected = compiled(name, norm, noise), uninterrupted(name, norm, noise)
    behind, ahead = (run(np.arange(N), num_queries) for num_queries in (BEHIND, AHEAD))
    first = np.arange(N) % 2 == 1
    state = jax.tree.map(
        lambda a, b: jnp.where(first.reshape(-1, *[1] * (a.ndim - 1)), a, b), behind, ahead
    )
    active = np.asarray(~state.success)
    assert state.steps[active & first].max() < state.steps[active & ~first].max()
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


NO_ROWS = dict.fromkeys(("attacks", "individual", "unconfirmed", "seconds", "flags"))


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


@all_norms
@pytest.mark.parametrize(
    ("make_logits_fn", "version"),
    [(deterministic, "standard"), (random, "standard"), (random, "rand")],
)
def test_autoattack_does_not_depend_on_the_batch(make_logits_fn, version, norm, monkeypatch):
    """This includes rows whose success a second check rejects, and which are attacked again."""
    patch_stages(monkeypatch, SHORT)
    together = run_autoattack(make_logits_fn, np.arange(N), norm, version, 64)
    parts = [[3], [0], [1, 2, 4, 5]]
    found = [run_autoattack(make_logits_fn, rows, norm, version, 64) for rows in parts]
    larger = run_autoattack(make_logits_fn, np.arange(N), norm, version, 256)
    assert len(np.unique(together.broken_by)) > 1
    if make_logits_fn is random:
        assert sum(together.unconfirmed.values()) > 0
    for other, rows in [(larger, np.arange(N)), *zip(found, parts, strict=True)]:
        arrays = take(together._replace(**NO_ROWS), np.array(rows))
        assert_close(other._replace(**NO_ROWS), arrays)
    for attack, count in together.unconfirmed.items():
        assert sum(one.unconfirmed[attack] for one in found) == count


def test_autoattack_accepts_an_empty_batch(monkeypatch):
    patch_stages(monkeypatch, SHORT)
    found = run_autoattack(deterministic, np.arange(0), "linf", "standard", 64)
    assert found.images.shape == (0, *IMAGES.shape[1:])


@all_norms
@pytest.mark.parametrize("lead", [0.5, -0.5], ids=["nearer", "at once"])
def test_fab_after_an_unconfirmed_success_accepts_farther_images(norm, lead):
    """In the first call the boundary is nearer, or the clean images are on its other side."""
    images, labels = IMAGES[1:], LABELS[1:]
    distances = radii(WEIGHTS, images, labels, norm)
    shift = (1 - lead) * jax.nn.one_hot(labels, 5)
    margins = -margin(apply(W, None, images), labels)

    def model(shift, key, images):
        return apply(W, key, images) - shift

    options = {"eps": 1.5 * float(distances.max()), "norm": norm, "num_steps": 4, "num_targets": 4}
    first = fab(KEY, partial(model, shift * margins[:, None]), images, labels, **options)
    assert first.success.all()
    assert (first.extras.distance < 0.9 * distances).all()
    unconfirmed = first._replace(success=jnp.zeros_like(first.success))
    found = fab(KEY, partial(model, 0 * shift), images, labels, **options, resume=unconfirmed)
    assert found.success.all()
    lengths = length(found.images - images, norm)
    np.testing.assert_allclose(found.extras.distance, lengths, atol=1e-6)
    assert (found.extras.distance >= distances * (1 - 1e-5)).all()
    assert (found.extras.distance <= options["eps"]).all()


@pytest.mark.parametrize("name", ["rays", "hop_skip_jump"])
@pytest.mark.parametrize("early_stop", [True, False])
def test_after_an_unconfirmed_success_farther_images_count(name, early_stop):
    """The boundary of the first call is nearer."""
    images, labels = IMAGES[1:], LABELS[1:]
    shift = 0.9 * margin(apply(W, None, images), labels)[:, None] * jax.nn.one_hot(labels, 5)

    def model(shift, key, images):
        return apply(W, key, images) + shift

    options = {"norm": "linf", "num_queries": 400, "early_stop": early_stop, "eps": 1.0}
    run = partial(FUNCTIONS[name], KEY, images=images, labels=labels, **options)
    first = run(logits_fn=partial(model, shift), num_queries=200)
    assert first.success.all()
    unconfirmed = first._replace(success=jnp.zeros_like(first.success))
    found = run(logits_fn=partial(model, 0 * shift), resume=unconfirmed)
    assert found.success.all()
    assert (margin(apply(W, None, found.images), labels) > 0).all()
    lengths = length(found.images - images, "linf")
    np.testing.assert_allclose(found.extras.distance, lengths, atol=1e-6)
