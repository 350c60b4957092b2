"""Models of every framework give their own logits, and attacks see their current weights."""

import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from small_cnn import (
    DENSE,
    IMAGES,
    KEY,
    LABELS,
    NUM_PARAMETERS,
    VARIABLES,
    Linen,
    Nnx,
    assert_logits,
    expected_logits,
)

from jaxadv.adapters.classifier import Classifier
from jaxadv.adapters.conversion import make_conversion
from jaxadv.adapters.wrap import wrap
from jaxadv.attacks import BlackBox, pgd
from jaxadv.core.types import UserError

NORMALISATION = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 1.0, 2.0)}


def normalised(images):
    return (images - np.array(NORMALISATION["mean"])) / np.array(NORMALISATION["std"])


def attack(classifier):
    options = {"eps": 0.2, "step_size": 0.05, "num_steps": 3}
    return np.asarray(pgd(KEY, classifier, IMAGES, LABELS, **options))


def refused(message):
    return pytest.raises(UserError, match=re.escape(message))


@pytest.fixture(
    params=["linen", "nnx", "equinox", "haiku", "keras", "function", "keyed function", "jitted"]
)
def model(request):
    """The arguments of `wrap`, and the number of parameters."""
    linen = partial(Linen().apply, VARIABLES, train=False)
    match request.param:
        case "linen":
            return (Linen(), VARIABLES), NUM_PARAMETERS
        case "nnx":
            return (request.getfixturevalue("nnx_model"),), NUM_PARAMETERS
        case "equinox":
            _, net, state = request.getfixturevalue("equinox_model")
            return (net, state), NUM_PARAMETERS
        case "haiku":
            net, params, state = request.getfixturevalue("haiku_model")
            return (net, (params, state)), NUM_PARAMETERS
        case "keras":
            # Keras counts the statistics of batch norm.
            return (request.getfixturevalue("keras_model"),), NUM_PARAMETERS + 8
        case "function":
            return (linen,), None
        case "keyed function":
            return (lambda key, images: linen(images),), None
        case _:
            return (jax.jit(linen),), None


def test_logits_are_those_of_the_network_in_evaluation_mode(model):
    arguments, num_parameters = model
    classifier = wrap(*arguments)
    assert_logits(classifier, IMAGES, expected_logits(IMAGES))
    assert classifier.num_parameters == num_parameters
    assert not classifier.stochastic


def test_a_deterministic_model_needs_no_key(model):
    classifier = wrap(*model[0])
    np.testing.assert_array_equal(classifier(None, IMAGES), classifier(KEY, IMAGES))


def test_images_are_normalised_before_the_model_sees_them(model):
    classifier = wrap(*model[0], **NORMALISATION)
    assert_logits(classifier, IMAGES, expected_logits(normalised(IMAGES)))


def test_pgd_runs_through_every_model(model):
    adversarial = attack(wrap(*model[0]))
    assert 0.1 < np.abs(adversarial - IMAGES).max() <= 0.2 + 1e-6
    np.testing.assert_allclose(adversarial, attack(wrap(Linen(), VARIABLES)), atol=1e-5)


def test_images_are_scaled_then_normalised_then_transposed():
    seen = wrap(lambda images: images, bounds=(-1, 3), mean=(0.5,), std=2, channels_first=True)
    expected = ((IMAGES * 4 - 1 - 0.5) / 2).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(seen(KEY, IMAGES), expected, atol=1e-6)


def test_constants_of_pytorch_normalise_their_channel():
    seen = wrap(lambda images: images, std=np.array([1.0, 2.0, 4.0]).reshape(3, 1, 1))
    np.testing.assert_allclose(seen(KEY, IMAGES), IMAGES / np.array([1, 2, 4]), rtol=1e-6)


def test_half_precision_is_kept():
    seen = wrap(lambda images: images, bounds=(0, 255), mean=1.0, std=2.0)
    assert seen(KEY, IMAGES.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_keys_reach_functions_that_take_them():
    noise = wrap(lambda key, images: jax.random.normal(key, (len(images), 5)), stochastic=True)
    assert noise.stochastic
    with refused("is stochastic: call it with a key of jax.random"):
        noise(None, IMAGES)
    assert (noise(KEY, IMAGES) != noise(jax.random.key(1), IMAGES)).all()
    with_option = wrap(lambda images, scale=2: scale * images[:, 0, 0])
    np.testing.assert_allclose(with_option(KEY, IMAGES), 2 * IMAGES[:, 0, 0])


def test_haiku_functions_without_state_or_key_are_called_as_they_are():
    hk = pytest.importorskip("haiku")
    net = hk.transform(lambda images: hk.Linear(5)(hk.Flatten()(images)))
    params = net.init(KEY, IMAGES)
    expected = net.apply(params, None, IMAGES)
    assert_logits(wrap(net, params), IMAGES, expected)
    assert_logits(wrap(hk.without_apply_rng(net), params), IMAGES, expected)
    noisy = hk.transform(
        lambda x: hk.Linear(5)(hk.dropout(hk.next_rng_key(), 0.5, hk.Flatten()(x)))
    )
    classifier = wrap(noisy, params, stochastic=True)
    assert (classifier(KEY, IMAGES) != classifier(jax.random.key(1), IMAGES)).all()


def test_equinox_models_get_a_key_for_each_image_that_ignores_the_batch():
    eqx = pytest.importorskip("equinox")

    class Noise(eqx.Module):
        def __call__(self, image, *, key):
            return jax.random.normal(key, (5,))

    noise = wrap(Noise(), stochastic=True)
    logits = noise(KEY, IMAGES)
    assert len(np.unique(logits)) == logits.size
    np.testing.assert_array_equal(noise(KEY, IMAGES[:3]), logits[:3])


def test_functions_jitted_by_equinox_are_plain_functions():
    eqx = pytest.importorskip("equinox")
    assert_logits(wrap(eqx.filter_jit(lambda x: x[:, 0, 0])), IMAGES, IMAGES[:, 0, 0])


def test_subclassed_keras_models_without_training_argument_are_called(keras):
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(5)

        def call(self, images):
            return self.dense(keras.ops.reshape(images, (-1, 108)))

    net = Net()
    with refused("Net has no weights yet: call it once"):
        wrap(net)
    expected = net(IMAGES)
    assert_logits(wrap(net), IMAGES, expected)


def test_changes_of_nnx_and_keras_models_are_seen(nnx_model, keras_model):
    for classifier, change in (
        (wrap(nnx_model), lambda: nnx_model.dense.kernel.set_value(jnp.asarray(-DENSE))),
        (wrap(keras_model), lambda: keras_model.layers[-1].kernel.assign(-DENSE)),
    ):
        before = attack(classifier)
        change()
        after = attack(classifier)
        assert np.abs(after - before).max() > 0.1
    opposite = {**VARIABLES["params"], "Dense_0": dict(VARIABLES["params"]["Dense_0"])}
    opposite["Dense_0"]["kernel"] = jnp.asarray(-DENSE)
    expected = attack(wrap(Linen(), {**VARIABLES, "params": opposite}))
    np.testing.assert_allclose(after, expected, atol=1e-5)


def test_black_boxes_get_converted_images():
    black_box = BlackBox(lambda images: images.reshape(len(images), -1), num_classes=108)
    assert wrap(black_box).logits_fn is black_box
    classifier = wrap(black_box, bounds=(0, 255), channels_first=True)
    pixels = np.asarray(IMAGES)
    seen = classifier.logits_fn.predict(pixels)
    assert isinstance(seen, np.ndarray)
    expected = (255 * pixels).transpose(0, 3, 1, 2).reshape(8, -1)
    np.testing.assert_allclose(seen, expected, rtol=1e-6)
    assert classifier.logits_fn.num_classes == 108
    with refused("BlackBox is a BlackBox, which only nes, square and random_search can attack"):
        attack(classifier)


def test_names_come_from_the_class_or_the_function():
    def predict(images):
        return images

    assert wrap(Linen(), VARIABLES).name == "Linen"
    assert wrap(predict).name == "predict"
    assert wrap(lambda images: images).name == "model"
    assert wrap(predict, name="mine").name == "mine"


def test_classifiers_are_wrapped_once():
    classifier = wrap(Linen(), VARIABLES)
    assert wrap(classifier) is classifier
    for options in ({"std": 2}, {"channels_first": True}, {"name": "b"}, {"stochastic": True}):
        with refused("model is a Classifier, which is wrapped already: pass all options to the"):
            wrap(classifier, **options)


def run(program):
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_no_framework_is_imported():
    frameworks = ("equinox", "flax.nnx", "haiku", "keras", "tensorflow", "torch")
    assert (
        run(
            "import sys, jaxadv.adapters.checks; from jaxadv.adapters.wrap import wrap\n"
            "wrap(lambda images: images)\n"
            f"print([name for name in {frameworks} if name in sys.modules])"
        )
        == "[]\n"
    )


def test_attacks_do_not_trace_an_unchanged_linen_classifier_again():
    # In another process, because tests replace the functions of this package by checked ones.
    assert (
        run(
            "from flax import linen as nn; from jaxadv.adapters.wrap import wrap\n"
            "from jaxadv.attacks.snapshot import take_snapshot\n"
            "options = {}, {}, {'mean': 0.5}, {'name': 'other'}\n"
            "classifiers = [wrap(nn.Dense(2), {'params': {}}, **one) for one in options]\n"
            "first, *others = [take_snapshot(one).structure for one in classifiers]\n"
            "print([one == first for one in others])"
        )
        == "[True, False, False]\n"
    )


class Sklearn:
    def predict_proba(self, rows):
        return np.full((len(rows), 2), 0.5)


class NoWeights(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(5)(images)


VALID = (lambda images: images,)
UNSUPPORTED = {
    "no variables": ((NoWeights(),), {}, "NoWeights has no weights: write jaxadv.wrap(model, var"),
    "bare params": (
        (Linen(), VARIABLES["params"]),
        {},
        "variables have the keys (Conv_0, BatchNorm_0, Dense_0) and not params: write jaxadv.wrap("
        "model, {'params': params})",
    ),
    "variables of a list": ((Linen(), [1]), {}, "variables are a list: write jaxadv.wrap(model, {"),
    "variables of a function": ((*VALID, {}), {}, "not to a function: write jaxadv.wrap(lambda"),
    "three arguments": (
        (lambda a, b, c: a,),
        {},
        "the function model takes (a, b, c): it must take",
    ),
    "weights first": ((lambda params, x: x,), {}, "the function model takes (params, x): it must"),
    "key last": ((lambda x, key: x,), {}, "takes (x, key): it must take (images) or (key, images)"),
    "no argument": ((lambda: 0,), {}, "takes other arguments: it must take (images) or (key"),
    "only by name": ((lambda x, *, y: 0,), {}, "takes other arguments: it must take (images) or"),
    "class": ((Nnx,), {}, "model is the class Nnx: pass an instance of it"),
    "scikit-learn": (
        (Sklearn(),),
        {},
        "jaxadv.wrap(jaxadv.BlackBox(lambda images: model.predict_proba(images.reshape(len(images)"
        ", -1))))",
    ),
    "object": ((3,), {}, "model is an int, which JAX cannot trace: write jaxadv.wrap(jaxadv.Black"),
    "std 0": (VALID, {"std": 0}, "std is 0: it must be above 0"),
    "nan": (VALID, {"std": float("nan")}, "std is nan: pass a finite number"),
    "mean of bytes": (VALID, {"mean": 125.0}, "outside of bounds (0.0, 1.0): pass bounds=(0, 255)"),
    "reversed bounds": (VALID, {"bounds": (1, 0)}, "bounds is (1, 0): pass the smallest"),
}


@pytest.mark.parametrize(("arguments", "options", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_cannot_be_wrapped_is_an_error_with_the_line_to_write(arguments, options, message):
    with refused(message) as error:
        wrap(*arguments, **options)
    assert "\n" not in str(error.value)


def test_values_of_other_types_are_errors_too():
    with refused("mean is 'half': pass a number, or one per channel"):
        make_conversion("half", None, (0, 1), None)
    with refused("bounds is 255: pass the smallest and the largest pixel"):
        make_conversion(None, None, 255, None)


def test_variables_of_a_train_state_name_its_params():
    class TrainState:
        params = VARIABLES["params"]

    with refused("variables are a test_wrap.TrainState: write jaxadv.wrap(model, {'params': vari"):
        wrap(Linen(), TrainState())


def test_normalisation_has_one_value_per_channel():
    with refused("mean has 2 values, but the images have shape (8, 6, 6, 3): pass one value per"):
        wrap(*VALID, mean=(0.1, 0.2))(KEY, IMAGES)


def test_nnx_models_in_training_mode_are_refused_at_any_time():
    model = Nnx()
    model.dropout.deterministic = True
    with refused("Nnx is in training mode, in BatchNorm at norm: call model.eval() first"):
        wrap(model)
    model.eval()
    classifier = wrap(model)
    model.dropout.deterministic = False
    with refused("Nnx is in training mode, in Dropout at dropout: call model.eval() first"):
        attack(classifier)
    with refused("Nnx holds its weights: write jaxadv.wrap(model)"):
        wrap(model, VARIABLES)


def test_nnx_models_with_a_training_argument_are_called_in_evaluation_mode():
    class Net(nnx.Module):
        def __call__(self, images, train=True):
            return images[:, 0, 0] * (1 - train)

    assert_logits(wrap(Net()), IMAGES, IMAGES[:, 0, 0])


def test_equinox_models_need_inference_mode_and_their_state(equinox_model):
    train, model, state = equinox_model
    line = "Net is in training mode, in BatchNorm: write model = equinox.nn.inference_mode(model)"
    with refused(line):
        wrap(train, state)
    with refused("Net takes (image, state, key): write jaxadv.wrap(model, state)"):
        wrap(model)
    with refused("variables are a dict: pass the State of the module"):
        wrap(model, {})


def test_nested_equinox_layers_in_training_mode_are_found():
    eqx = pytest.importorskip("equinox")
    layers = [eqx.nn.Lambda(jnp.ravel), eqx.nn.Sequential([eqx.nn.Dropout()])]
    with refused("Sequential is in training mode, in Dropout"):
        wrap(eqx.nn.Sequential(layers))


def test_haiku_functions_need_what_init_returned(haiku_model):
    net, params, _ = haiku_model
    with refused("a Haiku function has no weights: write jaxadv.wrap(model, (params, state))"):
        wrap(net)
    with refused("but the Haiku function is a TransformedWithState: write jaxadv.wrap(model, (pa"):
        wrap(net, params)


@pytest.mark.slow
def test_keras_models_must_run_on_jax():
    pytest.importorskip("keras")
    pytest.importorskip("torch")
    found = run(
        "import os; os.environ['KERAS_BACKEND'] = 'torch'\n"
        "import keras; from jaxadv.adapters.wrap import wrap\n"
        "try: wrap(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))\n"
        "except ValueError as error: print(error)"
    )
    line = "Sequential does not run on JAX: write os.environ['KERAS_BACKEND'] = 'jax' before the"
    assert found.startswith(line)


def test_failures_of_a_model_name_the_shape_and_keep_their_cause():
    def broken(images):
        raise KeyError("lost\nin detail")

    with refused("broken fails on images of shape (8, 6, 6, 3): KeyError: ") as error:
        wrap(broken)(KEY, IMAGES)
    assert isinstance(error.value.__cause__, KeyError)
    assert "\n" not in str(error.value)


def test_failures_because_of_the_layout_name_the_option(equinox_model):
    _, model, state = equinox_model
    line = "fails on images of shape (8, 6, 6, 3), but accepts shape (8, 3, 6, 6): write jaxadv"
    with refused(f"Net {line}.wrap(model, channels_first=True)"):
        attack(wrap(model, state, channels_first=False))
    with refused("accepts shape (8, 6, 6, 3): write jaxadv.wrap(model, channels_first=False)"):
        wrap(Linen(), VARIABLES, channels_first=True)(KEY, IMAGES)


class UnknownFlag(nn.Module):
    @nn.compact
    def __call__(self, images, fit=True):
        x = nn.BatchNorm(use_running_average=not fit)(images.reshape(len(images), -1))
        return nn.Dense(5)(x)


class AlwaysNoisy(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dropout(0.5, deterministic=False)(images)[:, 0, 0]


def test_failures_of_flax_say_what_to_do():
    with refused("variables lack a collection: pass all that model.init returned"):
        wrap(Linen(), {"params": VARIABLES["params"]})(KEY, IMAGES)
    with refused("it updates its batch statistics, as in training mode: write jaxadv.wrap(lambda"):
        wrap(UnknownFlag(), UnknownFlag().init(KEY, IMAGES))(KEY, IMAGES)
    with refused("it needs random numbers: switch dropout off, or write jaxadv.wrap(lambda key"):
        wrap(AlwaysNoisy(), {})(KEY, IMAGES)


def test_errors_of_tracing_are_left_to_tracing():
    with pytest.raises(ValueError, match="logits_fn reads the values of its images"):
        attack(wrap(lambda images: np.asarray(images)[:, 0, 0]))


def test_a_classifier_is_a_function_of_a_key_and_images():
    classifier = Classifier(lambda key, images: images[:, 0, 0], class_names=("a", "b", "c"))
    np.testing.assert_array_equal(classifier(KEY, IMAGES), IMAGES[:, 0, 0])
    assert (classifier.name, classifier.noises) == ("model", None)
