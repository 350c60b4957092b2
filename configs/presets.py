"""How an experiment is judged: as the study did it, and as it should have been."""

from ml_collections import ConfigDict

from configs import batteries, evaluate

_NOISE = ("pgd10", "eot20", "noise_off")  # what the study's page shows of batteries.noise
_PGD40 = {"attack": "pgd", "eps": batteries.GRID, "step_size": 0.01, "num_steps": 40}


def corrected(config: ConfigDict) -> ConfigDict:
    """Returns a training config whose best and last checkpoints are judged as they should be.

    PGD-40 with a random start on the full test split, the model with its running statistics and
    without dropout. A model with noise of its own meets attacks that average over it.
    """
    config.evaluation.attacks = ConfigDict({"pgd40": _PGD40})
    if config.model.defence.name in ("pni", "rse", "dropout", "input_noise"):
        noise = batteries.noise()
        config.evaluation.attacks = ConfigDict({name: noise[name] for name in _NOISE})
    return config


def averaged() -> ConfigDict:
    """Returns the grid of eps for a model with noise of its own, on its best checkpoint.

    20 steps, each of a gradient averaged over 10 draws of the noise.
    """
    config = evaluate.get_config()
    eot10 = {**_PGD40, "num_steps": 20, "num_noise_samples": 10}
    config.evaluation.attacks = ConfigDict({"eot10": eot10})
    return config


def study(training_mode: bool = False) -> ConfigDict:
    """Returns the evaluation of the study: the last checkpoint, on 1,024 held-out train images.

    PGD-40 starts at the clean image and sees one draw of a model's noise in each step. With
    `training_mode` the model is also met as it is in training, as the study's were: that matters
    where it has dropout or batch norm.
    """
    config = evaluate.get_config()
    config.which = "last"
    config.evaluation.split = "held_out"
    config.evaluation.num_examples = 1024
    config.evaluation.num_passes = 2
    pgd40 = {**_PGD40, "random_start": False}
    coarse = {**pgd40, "step_size": 0.02}  # which some of the study's figures have
    config.evaluation.attacks = ConfigDict({"pgd40": pgd40, "pgd40_coarse": coarse})
    if training_mode:
        config.evaluation.attacks.training_mode = {**pgd40, "noise": "training"}
    return config


def autoattack(num_examples: int | None) -> ConfigDict:
    """Returns AutoAttack at eps .03 on the best checkpoint, on the first test images."""
    config = evaluate.get_config("autoattack")
    config.evaluation.num_examples = num_examples
    for attack in config.evaluation.attacks.values():
        attack.eps = (0.03,)
    return config
