import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.core.rng import example_keys
from jaxadv.core.types import UserError
from jaxadv.data import augment
from jaxadv.data.augment import default_augmentation, make_augment

NAMES = ("none", "flip", "flip_crop", "flip_crop_jitter")
NUM = 64


@functools.cache
def compiled(name):
    return jax.jit(make_augment(name))


@functools.cache
def compiled_jitter():
    return jax.jit(jax.vmap(augment._jitter))


def random_images(seed=0):
    return jnp.asarray(np.random.default_rng(seed).random((NUM, 8, 8, 3), np.float32))


def keys(num=NUM, seed=0):
    return example_keys(jax.random.key(seed), jnp.arange(num))


def test_none_is_the_identity():
    images = random_images()
    np.testing.assert_array_equal(compiled("none")(keys(), images), images)


def test_flip_mirrors_about_half_of_the_examples():
    images = random_images()
    flipped = compiled("flip")(keys(), images)
    mirrored = np.all(flipped == images[:, :, ::-1], axis=(1, 2, 3))
    kept = np.all(flipped == images, axis=(1, 2, 3))
    assert np.all(mirrored ^ kept)
    assert 16 < mirrored.sum() < 48


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 24)])
def test_crop_shifts_by_all_offsets_up_to_an_eighth_of_each_side_only(height, width):
    y, x = height // 8, width // 8
    image = jnp.asarray(np.random.default_rng(0).random((height, width, 3), np.float32))
    padded = np.pad(image, ((y, y), (x, x), (0, 0)))
    windows = {
        padded[i : i + height, j : j + width].tobytes()
        for i in range(2 * y + 1)
        for j in range(2 * x + 1)
    }
    crops = np.asarray(jax.jit(jax.vmap(augment._crop, in_axes=(0, None)))(keys(1000), image))
    assert {crop.tobytes() for crop in crops} == windows


def jittered_copies(image, num=500):
    return np.asarray(compiled_jitter()(keys(num), jnp.broadcast_to(image, (num, 4, 4, 3))))


def test_jitter_shifts_brightness_by_up_to_0_2():
    jittered = jittered_copies(jnp.full(3, 0.5))  # no contrast and no colour to change
    assert np.all(np.ptp(jittered, axis=(1, 2, 3)) < 1e-6)
    assert 0.3 - 1e-6 <= jittered.min() < 0.32
    assert 0.68 < jittered.max() <= 0.7 + 1e-6


def test_jitter_scales_contrast_by_up_to_20_percent():
    stripes = jnp.array([0.4, 0.6, 0.4, 0.6])[:, None, None]  # no colour to change
    factor = np.ptp(jittered_copies(stripes), axis=(1, 2, 3)) / 0.2
    assert 0.8 - 1e-4 <= factor.min() < 0.82
    assert 1.18 < factor.max() <= 1.2 + 1e-4


def test_jitter_scales_saturation_by_up_to_20_percent():
    jittered = jittered_copies(jnp.array([0.3, 0.5, 0.4]))[:, 0, 0]  # no contrast to change
    chroma = np.ptp(jittered, axis=1)  # 0.2 before; the largest channel keeps its value
    assert 0.8 - 1e-3 <= (chroma / 0.2).min() < 0.82
    assert 1.18 < (chroma / 0.2).max() <= 1.2 + 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_images_stay_finite_and_in_the_unit_range(name):
    extremes = random_images().at[:16].set(0.0).at[16:32].set(1.0)
    augmented = compiled(name)(keys(), extremes)
    assert augmented.shape == extremes.shape
    assert augmented.dtype == extremes.dtype
    assert np.all((augmented >= 0) & (augmented <= 1))


@pytest.mark.parametrize("shape", [(8, 8, 1), (5, 9, 2), (1, 1, 4), (9, 5, 3)])
@pytest.mark.parametrize("name", NAMES)
def test_images_of_any_shape_are_augmented(name, shape):
    images = jnp.asarray(np.random.default_rng(0).random((NUM, *shape), np.float32))
    augmented = compiled(name)(keys(), images)
    assert augmented.shape == images.shape
    assert np.all((augmented >= 0) & (augmented <= 1))
    assert name == "none" or shape[:2] == (1, 1) or not np.array_equal(augmented, images)


def test_grayscale_images_are_augmented_as_their_rgb_copies():
    grayscale = random_images()[..., :1]
    of_grayscale = compiled("flip_crop_jitter")(keys(), grayscale)
    of_rgb = compiled("flip_crop_jitter")(keys(), jnp.broadcast_to(grayscale, (NUM, 8, 8, 3)))
    # Without saturation, the jitter changes brightness and contrast only.
    np.testing.assert_allclose(jnp.broadcast_to(of_grayscale, of_rgb.shape), of_rgb, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_augmentation_of_an_example_depends_on_its_key_only(name):
    images, augment_fn = random_images(), compiled(name)
    whole = augment_fn(keys(), images)
    order = np.random.default_rng(1).permutation(NUM)
    np.testing.assert_array_equal(augment_fn(keys()[order], images[order]), whole[order])
    others = random_images(seed=1).at[:32].set(images[:32])
    other_keys = jnp.concatenate([keys()[:32], keys(seed=1)[32:]])
    np.testing.assert_array_equal(augment_fn(other_keys, others)[:32], whole[:32])


def test_equal_examples_of_one_batch_are_augmented_differently():
    same = jnp.broadcast_to(random_images()[0], (NUM, 8, 8, 3))
    augmented = np.asarray(compiled("flip_crop_jitter")(keys(), same))
    assert len(np.unique(augmented.reshape(NUM, -1), axis=0)) == NUM


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"'mixup'.*none, flip, flip_crop, flip_crop_jitter"):
        make_augment("mixup")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("cifar10", "flip"),
        ("imagenette/160px-v2:1.0.0", "flip"),
        ("cifar100:3.0.2", "flip"),
        ("digits", "none"),
        ("mnist", "none"),
        ("svhn_cropped", "none"),
        ("folder:cifar10", "none"),
        ("npz:/data/cifar10.npz", "none"),
    ],
)
def test_images_are_mirrored_by_default_where_that_is_known_to_keep_their_class(source, name):
    assert default_augmentation(source) == name
