"""A training that starts from published weights."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_config import tiny_config

from jaxadv.core.types import HostBatch, UserError
from jaxadv.data import load
from jaxadv.models import make_model
from jaxadv.models.checks import variable_shapes
from jaxadv.models.state_dicts import to_state_dict
from jaxadv.training import train

pytestmark = pytest.mark.slow  # compiles

CHANGES = {
    "model.name": "mnist_cnn",
    "model.dropout": None,
    "train.num_epochs": 1,
    "attack.fraction": 0.0,
    "optimizer.learning_rate": 1e-12,
}


@pytest.fixture(scope="module")
def small():
    digits = load("digits", data_dir=None, validation_fraction=0.04, size=16, channels=1)
    others = HostBatch(digits.test.images[:64], digits.test.labels[:64])
    train_split = HostBatch(digits.train.images[:64], digits.train.labels[:64])
    return digits._replace(train=train_split, validation=others, test=others)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    shapes = variable_shapes(make_model("mnist_cnn", 10), (16, 16, 1))
    random = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype("float32"), shapes)
    return to_state_dict(random)


@pytest.fixture(autouse=True)
def no_validation(monkeypatch):
    """Save the compilation of the validation's attack."""
    accuracies = {"validation_accuracy_clean": 0.5, "validation_accuracy_robust": 0.5}
    monkeypatch.setattr(train, "_validate", lambda *_: accuracies)


def test_training_starts_from_the_weights_and_resumes_without_the_file(
    small, arrays, tmp_path, capsys
):
    path = tmp_path / "weights.safetensors"
    save_file(arrays, path)
    config = tiny_config(init_from=str(path), **CHANGES)
    state = train.train(config, small, tmp_path / "run")
    assert f"Initial weights from {path}\n" in capsys.readouterr().out
    for variables in (state.variables, state.ema):
        trained = to_state_dict(jax.device_get(variables))
        assert trained.keys() == arrays.keys()
        for key, array in arrays.items():
            np.testing.assert_allclose(trained[key], array, atol=1e-6)
    path.unlink()
    again = train.train(config, small, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, again.variables, state.variables)


def test_a_file_of_another_model_ends_the_run_before_the_first_step(small, arrays, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"conv.weight": arrays["0.weight"]}, path)
    config = tiny_config(init_from=str(path), **CHANGES)
    with pytest.raises(UserError, match=r"^\S*other.safetensors: .* missing: 0.bias, [^\n]*$"):
        train.train(config, small, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    path.unlink()
    with pytest.raises(UserError, match=r"config.init_from is \S+, which does not exist: pass"):
        train.run(config, tmp_path / "run")
