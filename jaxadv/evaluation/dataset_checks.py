"""Checks of a config that need its data set: once it is loaded, before anything long starts."""

from ml_collections import ConfigDict

from jaxadv.core.types import UserError
from jaxadv.data import Dataset
from jaxadv.data.examples import image_shape
from jaxadv.evaluation.attack_suites import check_suite, expand_suite
from jaxadv.models.checks import check_model
from jaxadv.models.classifier import check_certifiable, make_classifier, noise_modes


def check_with_dataset(config: ConfigDict, evaluation: ConfigDict, dataset: Dataset) -> None:
    """Check what depends on the shape of the images and on the number of classes.

    Args:
      config: of the training; its `model` is checked.
      evaluation: `config.evaluation` of the job; its attacks are checked.
      dataset: of the training.

    Raises:
      UserError: the model cannot be built for the data set, or an attack does not fit the model or
        the number of classes.
    """
    num_classes = len(dataset.class_names)
    model = make_classifier(config.model, num_classes)
    check_model(model, image_shape(dataset.train), num_classes)
    attacks = expand_suite(evaluation.attacks)
    check_suite(attacks, num_classes)
    for attack in attacks:
        if attack.noise not in noise_modes(model):
            raise UserError(
                f"config.evaluation.attacks.{attack.name}.noise is {attack.noise!r}: "
                f"{config.model.name} is stochastic by itself, so use "
                f"{', '.join(noise_modes(model))}"
            )
    if evaluation.certification.num_examples:
        check_certifiable(model)
