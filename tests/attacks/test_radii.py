"""A radius for each image, and in L-inf for each value of an image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import CALLS, NORMS, ids_of, images_of, run
from linear_model import LOGITS_FN, SIZE, WEIGHTS, examples, flat, length

from jaxadv.attacks import apgd, fgsm, mi_fgsm, pgd, random_search, square
from jaxadv.attacks.apgd_run import initial_state, take_step
from jaxadv.attacks.autoattack import check_autoattack
from jaxadv.attacks.threat import THREATS

pytestmark = pytest.mark.slow  # compiles much

KEY = jax.random.key(0)
N = 4
IMAGES, LABELS = examples(n=N)
W = jnp.asarray(WEIGHTS, jnp.float32)
SCALES = {"linf": 0.02, "l2": 0.3, "l1": 0.6, "l0": 1.5}
PAIRS = [(name, norm) for name in CALLS for norm in NORMS[name]]
# L-inf perturbations with a radius for each value: many are 0, as under a mask.
PER_VALUE = jnp.asarray(
    np.random.default_rng(1).choice([0.0, 0.02, 0.1], (N, 4, 4, 3)), jnp.float32
)


def logits_fn(key, images):
    """A linear model; the order of the sums of a matrix product would depend on the batch."""
    return (images.reshape(-1, SIZE, 1) * W).sum(axis=1)


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_an_image_is_attacked_in_its_own_ball(name, norm):
    """As in a batch whose images all have its radius."""
    radii = SCALES[norm] * jnp.arange(1.0, N + 1)
    ids = ids_of(name, jnp.arange(N, dtype=jnp.int32))
    norms = {} if name == "n_fgsm" else {"norm": norm}
    together = images_of(run(name, logits_fn, IMAGES, LABELS, eps=radii, **norms, **ids))
    for row in (0, N - 1):
        alone = images_of(run(name, logits_fn, IMAGES, LABELS, eps=radii[row], **norms, **ids))
        np.testing.assert_allclose(together[row], alone[row], atol=1e-6)
    assert (np.asarray(together) != np.asarray(IMAGES)).any()


@pytest.mark.parametrize(
    "name", ["fgsm", "pgd", "mi_fgsm", "apgd", "nes", "square", "random_search"]
)
def test_a_value_stays_within_its_own_radius(name):
    adversarial = images_of(run(name, LOGITS_FN, IMAGES, LABELS, eps=PER_VALUE))
    moved = np.abs(np.asarray(adversarial - IMAGES))
    assert (moved <= np.asarray(PER_VALUE) + 1e-6).all()
    same = images_of(run(name, LOGITS_FN, IMAGES, LABELS, eps=0.1))
    full = images_of(run(name, LOGITS_FN, IMAGES, LABELS, eps=jnp.full((1, 4, 4, 3), 0.1)))
    np.testing.assert_array_equal(same, full)


@pytest.mark.parametrize(
    ("attack", "arguments"),
    [
        (fgsm, {}),
        (pgd, {"step_size": PER_VALUE / 2, "num_steps": 5, "random_start": False}),
        (mi_fgsm, {"step_size": PER_VALUE / 2, "num_steps": 5}),
        (apgd, {"num_steps": 20, "loss": "margin"}),
    ],
)
def test_a_linear_model_is_attacked_at_the_vertices_of_the_box(attack, arguments):
    """The margin grows by the radii times the weights, more than that is impossible."""
    images, labels = 0.4 + 0.2 * IMAGES, LABELS % 2  # no value reaches a face

    def two_classes(key, images):
        return (
            0.1 * images.reshape(-1, SIZE) @ W[:, :2]
            + jnp.array([1.0, -1.0]) * (1 - 2 * labels[:, None]) * 5
        )  # no success ends an attack

    adversarial = images_of(attack(KEY, two_classes, images, labels, eps=PER_VALUE, **arguments))
    signs = np.where(np.asarray(labels) == 0, 1, -1)[:, None]
    direction = np.sign(signs * (WEIGHTS[:, 1] - WEIGHTS[:, 0]))
    expected = flat(images) + flat(PER_VALUE) * direction
    np.testing.assert_allclose(flat(adversarial), expected, atol=1e-6)


def test_radii_are_traced():
    shapes = []

    def count(key, images):
        shapes.append(images.shape)
        return LOGITS_FN(key, images)

    attack = jax.jit(lambda eps: random_search(KEY, count, IMAGES, LABELS, eps=eps, num_queries=3))
    for scale in (0.1, 0.2):
        found = attack(scale * jnp.arange(N, dtype=jnp.float32))
        assert (length(found.images - IMAGES, "linf") <= scale * np.arange(N) + 1e-6).all()
    num_traces = len(shapes)
    attack(0.3 * jnp.ones(N))
    assert len(shapes) == num_traces


def test_a_search_resumes_with_a_radius_for_each_value():
    whole = square(KEY, LOGITS_FN, IMAGES, LABELS, eps=PER_VALUE, num_queries=20)
    part = square(KEY, LOGITS_FN, IMAGES, LABELS, eps=PER_VALUE, num_queries=7)
    resumed = square(KEY, LOGITS_FN, IMAGES, LABELS, eps=PER_VALUE, num_queries=20, resume=part)
    np.testing.assert_array_equal(whole.images, resumed.images)
    with pytest.raises(ValueError, match=r"resume has images farther than eps, at most 0\.01"):
        square(KEY, LOGITS_FN, IMAGES, LABELS, eps=PER_VALUE / 10, num_queries=9, resume=part)


def test_a_search_does_not_resume_in_another_ball_with_the_same_largest_radius():
    whole_image = jnp.full((1, 4, 4, 3), 0.1)
    part = square(KEY, LOGITS_FN, IMAGES, LABELS, eps=whole_image, num_queries=3)
    fixed = whole_image.at[:, 0].set(0)
    with pytest.raises(ValueError, match="resume has images farther"):
        square(KEY, LOGITS_FN, IMAGES, LABELS, eps=fixed, num_queries=9, resume=part)


@pytest.mark.parametrize(
    ("name", "least"), [("nes", 0.2), ("square", 0.6), ("random_search", 0.3), ("n_fgsm", 0.3)]
)
def test_values_move_in_proportion_to_their_radii(name, least):
    """Also beside values of radius 0, which never move, not even in a query."""
    seen = []

    def record(key, images):
        jax.debug.callback(lambda images: seen.append(np.asarray(images)), images)
        return LOGITS_FN(key, images) - 9 * jax.nn.one_hot(1 - LABELS % 2, 5)

    images = 0.4 + 0.2 * IMAGES
    changes = {"num_queries": 60} if name != "n_fgsm" else {"step_size": PER_VALUE / 2}
    adversarial = images_of(run(name, record, images, LABELS, eps=PER_VALUE, **changes))
    jax.effects_barrier()
    share = np.abs(np.asarray(adversarial - images)) / np.maximum(PER_VALUE, 1e-9)
    for radius in (0.02, 0.1):
        assert share[np.isclose(PER_VALUE, radius)].mean() > least
    fixed = np.asarray(PER_VALUE) == 0
    for queried in seen:
        np.testing.assert_array_equal(queried[fixed], np.asarray(images)[fixed])


def test_the_look_ahead_of_nesterov_leaves_values_of_radius_0():
    seen = []

    def record(key, images):
        jax.debug.callback(lambda images: seen.append(np.asarray(images)), images)
        return LOGITS_FN(key, images)

    mi_fgsm(KEY, record, IMAGES, LABELS, eps=PER_VALUE, step_size=0.05, num_steps=4, nesterov=True)
    jax.effects_barrier()
    fixed = np.asarray(PER_VALUE) == 0
    assert len(seen) == 4
    for point in seen:
        np.testing.assert_array_equal(point[fixed], np.asarray(IMAGES)[fixed])


def test_the_steps_of_apgd_are_in_proportion_to_the_radii():
    """After a halving, a value with a small radius moves by a share of it, not across its ball."""
    state = initial_state(IMAGES, jnp.zeros(N), jnp.ones_like(IMAGES), PER_VALUE)
    state = state._replace(step_size=state.step_size / 8)  # a quarter of the largest radius
    moved = take_step(THREATS["linf"], IMAGES, PER_VALUE, state, jnp.int32(1))
    inside = np.asarray(IMAGES) < 0.85
    share = np.asarray((moved - IMAGES) / jnp.where(PER_VALUE > 0, PER_VALUE, 1))
    expected = np.where(np.asarray(PER_VALUE) > 0, 0.25, 0)
    np.testing.assert_allclose(share[inside], expected[inside], atol=1e-4)


def test_autoattack_takes_one_radius():
    with pytest.raises(ValueError, match="eps is Array"):
        check_autoattack({"eps": jnp.ones(N) / 10})
