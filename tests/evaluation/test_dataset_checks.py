"""What depends on the data set is refused in one line once it is loaded."""

import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict
from tiny_config import tiny_config

from jaxadv.core.types import HostBatch, UserError
from jaxadv.data import Dataset
from jaxadv.evaluation.dataset_checks import check_with_dataset


class OwnNoise(nn.Module):
    num_classes: int
    stochastic = True

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(self.num_classes)(images.mean((1, 2)))


def dataset(shape, num_classes):
    batch = HostBatch(np.zeros((2, *shape), np.uint8), np.zeros(2, np.int32))
    return Dataset("mine", tuple(map(str, range(num_classes))), batch, batch, batch)


def check(shape, num_classes, attacks=None, **changes):
    config = tiny_config(**{"model.dropout": None, **changes})
    config.evaluation.attacks = ConfigDict(attacks or {})
    check_with_dataset(config, config.evaluation, dataset(shape, num_classes))


APGD = {"attack": "apgd", "eps": (0.1,), "num_targets": 9}
OFF = {"attack": "fgsm", "eps": (0.1,), "noise": "off"}
OWN_NOISE = {"model.name": f"{__name__}:OwnNoise"}
LOW_RANK = {"model.defence.name": "low_rank", "model.defence.low_rank.rank": 800}
CERTIFICATE = {"evaluation.certification.num_examples": 1}


@pytest.mark.parametrize(
    ("shape", "num_classes", "attacks", "changes"),
    [
        ((28, 28, 1), 10, {"apgd": APGD, "off": OFF}, {}),
        ((64, 64, 3), 100, {"apgd": APGD}, LOW_RANK),
        ((28, 28, 1), 2, {"fgsm": {**OFF, "noise": "fixed"}}, OWN_NOISE),
    ],
)
def test_what_fits_is_accepted(shape, num_classes, attacks, changes):
    check(shape, num_classes, attacks, **changes)


@pytest.mark.parametrize(
    ("shape", "num_classes", "attacks", "changes", "message"),
    [
        ((28, 28, 1), 9, {"apgd": APGD}, {}, "attacks.apgd.num_targets is 9: it must be at most 8"),
        ((28, 28, 1), 2, {"off": OFF}, OWN_NOISE, "off.noise is 'off': .* use on, fixed, training"),
        ((28, 28, 1), 2, {}, LOW_RANK, "low_rank.rank is 800: the images have 784 numbers"),
        ((8, 8, 3), 2, {}, {"model.name": "bignet"}, "16 x 16 pixels or more, not 8 x 8: use larg"),
        ((28, 28, 1), 2, {}, CERTIFICATE, "the model has no Gaussian noise on its images"),
    ],
)
def test_what_does_not_fit_is_named(shape, num_classes, attacks, changes, message):
    with pytest.raises(UserError, match=message) as raised:
        check(shape, num_classes, attacks, **changes)
    assert "\n" not in str(raised.value)
