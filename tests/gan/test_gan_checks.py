"""Data sets and evaluators that a GAN cannot use are refused before anything starts."""

import numpy as np
import pytest
from flax import nnx

from jaxadv.configs import gan as gan_config
from jaxadv.core.types import HostBatch, UserError
from jaxadv.data import Dataset
from jaxadv.gan import train


class NoDense(nnx.Module):
    def __init__(self, num_classes, *, rngs):
        self.linear = nnx.Linear(1, num_classes, rngs=rngs)

    def __call__(self, images):
        return self.linear(images.mean((1, 2)))


class Random(NoDense):
    stochastic = True


@pytest.mark.parametrize(
    ("shape", "num_classes", "model", "message"),
    [
        ((28, 28, 1), 4, "net", "have 28 x 28: resize them with config.data.size=32"),
        ((32, 24, 1), 4, "net", "have 32 x 24: resize them with config.data.size=32"),
        ((64, 64, 3), 4, "net", "have 64 x 64: set config.generator.num_blocks=4"),
        ((32, 32, 1), 200, "net", "num_samples is 1000: use at least 1600"),
        ((32, 32, 1), 4, f"{__name__}:NoDense", "has no flax.linen.Dense layer"),
        ((32, 32, 1), 4, f"{__name__}:Random", "the classifier is stochastic"),
        ((32, 32, 1), 4, "nett", "Unknown model 'nett'"),
    ],
)
def test_what_does_not_fit_the_data_set_is_named(
    tmp_path, monkeypatch, shape, num_classes, model, message
):
    batch = HostBatch(np.zeros((4, *shape), np.uint8), np.zeros(4, np.int32))
    names = tuple(map(str, range(num_classes)))
    monkeypatch.setattr(
        train, "load_dataset", lambda _: Dataset("mine", names, batch, batch, batch)
    )
    config = gan_config.get_config("digits")
    config.evaluator.classifier.model.name = model
    with pytest.raises(UserError, match=message) as raised:
        train.run(config, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
