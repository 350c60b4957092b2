"""The plan of the study: its runs, what each depends on, and which are requested.

The plan is made from the values of configs/study.py: trainings by name, their seeds, and attack
suites. Each run is a job with the config of a training, an evaluation or a GAN.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxadv.config import set_defaults
from jaxadv.core.types import UserError
from jaxadv.study import protocols
from jaxadv.study.protocols import Protocol
from jaxadv.study.specification import Experiment

# Trainings that are also evaluated by the original protocol, by AutoAttack, ...
_ORIGINAL = (
    *("net_natural", "net_curriculum", "net_sgd", "net_gelu", "bignet_standard"),
    *("bignet_curriculum", "bignet_flip", "bignet_flip_crop_jitter"),
    *("biggernet_curriculum", "biggernet_flip", "biggernet_flip_crop_jitter"),
    *("bignet_rse", "bignet_pni_frozen", "narrow_wrn", "narrow_wrn_rse"),
    *("vit_3_128", "vit_5_256", "wrn", "wrn_rse"),
)
_AUTOATTACK = (
    *("net_curriculum", "net_standard", "net_fixed", "net_short_ramp", "net_long_ramp"),
    *("net_trades", "net_n_fgsm", "net_sgd", "net_gelu", "bignet_standard", "bignet_curriculum"),
    *("bignet_flip", "bignet_flip_crop_jitter", "bignet_best", "biggernet_curriculum"),
    *("biggernet_flip", "biggernet_flip_crop_jitter", "vit_3_128"),
)
_COARSE = ("biggernet_curriculum", "biggernet_flip", "biggernet_flip_crop_jitter")
_PLAIN = ("net_standard", "bignet_standard", "narrow_wrn", "wrn")
_AVERAGED = ("net_input_noise", "narrow_wrn_rse", "wrn_rse")
_NES = ("net_natural", "net_standard", "net_curriculum")
_WITH_DROPOUT_OR_BATCH_NORM = ("biggernet", "narrow_wrn", "wrn")
_NUM_EXAMPLES = {"narrow_wrn": 500, "narrow_wrn_rse": 500, "vit_3_128": 1000}  # below scale full
_GAN_CHANGES: dict[str, dict[str, Any]] = {
    "cpu": {
        "generator.features": 16,
        "discriminator.features": 16,
        "train.num_steps": 5000,
        "train.steps_per_round": 500,
        "train.num_discriminator_steps": 1,
        "train.ema_decay": 0.999,
        "optimizer.generator_learning_rate": 4e-4,
        "optimizer.discriminator_learning_rate": 4e-4,
        "optimizer.beta1": 0.5,
        "sampling.num_images": 20_000,
    },
    "smoke": {
        "train.num_steps": 2,
        "train.steps_per_round": 2,
        "generator.features": 4,
        "discriminator.features": 4,
        "evaluator.num_samples": 80,
        "sampling.num_images": 100,
        "evaluator.classifier.train.num_epochs": 1,
    },
}


class Run(NamedTuple):
    """A run of the study.

    Attributes:
      name: `<training>/<seed>`, or `<training>/<seed>/<kind>` for a further evaluation of it or for
        the samples of a GAN.
      config: of the job; its paths are names of other runs.
      planned: whether the study runs it; otherwise it only estimates the cost.
    """

    name: str
    config: ConfigDict
    planned: bool

    @property
    def dependency(self) -> str | None:
        """Return the name of the run that this one starts from; None if there is none."""
        match self.config.mode:
            case "evaluate":
                return self.config.checkpoint
            case "sample":
                return self.name.rpartition("/")[0]
            case "train" if self.config.data.synthetic.share:
                return self.config.data.synthetic.path
        return None

    def workdir(self, folder: Path) -> Path:
        """Return its workdir in the study's folder; samples are in the workdir of their GAN."""
        name = self.dependency if self.config.mode == "sample" else self.name
        return folder / str(name)

    def with_paths(self, folder: Path, data_dir: str | None) -> ConfigDict:
        """Return its config with the paths of this machine.

        Args:
          folder: of the study's runs.
          data_dir: TFDS directory.
        """
        config = self.config.copy_and_resolve_references()
        config.data.data_dir = data_dir
        if config.mode == "evaluate":
            config.checkpoint = str(folder / config.checkpoint)
        if config.mode == "train" and config.data.synthetic.share:
            config.data.synthetic.path = str(folder / config.data.synthetic.path)
        return config


def make_plan(config: ConfigDict) -> dict[str, Run]:
    """Return the runs of the study by name: all trainings with the first seed, then the next seed.

    Args:
      config: of configs/study.py.
    """
    plan: dict[str, Run] = {}
    for seed in sorted({seed for seeds in config.seeds.values() for seed in seeds}):
        for name in config.order:
            if seed in config.seeds[name]:
                planned = name not in config.not_planned
                for run, of_run in _run_configs(name, seed, config).items():
                    plan[run] = Run(run, of_run, planned)
    return plan


def _run_configs(name: str, seed: int, study: ConfigDict) -> dict[str, ConfigDict]:
    """Return the configs of a training with one seed and of all that starts from it."""
    scale, run = study.study.scale, f"{name}/{seed}"
    config = study.trainings[name].copy_and_resolve_references()
    set_defaults(config)
    _scale_training(name, config, scale)
    config.seed = seed
    configs = {run: config}
    if config.mode == "gan":
        configs[f"{run}/synthetic"] = config.copy_and_resolve_references()
        configs[f"{run}/synthetic"].mode = "sample"
        return configs
    if config.data.synthetic.share:
        config.data.synthetic.path = "gan/0/synthetic"
    for kind, protocol in _protocols(name, seed, scale).items():
        evaluation = protocol.make_config(study.suites)
        _scale_evaluation(name, evaluation.evaluation, scale)
        evaluation.checkpoint = run
        configs[f"{run}/{kind}"] = evaluation
    return configs


def _protocols(name: str, seed: int, scale: str) -> dict[str, Protocol]:
    """Return the further evaluations of a training by kind."""
    found = {}
    smoke = scale == "smoke"
    if name in _PLAIN:
        found["noise"] = protocols.PLAIN
    if name in (("bignet_curriculum", "bignet_best") if smoke else _AUTOATTACK):
        found["autoattack"] = protocols.AUTOATTACK if scale == "full" else protocols.AUTOATTACK_1000
    if seed > 0:
        return found
    if name in (("net_natural", "biggernet_curriculum") if smoke else _ORIGINAL):
        training_mode = name.startswith(_WITH_DROPOUT_OR_BATCH_NORM)
        found["study"] = (
            protocols.ORIGINAL_WITH_TRAINING_MODE if training_mode else protocols.ORIGINAL
        )
    if name in _COARSE and not smoke:
        found["study_coarse"] = protocols.COARSE_IN_TRAINING_MODE
    if name in _AVERAGED and not smoke:
        found["averaged"] = protocols.AVERAGED
    if name in _NES:
        found["nes"] = protocols.NES
    return found


def _scale_training(name: str, config: ConfigDict, scale: str) -> None:
    """Change the config of a training to that of a scale."""
    if name == "gan":
        if scale in _GAN_CHANGES:
            config.update_from_flattened_dict(_GAN_CHANGES[scale])
        return
    if name.startswith("narrow"):
        config.model.name = "wrn_7_1"
        config.train.num_epochs = 2
    if scale == "smoke":
        config.data.source = "digits"
        config.update_from_flattened_dict(_smoke_changes(name, config))
    _scale_evaluation(name, config.evaluation, scale)


def _smoke_changes(name: str, config: ConfigDict) -> dict[str, Any]:
    """Return the changes to a training for a smoke test.

    They leave few different training steps, because each takes seconds to compile.
    """
    return {
        "train.num_epochs": 1,
        "train.batch_size": 64,
        "data.augmentation": "none" if config.data.augmentation == "none" else "flip",
        "data.synthetic.share": 0.5 if config.data.synthetic.share else 0.0,
        "attack.fraction": 0.5 if config.attack.fraction else 0.0,
        "attack.random_start": True,
        "attack.num_steps_start": min(config.attack.num_steps_start, 2),
        "attack.num_steps_end": min(config.attack.num_steps_end, 2),
        "validation.num_steps": 1,
        "model.name": "biggernet" if name.startswith("biggernet") else "net",
        "model.defence.pni.frozen_sigma": False,
        "model.defence.low_rank.rank": 20,
        "model.defence.low_rank.learned": True,
        "model.defence.rse.before_norm": False,
    }


def _scale_evaluation(name: str, evaluation: ConfigDict, scale: str) -> None:
    """Change `config.evaluation` to that of a scale."""
    if scale != "full" and name in _NUM_EXAMPLES:
        evaluation.num_examples = _NUM_EXAMPLES[name]
    if scale != "smoke":
        return
    evaluation.batch_size = 64
    evaluation.num_examples = 32
    evaluation.num_passes = 2
    for attack in evaluation.attacks.values():
        if "num_steps" in attack:
            attack.num_steps = min(attack.num_steps, 2)
        if attack.attack == "nes":
            attack.num_queries = attack.num_queries // 10


def training_config(run: Run, plan: Mapping[str, Run]) -> ConfigDict:
    """Return the config of a training, or of the training that an evaluation starts from."""
    return plan[str(run.dependency)].config if run.config.mode == "evaluate" else run.config


def requested_runs(
    only: str, experiments: Mapping[str, Experiment], plan: Mapping[str, Run]
) -> list[str]:
    """Return the names of the runs of some experiments and of their dependencies, in order.

    Args:
      only: names of experiments, separated by commas; "" for all.
      experiments: all of the study.
      plan: all runs.

    Raises:
      UserError: `only` names an unknown experiment.
    """
    requested = [name.strip() for name in only.split(",") if name.strip()]
    for name in requested:
        if name not in experiments:
            raise UserError(
                f"config.study.only names {name!r}: the experiments are {', '.join(experiments)}"
            )
    trainings = {
        training.partition(":")[0]
        for name in requested or experiments
        for training in experiments[name].trainings.values()
    }
    names = {name for name in plan if name.partition("/")[0] in trainings}
    for name in list(names):
        dependency = plan[name].dependency
        while dependency:
            names.add(dependency)
            dependency = plan[dependency].dependency
    return [name for name in plan if name in names]
