"""Published weights: `load_pretrained`, and the initial weights of a training."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import save_file
from tiny_config import tiny_config

import jaxadv
from jaxadv.attacks import pgd
from jaxadv.core.types import UserError
from jaxadv.models import make_model
from jaxadv.models.checks import variable_shapes
from jaxadv.models.state_dicts import to_state_dict
from jaxadv.runs.pretrained import initial_variables

SHAPE = (28, 28, 1)


def variables_of(module):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.1, leaf.shape), jnp.float32),
        variable_shapes(module, SHAPE),
    )


@pytest.fixture(scope="module")
def module():
    return make_model("mnist_cnn", 4)


@pytest.fixture(scope="module")
def variables(module):
    return variables_of(module)


@pytest.fixture
def weights(variables, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(to_state_dict(variables), path)
    return path


def images():
    return jax.random.uniform(jax.random.key(0), (3, *SHAPE))


def test_the_classifier_has_the_weights_and_the_classes_of_the_file(module, variables, weights):
    classifier = jaxadv.load_pretrained("mnist_cnn", weights, class_names="abcd")
    logits = classifier(jax.random.key(0), images())
    np.testing.assert_allclose(logits, module.apply(variables, images()), atol=1e-6)
    assert logits.shape == (3, 4)
    assert classifier.num_parameters == sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert classifier.name == "mnist_cnn (weights.safetensors)"
    assert classifier.class_names == ("a", "b", "c", "d")
    jax.tree.map(np.testing.assert_array_equal, classifier.variables, variables)


@pytest.mark.parametrize("folder", ["", "steps"])
def test_folders_of_orbax_are_read(folder, module, variables, tmp_path):
    path = tmp_path / "orbax"
    if folder:
        with ocp.CheckpointManager(path) as manager:
            for step, scale in ((9, 0.0), (10, 1.0)):
                scaled = jax.tree.map(lambda leaf, scale=scale: leaf * scale, variables)
                manager.save(step, args=ocp.args.StandardSave({**scaled, "step": step}))
    else:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, variables)
    classifier = jaxadv.load_pretrained("mnist_cnn", path)
    jax.tree.map(np.testing.assert_array_equal, classifier.variables, variables)


def test_a_normalisation_of_the_file_is_used_and_another_is_refused(variables, tmp_path):
    path = tmp_path / "normalised.safetensors"
    arrays = {f"module.{key}": array for key, array in to_state_dict(variables).items()}
    buffers = {"normalize.mean": np.full((1, 1, 1), 0.25), "normalize.std": np.full((1, 1, 1), 0.5)}
    save_file({**arrays, **buffers}, path)
    classifier = jaxadv.load_pretrained("mnist_cnn", path)
    assert (classifier.module.mean, classifier.module.std) == ((0.25,), (0.5,))
    plain = make_model("mnist_cnn", 4).apply(variables, (images() - 0.25) / 0.5)
    np.testing.assert_allclose(classifier(jax.random.key(0), images()), plain, atol=1e-5)
    with pytest.raises(
        UserError, match=r"normalises images with mean=\(0.25,\), std=\(0.5,\), the model"
    ):
        jaxadv.load_pretrained("mnist_cnn", path, mean=[0.5], std=[0.5])


def test_weights_of_another_architecture_are_refused_in_one_line(variables, tmp_path):
    path = tmp_path / "other.safetensors"
    arrays = to_state_dict(variables)
    arrays["fc.weight"] = arrays.pop("7.weight")
    save_file(arrays, path)
    message = (
        r"^\S*other.safetensors: the weights do not fit the model: missing: 7.weight; unexpected: "
        r"fc.weight. Choose the architecture and the size of images of the file$"
    )
    with pytest.raises(UserError, match=message):
        jaxadv.load_pretrained("mnist_cnn", path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"^\S*empty has no variables of Orbax, but nothing: pass"):
        jaxadv.load_pretrained("mnist_cnn", tmp_path / "empty")


def test_initial_weights_keep_a_random_head_for_other_classes(module, variables, weights, capsys):
    config = tiny_config(init_from=str(weights))
    initial = jax.tree.map(jnp.zeros_like, variables)
    jax.tree.map(
        np.testing.assert_array_equal,
        initial_variables(config, module, initial, SHAPE),
        variables,
    )
    assert capsys.readouterr().out == f"Initial weights from {weights}\n"
    other = make_model("mnist_cnn", 7)
    start = jax.tree.map(jnp.ones_like, variables_of(other))
    found = initial_variables(config, other, start, SHAPE)["params"]
    jax.tree.map(np.testing.assert_array_equal, found["7"], start["params"]["7"])
    jax.tree.map(np.testing.assert_array_equal, found["5"], variables["params"]["5"])
    assert capsys.readouterr().out == (
        f"Initial weights from {weights}, but params/7/bias, params/7/kernel start from random "
        "values: the file has 4 classes\n"
    )


def test_a_file_of_other_classes_without_a_normalisation_needs_one(tmp_path):
    path = tmp_path / "cifar100.safetensors"
    module = make_model("dm_wideresnet_10_1", 100)
    shapes = variable_shapes(module, (32, 32, 3))
    save_file(to_state_dict(jax.tree.map(lambda leaf: np.ones(leaf.shape, "f"), shapes)), path)
    with pytest.raises(UserError, match=r"has 100 classes and does not say how it normalises"):
        jaxadv.load_pretrained("dm_wideresnet_10_1", path)
    means = (0.5, 0.5, 0.5)
    model = jaxadv.load_pretrained("dm_wideresnet_10_1", path, mean=means, std=means)
    assert (model.module.num_classes, model.module.mean) == (100, means)


def test_workdirs_and_ambiguous_folders_are_refused(variables, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"is the workdir of a run: pass it to jaxadv.load_class"):
        jaxadv.load_pretrained("mnist_cnn", tmp_path / "run")
    with pytest.raises(UserError, match=r"has no variables of Orbax, but run: pass the folder"):
        jaxadv.load_pretrained("mnist_cnn", tmp_path)


def test_an_image_shape_needs_three_sizes(weights):
    with pytest.raises(
        UserError, match=r"image_shape is \(28, 28\): pass height, width and channels"
    ):
        jaxadv.load_pretrained("mnist_cnn", weights, image_shape=(28, 28))


@pytest.mark.published
@pytest.mark.skipif("JAXADV_PUBLISHED" not in os.environ, reason="JAXADV_PUBLISHED is not set")
@pytest.mark.parametrize(
    ("name", "clean", "robust"), [("fast_fgsm", 0.9785, 0.867), ("fast_pgd", 0.9855, 0.885)]
)
def test_published_models_have_the_accuracies_that_pytorch_measures(name, clean, robust):
    """Measured with PyTorch on the first 2,000 test images, under PGD-40 at eps 0.3."""
    folder = Path(os.environ["JAXADV_PUBLISHED"])
    with np.load(folder / "mnist.npz") as data:
        tests, labels = data["test_images"][:2000, ..., None] / 255, data["test_labels"][:2000]
    model = jaxadv.load_pretrained("mnist_cnn", folder / "robust_mnist" / f"{name}.pth")
    key, tests = jax.random.key(0), jnp.asarray(tests, jnp.float32)
    assert (model(key, tests).argmax(axis=1) == labels).sum() == 2000 * clean
    budget = {"eps": 0.3, "step_size": 0.02, "num_steps": 40}
    moved = pgd(key, model, tests, jnp.asarray(labels, jnp.int32), **budget)
    assert abs((model(key, moved).argmax(axis=1) == labels).mean() - robust) < 0.005
