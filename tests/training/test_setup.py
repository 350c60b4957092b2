"""The static configuration of a training: every key of a config reaches its field."""

import jax
import jax.numpy as jnp
import pytest

from jaxadv.configs import default
from jaxadv.training.losses import ikl, mart, mixed_cross_entropy, trades
from jaxadv.training.optimizer import moving_average, stochastic_average
from jaxadv.training.setup import make_training_setup

CHANGES = {
    "seed": 5,
    "data.synthetic.share": 0.25,
    "data.synthetic.label_smoothing": 0.3,
    "train.batch_size": 64,
    "train.num_epochs": 4,
    "train.label_smoothing": 0.1,
    "train.cutmix": 0.4,
    "train.awp_gamma": 0.01,
    "train.gradient_alignment": 0.2,
    "train.precision": "float32",
    "attack.fraction": 0.75,
    "optimizer.schedule": "linear",
    "optimizer.learning_rate": 0.5,
}


def make(**changes):
    config = default.get_config()
    config.update_from_flattened_dict({**CHANGES, **changes})
    return make_training_setup(config, num_classes=7, steps_per_epoch=10)


def test_every_key_reaches_its_field():
    setup, num_devices = make(), jax.device_count()
    assert setup.num_classes == 7
    assert setup.num_attacked == 48 // num_devices
    assert setup.num_synthetic == 16 // num_devices
    assert (setup.label_smoothing, setup.synthetic_smoothing) == (0.1, 0.3)
    assert (setup.cutmix, setup.awp_gamma, setup.gradient_alignment) == (0.4, 0.01, 0.2)
    assert (setup.precision, setup.seed) == ("float32", 5)
    assert float(setup.schedule(20)) == pytest.approx(0.25)  # half of 4 epochs of 10 steps
    params = {"kernel": jnp.ones((2, 2))}
    updates, _ = setup.optimizer.update(params, setup.optimizer.init(params), params)
    assert float(updates["kernel"].max()) == pytest.approx(-0.5, rel=0.02)  # AdamW's first step


@pytest.mark.parametrize(
    ("changes", "loss_fn", "keywords"),
    [
        ({}, mixed_cross_entropy, {}),
        ({"train.loss": "trades", "train.trades_beta": 2.0}, trades, {"beta": 2.0}),
        ({"train.loss": "mart", "train.mart_weight": 3.0}, mart, {"weight": 3.0}),
        (
            {"train.loss": "ikl", "train.ikl_alpha": 4.0, "train.ikl_beta": 9.0},
            ikl,
            {"alpha": 4.0, "beta": 9.0},
        ),
    ],
)
def test_the_loss_has_its_weights(changes, loss_fn, keywords):
    loss = make(**changes).loss
    assert getattr(loss.loss_fn, "func", loss.loss_fn) is loss_fn
    assert getattr(loss.loss_fn, "keywords", {}) == keywords
    assert loss.needs_clean == (loss_fn is not mixed_cross_entropy)


@pytest.mark.parametrize(
    ("changes", "average", "keywords"),
    [
        ({"train.ema_decay": 0.9}, moving_average, {"decay": 0.9}),
        ({"train.swa_start": 2.5}, stochastic_average, {"first_step": 25}),
    ],
)
def test_the_average_has_its_options(changes, average, keywords):
    found = make(**changes).average
    assert (found.func, found.keywords) == (average, keywords)
    assert make().average is None
