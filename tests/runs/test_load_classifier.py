"""The classifier of a finished run, restored for attacks and evaluations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_config import tiny_config

import jaxadv
from jaxadv.attacks import pgd
from jaxadv.core.types import UserError
from jaxadv.data import load
from jaxadv.training import train

pytestmark = pytest.mark.slow  # trains


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    changes = {"train.num_epochs": 1, "model.dropout": 0.0, "model.defence.name": "input_noise"}
    fgsm = {"attack": "fgsm", "eps": (0.1,)}
    train.run(tiny_config(**changes, **{"evaluation.attacks": {"fgsm": fgsm}}), folder)
    return folder


def test_the_classifier_is_a_logits_function_with_its_parts(workdir):
    classifier = jaxadv.load_classifier(workdir)
    images = jnp.full((2, 32, 32, 3), 0.5)
    logits = classifier(jax.random.key(0), images)
    assert logits.shape == (2, 10)
    assert classifier.class_names == tuple("0123456789")
    assert classifier.name == "net with input_noise"
    assert classifier.stochastic
    assert not np.allclose(logits, classifier(jax.random.key(1), images))
    plain = classifier.module.clone(defence=None).apply(classifier.variables, images)
    assert plain.shape == (2, 10)
    assert classifier.num_parameters == sum(
        leaf.size for leaf in jax.tree.leaves(classifier.variables["params"])
    )
    budget = {"eps": 0.1, "step_size": 0.05, "num_steps": 2}
    moved = pgd(jax.random.key(0), classifier, images, jnp.array([0, 1]), **budget)
    assert 0.05 < jnp.abs(moved - images).max() <= 0.1001


def test_its_noise_can_be_switched_off_in_a_suite(workdir):
    classifier = jaxadv.load_classifier(workdir, "last")
    fgsm = {"attack": "fgsm", "eps": (0.05,)}
    digits = load("digits", data_dir=None, validation_fraction=0.1)
    result = jaxadv.evaluate(
        classifier,
        digits.test.images[:16],
        digits.test.labels[:16],
        attacks={"on": fgsm, "off": {**fgsm, "noise": "off"}},
        progress=False,
    )
    assert result.evaluation.stochastic
    assert result.attacks["off/0.05"].noise == "off"
    assert set(result.evaluation.clean_noise) == {"off"}


def test_mistakes_are_named(workdir, tmp_path):
    with pytest.raises(UserError, match='which is \'first\': use "best" or "last"'):
        jaxadv.load_classifier(workdir, "first")
    with pytest.raises(UserError, match="does not exist: pass the workdir of a run"):
        jaxadv.load_classifier(tmp_path / "nothing")


def test_it_does_not_need_the_data_set(workdir, monkeypatch):
    monkeypatch.setattr("jaxadv.runs.classifier.load_dataset", None)
    assert jaxadv.load_classifier(workdir).num_parameters
