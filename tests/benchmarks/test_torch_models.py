import jax
import numpy as np
import pytest

from jaxadv.models import make_model

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("name", ["net", "fastnet", "smallnet", "wrn_7_2", "vit_1_64"])
def test_the_models_in_pytorch_have_the_logits_of_those_in_flax(name):
    from benchmarks.torch_models import to_torch

    model, generator = make_model(name, 10), np.random.default_rng(0)
    images = generator.uniform(size=(4, 32, 32, 3)).astype(np.float32)
    variables = jax.tree.map(
        lambda value: value + generator.uniform(0, 0.1, value.shape).astype(np.float32),
        jax.jit(model.init)(jax.random.key(0), images),
    )
    with torch.no_grad():
        found = to_torch(model, variables)(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    expected = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)
