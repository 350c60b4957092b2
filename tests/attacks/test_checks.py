import re
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.attacks import BlackBox, pgd
from jaxadv.attacks.checks import check_arguments, check_at_least_one, prepare

IMAGES = jnp.full((2, 4, 4, 3), 0.5)
LABELS = jnp.array([0, 4])


def logits_fn(key, images):
    return images.reshape(len(images), -1)[:, :5]


def check(images=IMAGES, labels=LABELS, targets=None, logits_fn=logits_fn, ids=None, **arguments):
    model, _ = prepare(logits_fn, jax.random.key(0), images, labels, targets, ids)
    check_arguments(arguments, model.num_classes)


BAD = {
    "norm": ({"norm": "l3"}, "norm is 'l3': it must be one of linf, l2"),
    "loss": ({"loss": "hinge"}, "loss is 'hinge': it must be one of cross_entropy, margin"),
    "no batch": ({"images": IMAGES[0]}, "(4, 4, 3)"),
    "bytes": ({"images": IMAGES.astype(jnp.uint8)}, "uint8"),
    "0 to 255": ({"images": IMAGES * 255}, "[127.5, 127.5]"),
    "below 0": ({"images": IMAGES - 1}, "[-0.5, -0.5]"),
    "nan image": ({"images": IMAGES * jnp.nan}, "[nan, nan]"),
    "logits": ({"logits_fn": lambda key, x: x.sum((1, 2, 3))}, "(2,)"),
    "logits batch": ({"logits_fn": lambda key, x: jnp.zeros((1, 5))}, "(1, 5)"),
    "too few labels": ({"labels": LABELS[:1]}, "labels have shape (1,)"),
    "one-hot labels": ({"labels": jax.nn.one_hot(LABELS, 5)}, "pass labels.argmax(-1)"),
    "float labels": ({"labels": LABELS / 1}, "labels are float32"),
    "label too large": ({"labels": LABELS + 1}, "labels lie in [1, 5]: they must lie in [0, 4]"),
    "negative label": ({"labels": LABELS - 1}, "labels lie in [-1, 3]"),
    "target too large": ({"targets": LABELS + 3}, "targets lie in [3, 7]"),
    "black box": ({"logits_fn": BlackBox(len)}, "logits_fn is a BlackBox, which has no gradients"),
    "not of JAX": ({"logits_fn": lambda key, x: np.asarray(x)}, "wrap it in a BlackBox"),
    "equal ids": ({"ids": jnp.array([3, 3])}, "example_ids contain duplicates"),
    "float ids": ({"ids": jnp.array([1.0, 2.0])}, "example_ids are float32"),
    "too few ids": ({"ids": jnp.array([1])}, "of shape (1,): they must be integers of shape (2,)"),
    "too many targets": ({"targets": jnp.zeros(3, int)}, "targets have shape (3,)"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_invalid_inputs_raise_an_error_with_their_value(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check(**changes)


@pytest.mark.parametrize("number", [0, 2.0, None, "3", True, np.array([2]), 2**31])
def test_counts_are_positive_int32_integers(number):
    with pytest.raises(ValueError, match=r"number is .*: it must be an integer from 1 to 21474"):
        check_at_least_one(number=number)
    check_at_least_one(number=2)
    check_at_least_one(number=jnp.int32(7))
    check_at_least_one(number=2**31 - 1)


BAD_ATTACKS = {
    "negative eps": ({"eps": -0.1}, "eps is -0.1"),
    "nan eps": ({"eps": float("nan")}, "eps is nan"),
    "eps of another batch": (
        {"eps": jnp.array([0.5, 0.25, 0.1])},
        "eps has shape (3,): it must be a number, or have shape (2,), one for each image, or "
        "have 4 axes and broadcast to (2, 4, 4, 3)",
    ),
    "one negative eps": ({"eps": jnp.array([0.5, -0.25])}, "eps contains -0.25: each value must"),
    "eps per value in L2": (
        {"eps": jnp.ones((1, 4, 4, 1)), "norm": "l2"},
        "eps has shape (1, 4, 4, 1): it must be a",
    ),
    "many num_steps": ({"num_steps": jnp.array([5, 6])}, "num_steps is Array([5, 6]"),
    "step_size": ({"step_size": -0.5}, "step_size is -0.5"),
    "num_steps": ({"num_steps": -2}, "num_steps is -2"),
    "num_restarts": ({"num_restarts": 0}, "num_restarts is 0"),
    "num_noise_samples": ({"num_noise_samples": -1}, "num_noise_samples is -1"),
    "negative num_odi_steps": ({"num_odi_steps": -1}, "num_odi_steps is -1"),
    "ODI in L1": ({"num_odi_steps": 2, "norm": "l1"}, "num_odi_steps is 2, but norm is 'l1'"),
    "ODI from the clean image": (
        {"num_odi_steps": 2, "random_start": False},
        "num_odi_steps is 2, but these steps begin at a random start",
    ),
    "same restarts": ({"num_restarts": 3, "random_start": False}, "num_restarts is 3"),
}


def attack(images=IMAGES, labels=LABELS, logits_fn=logits_fn, **changes):
    arguments = {"eps": 0.1, "step_size": 0.1, "num_steps": 2} | changes
    return pgd(jax.random.key(0), logits_fn, images, labels, **arguments)


@pytest.mark.parametrize(("changes", "message"), BAD_ATTACKS.values(), ids=BAD_ATTACKS)
def test_invalid_arguments_raise_an_error_with_their_value(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        attack(**changes)


@pytest.mark.parametrize("changes", [{}, {"targets": LABELS[::-1]}, {"norm": "l2"}])
def test_valid_inputs_are_accepted(changes):
    check(**changes)


def test_empty_batches_are_accepted():
    check(images=IMAGES[:0], labels=LABELS[:0], logits_fn=lambda key, x: jnp.zeros((len(x), 5)))


def test_traced_values_are_not_checked():
    jax.eval_shape(check, IMAGES * 255, LABELS + 1)
    jax.eval_shape(lambda eps: attack(eps=eps), -1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"images": IMAGES * 255}, "[127.5, 127.5]"),
        ({"labels": LABELS + 1}, "[1, 5]"),
        ({"eps": -0.1}, "eps is -0.1"),
    ],
)
def test_concrete_values_inside_jit_are_checked(changes, message):
    def attack_scaled(scale):
        return attack(logits_fn=lambda key, images: scale * logits_fn(key, images), **changes)

    with pytest.raises(ValueError, match=re.escape(message)) if message else nullcontext():
        jax.eval_shape(attack_scaled, 2.0)
