"""Mistakes in images, labels and models are one line that says what to write."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_cnn import IMAGES, LABELS, VARIABLES, Linen

from jaxadv.adapters.checks import check_classifier, check_examples
from jaxadv.adapters.classifier import Classifier
from jaxadv.adapters.wrap import wrap
from jaxadv.attacks import BlackBox
from jaxadv.core.types import HostBatch, UserError

PIXELS, CLASSES = np.asarray(IMAGES), np.asarray(LABELS)
EXAMPLES = HostBatch(PIXELS, CLASSES)
LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(8, 5)), jnp.float32)


def refused(message):
    return pytest.raises(UserError, match=re.escape(message))


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray, np.ndarray.tolist])
def test_examples_become_numpy_arrays_of_fixed_types(convert):
    images, labels = check_examples(convert(PIXELS), convert(CLASSES))
    assert (type(images), images.dtype, labels.dtype) == (np.ndarray, np.float32, np.int32)
    np.testing.assert_array_equal(images, PIXELS)
    np.testing.assert_array_equal(labels, CLASSES)


def test_bytes_stay_bytes():
    images, _ = check_examples((PIXELS * 255).astype(np.uint8), CLASSES.astype(np.uint8))
    assert images.dtype == np.uint8


BAD_IMAGES = {
    "no channels": (PIXELS[..., 0], "without an axis of channels: pass images[..., None]"),
    "flat": (PIXELS.reshape(8, -1), "(8, 108): use (n, height, width, channels)"),
    "none": (PIXELS[:0], "the images have shape (0, 6, 6, 3): pass at least one"),
    "0 to 255": (PIXELS * 255, "the images are float32 with values from"),
    "nan": (PIXELS * np.nan, "8 of 8 images contain NaN, the first is number 0: remove"),
    "integers": ((PIXELS * 255).astype(int), "the images are int64: use uint8 from 0 to 255"),
    "objects": (PIXELS.astype(object), "the images are a numpy.ndarray of object: pass one array"),
    "ragged": ([PIXELS, PIXELS[0]], "the images are a list: pass one array of numbers"),
    "nothing": (None, "the images are a NoneType of object: pass one array of numbers"),
}
BAD_LABELS = {
    "one-hot": (
        np.eye(5)[CLASSES],
        "labels have shape (8, 5), like one-hot vectors: pass labels.a",
    ),
    "column": (CLASSES[:, None], "labels have shape (8, 1): pass labels[:, 0]"),
    "floats": (CLASSES / 1, "labels are float32: they must be integers; pass labels.astype(int)"),
    "too few": (CLASSES[1:], "labels have shape (7,): they must have shape (8,), one class per"),
    "negative": (CLASSES - 1, "they must be 0 or more"),
    "text": (list("abcdefgh"), "the labels are a list of <U1: pass one array of numbers"),
}


@pytest.mark.parametrize(("images", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_images_are_refused(images, message):
    with refused(message) as error:
        check_examples(images, CLASSES)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("labels", "message"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_bad_labels_are_refused(labels, message):
    with refused(message):
        check_examples(PIXELS, labels)


def test_narrow_images_are_not_taken_for_channels_first():
    check_examples(np.zeros((2, 3, 5, 3)), np.zeros(2, int))
    check_examples(np.zeros((2, 3, 4, 2)), np.zeros(2, int))


def test_tensors_of_torch_are_refused():
    torch = pytest.importorskip("torch")
    with refused("a torch.Tensor of shape (8, 3, 6, 6): pass images.permute(0, 2, 3, 1).numpy()"):
        check_examples(torch.zeros(8, 3, 6, 6), CLASSES)
    with refused("the labels are a torch.Tensor of shape (8,): pass labels.numpy()"):
        check_examples(PIXELS, torch.zeros(8))


def test_a_valid_model_has_a_number_of_classes_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_classifier(wrap(Linen(), VARIABLES), EXAMPLES) == (5, [])
        one = HostBatch((PIXELS[:1] * 255).astype(np.uint8), CLASSES[:1])
        assert check_classifier(wrap(Linen(), VARIABLES), one) == (5, [])


BAD_LOGITS = {
    "tuple": (lambda x: (LOGITS, x), "logits_fn returns 2 values: return only the logits, as in"),
    "image": (lambda x: x, "logits have shape (8, 6, 6, 3): they must have shape (8, classes)"),
    "one row": (lambda x: LOGITS[:1], "logits have shape (1, 5)"),
    "vector": (lambda x: LOGITS[:, 0], "logits have shape (8,)"),
    "binary": (lambda x: LOGITS[:, :1], "return jnp.stack([0 * s, s], -1)"),
    "classes": (lambda x: LOGITS.argmax(-1), "logits have shape (8,)"),
    "integers": (lambda x: LOGITS.astype(int), "logits are int32: they must be floats"),
    "too few": (lambda x: LOGITS[:, :2], "labels lie in [0, 4]: they must lie in [0, 1]"),
    "NumPy": (lambda x: np.asarray(x).sum((1, 2)), "wrap it in a BlackBox"),
}


@pytest.mark.parametrize(("function", "message"), BAD_LOGITS.values(), ids=BAD_LOGITS)
def test_bad_logits_are_refused(function, message):
    for classifier in (wrap(function), Classifier(lambda key, images: function(images))):
        with refused(message) as error:
            check_classifier(classifier, EXAMPLES)
        assert "\n" not in str(error.value)


class Output:
    logits = LOGITS


OBJECTS = {
    "object": (
        lambda x: Output(),
        "returns a test_adapter_checks.Output: return only the logits, as in jax",
    ),
    "attribute": (lambda x: Output(), "jaxadv.wrap(lambda images: model(images).logits)"),
    "entry": (lambda x: {"logits": LOGITS}, "jaxadv.wrap(lambda images: model(images)['logits'])"),
}


@pytest.mark.parametrize(("function", "message"), OBJECTS.values(), ids=OBJECTS)
def test_objects_in_place_of_logits_are_refused(function, message):
    with refused(message):
        check_classifier(wrap(function), EXAMPLES)


def noisy(key, images):
    return LOGITS + 0.1 * jax.random.normal(key, LOGITS.shape)


def noisy_outside_of_jax(images):
    return LOGITS + np.random.default_rng().normal(size=LOGITS.shape).astype(np.float32)


def noisy_by_a_number(images):
    return LOGITS * (1 + np.random.default_rng().uniform())


@pytest.mark.parametrize("function", [noisy, noisy_outside_of_jax, noisy_by_a_number])
def test_undeclared_noise_is_refused(function):
    with refused(f"{function.__name__} returns other logits when it is called again: switch drop"):
        check_classifier(wrap(function), EXAMPLES)


def test_declared_noise_must_come_from_the_key():
    assert check_classifier(wrap(noisy, stochastic=True), EXAMPLES) == (5, [])
    for function in (noisy_outside_of_jax, noisy_by_a_number):
        with refused(f"the noise of {function.__name__} does not follow from its key"):
            check_classifier(wrap(function, stochastic=True), EXAMPLES)


def test_an_optional_key_is_passed_to_a_stochastic_function():
    def function(images, key=None):
        return LOGITS if key is None else noisy(key, images)

    assert check_classifier(wrap(function), EXAMPLES) == (5, [])
    assert check_classifier(wrap(function, stochastic=True), EXAMPLES) == (5, [])


def test_declared_noise_that_is_absent_is_a_warning():
    _, (warning,) = check_classifier(wrap(lambda images: LOGITS, stochastic=True), EXAMPLES)
    assert warning.startswith("model is declared stochastic, but two forward passes")


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_at_axis_1_are_named_if_the_model_fails(channels):
    images = np.zeros((8, channels, 6, 6), np.float32)

    def function(images):
        return images @ jnp.zeros((channels, 5))

    with refused("to have their channels at axis 1: pass images.transpose(0, 2, 3, 1)"):
        check_classifier(wrap(function), check_examples(images, CLASSES))
    flat = wrap(lambda images: images.reshape(8, -1)[:, :5])
    assert check_classifier(flat, check_examples(images, CLASSES)) == (5, [])


def test_rounding_is_no_noise():
    check_classifier(
        wrap(lambda key, images: LOGITS + 1e-6 * jax.random.normal(key, LOGITS.shape)), EXAMPLES
    )


def test_probabilities_in_place_of_logits_are_a_warning():
    _, (warning,) = check_classifier(wrap(lambda images: jax.nn.softmax(LOGITS)), EXAMPLES)
    assert warning.startswith("model returns probabilities, whose gradients vanish")


def test_black_boxes_return_probabilities():
    probabilities = np.asarray(jax.nn.softmax(LOGITS))
    assert check_classifier(wrap(BlackBox(lambda images: probabilities)), EXAMPLES) == (5, [])
    with refused("which are not probabilities: apply a softmax"):
        check_classifier(wrap(BlackBox(lambda images: np.asarray(LOGITS))), EXAMPLES)
    with refused("labels lie in [0, 4]: they must lie in [0, 1]"):
        check_classifier(wrap(BlackBox(lambda images: np.full((8, 2), 0.5))), EXAMPLES)


def test_failures_of_the_model_are_one_line():
    with refused("Linen fails on images of shape (8, 6, 6, 3): ") as error:
        check_classifier(wrap(Linen(), {"params": VARIABLES["params"]}), EXAMPLES)
    assert error.value.__cause__ is not None
