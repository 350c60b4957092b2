"""Precisions of images and logits, and values at the limits of [0, 1]."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import CALLS, images_of, run, run_autoattack, skip_other_norms
from linear_model import ORDERS, WEIGHTS, apply, examples

from jaxadv.attacks import n_fgsm, nes, pgd
from jaxadv.attacks.checks import check_key
from jaxadv.attacks.pgd import pgd_result

pytestmark = pytest.mark.slow  # compiles much

KEY = jax.random.key(0)
IMAGES, LABELS = examples(n=8)
EPS = 8 / 255


def model_in(dtype, key, images):
    return apply(WEIGHTS, key, images.astype(dtype))


def lengths(delta, norm):
    flat = np.asarray(delta, np.float64).reshape(len(delta), -1)
    return np.linalg.norm(flat, ORDERS[norm], axis=1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", [name for name in CALLS if name != "n_fgsm"])
def test_results_are_in_the_ball_for_all_precisions_of_the_images(name, dtype, norm):
    skip_other_norms(name, norm)
    images = IMAGES.astype(dtype)
    model = partial(model_in, jnp.bfloat16)
    found = images_of(run(name, model, images, LABELS, norm=norm, eps=EPS))
    assert found.dtype == jnp.float32
    assert lengths(found - images.astype(jnp.float32), norm).max() <= EPS + 2e-7
    assert 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_pgd_keeps_double_precision(norm):
    with jax.enable_x64(True):
        images = jnp.asarray(np.asarray(IMAGES, np.float64) * 0.9 + 0.05)
        adversarial = pgd(
            KEY, partial(apply, WEIGHTS), images, LABELS, eps=EPS, step_size=0.1, num_steps=3,
            norm=norm,
        )  # fmt: skip
        assert adversarial.dtype == jnp.float64
    assert lengths(np.asarray(adversarial) - np.asarray(images), norm).max() <= EPS + 1e-15


def test_autoattack_accepts_half_precision_logits():
    found = run_autoattack(partial(model_in, jnp.bfloat16), IMAGES, LABELS)
    assert np.isfinite(found.images).all()
    assert found.flags.keys() <= {"randomised"}


@pytest.mark.parametrize("outside", [1.0000001, 1 + 5e-7, -3e-8])
def test_values_outside_the_range_by_rounding_are_clipped(outside):
    edge = np.array(IMAGES)
    edge[0, 0, 0, 0] = outside
    clean = np.clip(edge, 0, 1)
    options = {"eps": 0.1, "step_size": 0.05, "num_steps": 2}
    one, other = (
        pgd(KEY, partial(apply, WEIGHTS), jnp.asarray(images), LABELS, **options)
        for images in (edge, clean)
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("outside", [1.25, -0.125, jnp.nan, jnp.inf])
def test_values_farther_outside_the_range_raise_an_error(outside):
    images = IMAGES.at[0, 0, 0, 0].set(outside)
    with pytest.raises(ValueError, match=f"images lie in .*{float(outside)}"):
        pgd(KEY, partial(apply, WEIGHTS), images, LABELS, eps=0.1, step_size=0.05, num_steps=2)


BAD_N_FGSM = {
    "bytes as floats": ({"images": 255 * IMAGES}, "images lie in"),
    "labels": ({"labels": LABELS + 90}, r"labels lie in \[9\d, 94\]: they must lie in \[0, 4\]"),
    "eps": ({"eps": -1.0}, "eps is -1.0"),
    "loss": ({"loss": "kl"}, "loss is 'kl': it must be one of"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_N_FGSM.values(), ids=BAD_N_FGSM)
def test_n_fgsm_checks_its_arguments_as_pgd_does(changes, message):
    arguments = {"images": IMAGES, "labels": LABELS, "eps": 0.1, "step_size": 0.1} | changes
    with pytest.raises(ValueError, match=message):
        n_fgsm(KEY, partial(apply, WEIGHTS), **arguments)


@pytest.mark.parametrize("name", ["eps", "step_size", "num_restarts", "noise_chunk_size", "loss"])
def test_required_arguments_cannot_be_none(name):
    arguments = {"eps": 0.1, "step_size": 0.1, "num_steps": 1, name: None}
    with pytest.raises(ValueError, match=f"{name} is None: it must be"):
        pgd_result.__wrapped__(KEY, partial(apply, WEIGHTS), IMAGES, LABELS, **arguments)


def test_targets_must_differ_from_the_labels():
    with pytest.raises(ValueError, match="targets equal the labels of 8 images"):
        nes(
            KEY, partial(apply, WEIGHTS), IMAGES, LABELS, eps=0.1, step_size=0.1, num_queries=1,
            targets=LABELS,
        )  # fmt: skip


def test_raw_keys_are_wrapped():
    wrapped = check_key(jax.random.PRNGKey(3))
    np.testing.assert_array_equal(
        jax.random.key_data(wrapped), jax.random.key_data(jax.random.key(3))
    )
    for invalid in (jax.random.split(KEY), 3, np.zeros(2)):
        with pytest.raises(ValueError, match=r"must be a single JAX key such as jax\.random\.key"):
            check_key(invalid)
