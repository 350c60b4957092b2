import importlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")


@pytest.fixture
def conv_rates(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    yield importlib.import_module("conv_rates")
    for name in ("common", "torch_models", "vs_pytorch", "conv_rates"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["net", "smallnet", "wrn_7_2"])
def test_the_layers_in_pytorch_have_the_outputs_of_those_in_flax(name, conv_rates):
    layers = conv_rates.layers_of(name)
    assert len(layers) > 1
    for layer in layers:
        images = np.random.default_rng(0).normal(size=(2, *layer.shape)).astype(np.float32)
        variables = layer.conv.init(jax.random.key(0), jnp.asarray(images))
        module = conv_rates.torch_layer(layer, variables["params"])
        with torch.no_grad():
            found = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
        expected = layer.conv.apply(variables, jnp.asarray(images))
        np.testing.assert_allclose(found.transpose(0, 2, 3, 1), expected, rtol=1e-4, atol=1e-4)
        rows = found.shape[2] * (2 if layer.conv.pooled else 1)
        places = conv_rates.flops_of(layer) / (2 * conv_rates.BATCH_SIZE)
        places /= layer.conv.size**2 * layer.shape[2] * layer.conv.features
        assert places == rows**2
