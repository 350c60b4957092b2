from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxadv.gan.networks import Discriminator, Generator

LATENTS = jax.random.normal(jax.random.key(0), (6, 8))
LABELS = jnp.array([0, 1, 2, 0, 1, 2])


@partial(jax.jit, static_argnames=("module", "train"))
def apply(module, variables, inputs, labels, train=False):
    """Return the output without the updated statistics."""
    if not train:
        return module.apply(variables, inputs, labels)
    return module.apply(variables, inputs, labels, train=True, mutable=["batch_stats"])[0]


@pytest.fixture(scope="module")
def generator():
    module = Generator(3, features=2, num_blocks=2)
    return module, jax.jit(module.init)(jax.random.key(1), LATENTS, LABELS)


@pytest.fixture(scope="module")
def discriminator():
    module = Discriminator(3, features=4, num_blocks=2)
    images = jnp.zeros((6, 32, 32, 3))
    return module, jax.jit(module.init)(jax.random.key(1), images, LABELS)


def test_images_have_the_requested_side_and_range(generator):
    module, variables = generator
    images = apply(module, variables, LATENTS, LABELS)
    assert images.shape == (6, 16, 16, 3)
    assert images.min() >= 0
    assert images.max() <= 1


def test_the_class_acts_only_through_the_norms(generator):
    module, variables = generator
    others = (LABELS + 1) % 3
    images = apply(module, variables, LATENTS, LABELS)
    np.testing.assert_array_equal(apply(module, variables, LATENTS, others), images)

    def shift(path, leaf):
        conditional = "ConditionalNorm" in jax.tree_util.keystr(path)
        return leaf + jnp.arange(3.0)[:, None] if conditional else leaf

    params = jax.tree_util.tree_map_with_path(shift, variables["params"])
    changed = {**variables, "params": params}
    of_class, of_other = (apply(module, changed, LATENTS, labels) for labels in (LABELS, others))
    assert (np.abs(of_class - of_other).max(axis=(1, 2, 3)) > 1e-3).all()


def test_images_depend_on_their_batch_only_in_training(generator):
    module, variables = generator
    whole = apply(module, variables, LATENTS, LABELS)
    half = apply(module, variables, LATENTS[:3], LABELS[:3])
    np.testing.assert_allclose(half, whole[:3], atol=1e-6)
    whole = apply(module, variables, LATENTS, LABELS, train=True)
    half = apply(module, variables, LATENTS[:3], LABELS[:3], train=True)
    assert np.abs(half - whole[:3]).max() > 1e-3


def test_kernels_are_divided_by_their_largest_singular_value(discriminator):
    module, variables = discriminator
    images = jax.random.uniform(jax.random.key(2), (6, 32, 32, 3))
    update = jax.jit(lambda v: module.apply(v, images, LABELS, train=True, mutable=["batch_stats"]))
    for _ in range(60):
        _, changed = update(variables)
        variables = {**variables, **changed}
    params = flatten_dict(variables["params"])
    sigmas = {
        path: float(sigma)
        for path, sigma in flatten_dict(variables["batch_stats"]).items()
        if path[-1].endswith("/sigma")
    }
    # Two blocks of three convolutions, the dense layer and the embedding.
    assert len(sigmas) == sum(leaf.ndim > 1 for leaf in params.values()) == 8
    for (*scope, _, name), sigma in sigmas.items():
        layer, leaf, _ = name.split("/")
        kernel = np.asarray(params[(*scope, layer, leaf)])
        largest = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0]
        np.testing.assert_allclose(sigma, largest, rtol=0.02)
    larger = jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim > 1 else leaf, variables["params"])
    np.testing.assert_allclose(
        apply(module, {**variables, "params": larger}, images, LABELS),
        apply(module, variables, images, LABELS),
        rtol=1e-3,
    )


def test_the_class_acts_on_the_logit(discriminator):
    module, variables = discriminator
    images = jax.random.uniform(jax.random.key(2), (6, 32, 32, 3))
    one, other = (apply(module, variables, images, jnp.full(6, label)) for label in (0, 1))
    assert one.shape == (6,)
    assert np.abs(one - other).min() > 1e-6


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_half_precision_is_close_and_returns_float32(generator, discriminator, dtype):
    module, variables = generator
    images = apply(module, variables, LATENTS.astype(dtype), LABELS)
    assert images.dtype == jnp.float32
    np.testing.assert_allclose(images, apply(module, variables, LATENTS, LABELS), atol=0.1)
    module, variables = discriminator
    logits = apply(module, variables, jnp.full((6, 32, 32, 3), 0.3, dtype), LABELS)
    assert logits.dtype == jnp.float32
