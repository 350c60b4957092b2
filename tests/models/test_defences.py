"""The defences, on every family of models."""

from functools import cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxadv.core.types import UserError
from jaxadv.models import make_model
from jaxadv.models.defences import (
    PNI,
    RSE,
    Dropout,
    GaussianNoise,
    InputNoise,
    LowRank,
    LowRankProjection,
    SpectralNorm,
    WeightNoise,
    is_stochastic,
    smoothing_sigma,
)
from jaxadv.models.layers import Conv

pytestmark = pytest.mark.slow  # compiles much

IMAGES = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3))
FAMILIES = ("net", "wrn_7_1", "vit_1_32")
NAMES = ("noise", "weight_noise", "dropout")
STRONG_RSE = RSE(sigma_init=0.5, sigma_inner=0.2)
RANDOM = [PNI(), STRONG_RSE, InputNoise(), Dropout()]


def rngs(seed):
    return {name: jax.random.key(seed) for name in NAMES}


def init(model, images=IMAGES):
    return jax.jit(model.init)(jax.random.key(0), images)


@cache
def initialised(name, defence):
    """A model with its variables; the dropout defence gets a rate above 0."""
    dropout = 0.3 if isinstance(defence, Dropout) else None
    model = make_model(name, 10, defence=defence, dropout=dropout)
    return model, init(model)


def noises_of(model, variables, **options):
    """Return (sigma, measured standard deviation) of each `GaussianNoise`, by its path."""
    added = {}

    def record(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if isinstance(context.module, GaussianNoise):
            name = "/".join(context.module.path)
            added[name] = (context.module.sigma, float((output - args[0]).std()))
        return output

    with nn.intercept_methods(record):
        model.apply(variables, IMAGES, rngs=rngs(0), **options)
    return added


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("defence", RANDOM)
def test_forward_passes_of_a_random_defence_differ(name, defence):
    model, variables = initialised(name, defence)
    apply = jax.jit(lambda seed: model.apply(variables, IMAGES, rngs=rngs(seed)))
    assert is_stochastic(defence)
    assert np.abs(apply(0) - apply(1)).max() > 1e-3
    np.testing.assert_array_equal(apply(0), apply(0))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("defence", RANDOM)
def test_a_random_defence_keeps_the_parameters_of_the_plain_model(name, defence):
    plain = initialised(name, None)[1]["params"]
    defended = dict(initialised(name, defence)[1]["params"])
    extra = {name: defended.pop(name) for name in set(defended) - set(plain)}
    assert all("WeightNoise" in name for name in extra)
    # In inner blocks too; additional parameters belong to the noise.
    for path, leaf in jax.tree_util.tree_leaves_with_path(plain):
        value = defended
        for step in path:
            value = value[step.key]
        np.testing.assert_array_equal(value, leaf)


@pytest.mark.parametrize("layer", [Conv(4, size=3), nn.Dense(4)])
def test_pni_noise_is_proportional_to_alpha(layer):
    noisy = WeightNoise(layer, frozen_sigma=False)
    variables = init(noisy)
    (name,) = set(variables["params"]) - {"alpha"}
    alpha = variables["params"]["alpha"]
    assert alpha.shape == ()
    assert alpha == 0.25

    base, scaled = (
        noisy.apply({"params": variables["params"] | {"alpha": a}}, IMAGES, rngs=rngs(0))
        for a in (jnp.zeros_like(alpha), 2 * alpha)
    )
    once = noisy.apply(variables, IMAGES, rngs=rngs(0))
    np.testing.assert_allclose(base, layer.apply({"params": variables["params"][name]}, IMAGES))
    np.testing.assert_allclose(scaled - base, 2 * (once - base), rtol=1e-3, atol=1e-5)


def test_pni_noise_has_the_deviation_of_the_whole_kernel():
    layer = nn.Dense(200, use_bias=False)
    noisy = WeightNoise(layer, frozen_sigma=False)
    identity = jnp.eye(100)
    variables = init(noisy, identity)
    kernel = 3 * variables["params"]["layer"]["kernel"] + 1
    variables = {"params": {"alpha": jnp.array(0.5), "layer": {"kernel": kernel}}}
    noise = noisy.apply(variables, identity, rngs=rngs(0)) - kernel
    assert noise.std() == pytest.approx(0.5 * float(kernel.std()), rel=0.02)
    # One noise sample for a forward pass: both rows of a batch use the same kernel.
    twice = noisy.apply(variables, jnp.ones((2, 100)), rngs=rngs(0))
    np.testing.assert_array_equal(twice[0], twice[1])


def test_no_gradient_flows_through_the_standard_deviation():
    noisy = WeightNoise(nn.Dense(3, use_bias=False), frozen_sigma=False)
    images = jnp.eye(4)
    variables = init(noisy, images)
    gradient = jax.grad(lambda v: noisy.apply(v, images, rngs=rngs(0)).sum())(variables)
    np.testing.assert_array_equal(gradient["params"]["layer"]["kernel"], 1)


def test_the_frozen_standard_deviation_is_the_initial_one():
    noisy = WeightNoise(nn.Dense(50, use_bias=False), frozen_sigma=True)
    images = jnp.eye(40)
    variables = init(noisy, images)
    kernel = variables["params"]["layer"]["kernel"]
    assert variables["frozen"]["sigma"] == pytest.approx(float(kernel.std(ddof=1)), rel=1e-5)
    grown = {**variables["params"], "layer": {"kernel": 10 * kernel}}
    first = noisy.apply(variables, images, rngs=rngs(0)) - kernel
    later = noisy.apply({**variables, "params": grown}, images, rngs=rngs(0)) - 10 * kernel
    np.testing.assert_allclose(first, later, atol=1e-5)
    assert "decayed_alpha" in variables["params"]


@pytest.mark.parametrize("name", FAMILIES)
def test_rse_adds_noise_before_every_convolution(name):
    model, variables = initialised(name, STRONG_RSE)
    num_convolutions = str(jax.tree_util.tree_structure(variables["params"])).count("Conv_")
    added = noises_of(model, variables)
    assert len(added) == num_convolutions
    assert sorted(sigma for sigma, _ in added.values()) == [0.2] * (len(added) - 1) + [0.5]
    assert added["GaussianNoise_0"][0] == 0.5
    for sigma, measured in added.values():
        assert measured == pytest.approx(sigma, rel=0.2)
    assert added == noises_of(model, variables)


def test_rse_adds_noise_in_training_too():
    model, variables = initialised("net", STRONG_RSE)
    assert len(noises_of(model, variables, train=True)) == 2


@pytest.mark.parametrize(("before_norm", "follower"), [(True, "BatchNorm"), (False, "Conv")])
def test_rse_adds_noise_before_the_norm_or_before_the_convolution(before_norm, follower):
    model = make_model("wrn_7_1", 10, defence=RSE(before_norm=before_norm))
    variables = init(model)
    order = []

    def record(call, args, kwargs, context):
        order.append(type(context.module).__name__)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        model.apply(variables, IMAGES, rngs=rngs(0))
    followers = [after for name, after in pairwise(order) if name == "GaussianNoise"]
    assert followers[0] == "Conv"
    # Three blocks of two layers each; convolutions of shortcuts have no norm.
    assert followers.count(follower) >= 6
    assert set(followers[1:]) == {follower, "Conv"}


@pytest.mark.parametrize(("train", "in_training"), [(False, True), (True, False), (False, False)])
def test_input_noise_in_training_and_at_test_time(train, in_training):
    model = make_model("net", 10, defence=InputNoise(sigma=0.3, train=in_training))
    added = noises_of(model, init(model), train=train)
    assert len(added) == (in_training or not train)
    for sigma, measured in added.values():
        assert sigma == 0.3 == pytest.approx(measured, rel=0.1)


@pytest.fixture(scope="module")
def normalised():
    """A net with large weights after many steps of power iteration."""
    model, variables = initialised("net", SpectralNorm())
    variables = {**variables, "params": jax.tree.map(lambda p: 3 * p, variables["params"])}

    @jax.jit
    def step(variables):
        _, changed = model.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
        return {**variables, **changed}

    for _ in range(60):
        variables = step(variables)
    return model, variables


def test_spectral_norm_divides_by_the_true_singular_value(normalised):
    _, variables = normalised
    sigmas = {
        path[-1].key.removesuffix("/kernel/sigma"): float(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["batch_stats"])
        if path[-1].key.endswith("sigma")
    }
    assert len(sigmas) == 5
    for name, sigma in sigmas.items():
        kernel = np.asarray(variables["params"][name]["kernel"])
        true = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0]
        assert sigma == pytest.approx(true, rel=1e-3), name
        assert true > 2


def test_spectral_norm_bounds_the_jacobian_of_the_model(normalised):
    """The bound is the product of the operator norms of the layers."""
    model, variables = normalised
    bound, side = 1.0, 16
    for name, params in variables["params"].items():
        kernel = np.asarray(params["kernel"])
        true = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0]
        if name.startswith("Conv"):
            # The largest singular value of the circular convolution, over all frequencies. The
            # VALID convolution is a part of it.
            frequencies = np.fft.fft2(kernel, (side, side), axes=(0, 1))
            norm = np.linalg.svd(frequencies, compute_uv=False).max() / true
            assert 1 < norm <= 5
            bound *= norm
            side = (side - 4) // 2
    slope = jax.jit(jax.jacrev(lambda image: model.apply(variables, image[None])[0]))(IMAGES[0])
    slope = np.linalg.svd(np.asarray(slope).reshape(10, -1), compute_uv=False)[0]
    assert 0 < slope <= bound


@pytest.mark.parametrize("learned", [False, True])
def test_the_projection_has_its_rank(learned):
    module = LowRankProjection(rank=5, learned=learned)
    images = jax.random.uniform(jax.random.key(0), (40, 4, 4, 3))
    variables = init(module, images)
    if not learned:
        assert "params" not in variables
        orthogonal = np.linalg.qr(np.random.default_rng(0).normal(size=(48, 5)))[0].T
        variables = {"pca": {"mean": jnp.full(48, 0.5), "components": jnp.asarray(orthogonal)}}
        variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), variables)
    projected = module.apply(variables, images)
    flat = np.asarray(projected).reshape(40, -1) - (0 if learned else 0.5)
    assert np.linalg.matrix_rank(flat, tol=1e-4) == 5
    np.testing.assert_allclose(module.apply(variables, projected), projected, atol=1e-5)


def test_smoothing_sigma_of_each_defence():
    assert smoothing_sigma(InputNoise(sigma=0.25)) == 0.25
    assert smoothing_sigma(RSE(sigma_init=0.3)) == 0.3
    assert smoothing_sigma(PNI()) is smoothing_sigma(Dropout()) is smoothing_sigma(None) is None


@pytest.mark.parametrize(
    ("name", "defence", "words"),
    [
        ("net", RSE(sigma_inner=-1.0), ["-1", "0 or more"]),
        ("net", InputNoise(sigma=0.0), ["0", "above 0"]),
        ("net", LowRank(rank=0), ["rank is 0"]),
        ("net", Dropout(), ["net", "rate above 0"]),
        ("wrn_7_1", SpectralNorm(), ["wrn_7_1", "bignet"]),
        ("vit_1_32", SpectralNorm(), ["vit_1_32", "bignet"]),
    ],
)
def test_an_invalid_defence_is_named(name, defence, words):
    with pytest.raises(UserError) as error:
        make_model(name, 10, defence=defence)
    for word in words:
        assert word in str(error.value)


def test_more_components_than_pixels_are_refused():
    with pytest.raises(UserError, match="rank is 1000: the images have 768 numbers"):
        init(make_model("net", 10, defence=LowRank(rank=1000)))
