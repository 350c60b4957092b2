"""Every experiment of the study, laid beside the study's own figures.

    python run.py --config configs/study.py --config.study.dry_run=True
    python run.py --config configs/study.py
    python run.py --config configs/study.py --config.study.only=nes,randomness

The first prints what each run would cost on this device, the second runs what is not done yet and
writes the page results/study/index.html, with index.md beside it. A run is done once its record is
in results/study/runs: delete that and its folder in runs/study, which holds the checkpoints, to run
it anew.

The argument is the scale: `cpu` (the default), about 21 hours on two cores of an AMD EPYC (the last
of it on an Intel Xeon), in which 16 of 30 trainings have three seeds and the others one; `full`,
all models and three seeds of each, for a GPU (not run); or `smoke`, a check of the program on the
digits, with tiny models, that takes minutes:

    python run.py --config configs/study.py:smoke
"""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import batteries, evaluate, gan, presets
from configs.experiments import (
    activation,
    adversary,
    augmentation,
    best,
    curricula,
    model_size,
    nes,
    optimizer,
    other_defences,
    randomness,
    synthetic,
    undefended,
    wide_resnet,
)

# As the page shows them.
EXPERIMENTS: dict[str, Any] = {
    "undefended": undefended,
    "optimizer": optimizer,
    "activation": activation,
    "adversary": adversary,
    "curricula": curricula,
    "model_size": model_size,
    "augmentation": augmentation,
    "randomness": randomness,
    "wide_resnet": wide_resnet,
    "nes": nes,
    "synthetic": synthetic,
    "other_defences": other_defences,
    "best": best,
}
# Trainings by name, in the order they are run in; what several experiments need is here once.
TRAININGS: dict[str, Callable[[], ConfigDict]] = {
    "net_natural": undefended.get_config,
    "net_curriculum": lambda: optimizer.get_config("adamw"),
    "bignet_standard": lambda: adversary.get_config("standard"),
    "bignet_curriculum": lambda: adversary.get_config("curriculum"),
    "net_sgd": lambda: optimizer.get_config("sgd"),
    "net_gelu": lambda: activation.get_config("gelu"),
    "net_standard": lambda: other_defences.get_config("none"),
    "biggernet_curriculum": lambda: model_size.get_config("biggernet"),
    "bignet_rse": lambda: randomness.get_config("rse"),
    "bignet_pni_frozen": lambda: randomness.get_config("pni_frozen"),
    "bignet_pni": lambda: randomness.get_config("pni"),
    "bignet_flip": lambda: augmentation.get_config("flip"),
    "bignet_flip_crop_jitter": lambda: augmentation.get_config("flip_crop_jitter"),
    "net_fixed": lambda: curricula.get_config("fixed"),
    "net_short_ramp": lambda: curricula.get_config("short_ramp"),
    "net_long_ramp": lambda: curricula.get_config("long_ramp"),
    "net_fixed_all": lambda: curricula.get_config("fixed_all"),
    "net_trades": lambda: curricula.get_config("trades"),
    "net_n_fgsm": lambda: curricula.get_config("n_fgsm"),
    "net_spectral_norm": lambda: other_defences.get_config("spectral_norm"),
    "net_low_rank": lambda: other_defences.get_config("low_rank"),
    "net_low_rank_learned": lambda: other_defences.get_config("low_rank_learned"),
    "net_input_noise": lambda: other_defences.get_config("input_noise"),
    "bignet_best": best.get_config,
    "gan": gan.get_config,
    "net_synthetic_quarter": lambda: synthetic.get_config("quarter"),
    "net_synthetic_half": lambda: synthetic.get_config("half"),
    "net_half_real": lambda: synthetic.get_config("half_real"),
    "narrow_wrn": lambda: wide_resnet.get_config("wrn"),
    "narrow_wrn_rse": lambda: wide_resnet.get_config("wrn_rse"),
    "vit_3_128": lambda: model_size.get_config("vit_3_128"),
    "vit_5_256": lambda: model_size.get_config("vit_5_256"),
    "wrn": lambda: wide_resnet.get_config("wrn"),
    "wrn_rse": lambda: wide_resnet.get_config("wrn_rse"),
}
_AS_THE_STUDY = (
    *("net_natural", "net_curriculum", "net_sgd", "net_gelu", "bignet_standard"),
    *("bignet_curriculum", "biggernet_curriculum", "bignet_flip", "bignet_flip_crop_jitter"),
    *("bignet_rse", "bignet_pni_frozen", "narrow_wrn", "narrow_wrn_rse"),
    *("vit_3_128", "vit_5_256", "wrn", "wrn_rse"),
)
_UNDER_AUTOATTACK = (
    *("net_curriculum", "net_standard", "net_fixed", "net_short_ramp", "net_long_ramp"),
    *("net_trades", "net_n_fgsm", "bignet_standard", "bignet_curriculum", "biggernet_curriculum"),
    *("bignet_flip", "bignet_best"),
)
_THRICE = (  # what two cores train with three seeds
    *("net_curriculum", "net_sgd", "net_gelu", "net_standard", "net_fixed", "net_short_ramp"),
    *("net_long_ramp", "net_fixed_all", "net_trades", "net_n_fgsm", "net_half_real"),
    *("bignet_curriculum", "bignet_standard", "bignet_rse", "bignet_pni", "bignet_best"),
)
_AVERAGED = ("net_input_noise", "narrow_wrn_rse", "wrn_rse")  # with columns of all eps
_UNDER_NES = ("net_natural", "net_standard", "net_curriculum")
_WITH_DROPOUT_OR_NORM = ("biggernet", "narrow_wrn", "wrn")
_FEW = 500  # images that the narrow one is judged on
_LARGE = ("vit", "wrn")  # only where there is a GPU
_SMALL_GAN = {
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
}


def get_config(scale: str = "cpu") -> ConfigDict:
    """Returns the study at that scale: its runs, in order, and its experiments."""
    if scale not in ("smoke", "cpu", "full"):
        raise ValueError(f"no scale {scale!r}: use smoke, cpu or full")
    config = ConfigDict()
    config.mode = "study"
    config.compilation_cache = True  # keep what was compiled for the next start, in ~/.cache/jaxadv
    config.data = ConfigDict({"data_dir": placeholder(str)})  # TFDS directory; None: its default
    config.study = ConfigDict()
    config.study.scale = scale
    config.study.only = ""  # names of experiments, with commas between; "": all
    config.study.dry_run = False  # print what each run would cost, and run nothing
    # Where the page goes, and the records that it is made of.
    config.study.results = {
        "smoke": "runs/study_smoke/results",
        "cpu": "results/study",
        "full": "results/study_full",
    }[scale]
    runs = _runs(scale)
    config.runs = ConfigDict(runs)
    config.order = tuple(runs)
    config.experiments = ConfigDict({name: module.PAGE for name, module in EXPERIMENTS.items()})
    config.experiments.order = tuple(EXPERIMENTS)
    return config


def _runs(scale: str) -> dict[str, dict[str, Any]]:
    """Returns the runs in order: one seed of all first, then the next.

    Each has its config, in which paths are names of other runs, and `planned`: whether it is run at
    this scale, or only said what it would cost.
    """
    runs: dict[str, dict[str, Any]] = {}
    for seed in range(3):
        for name, make in TRAININGS.items():
            if seed not in _seeds(name, scale):
                continue
            config = _scaled(name, make(), scale)
            config.seed = seed
            run = f"{name}/{seed}"
            planned = scale == "full" or not name.startswith(_LARGE)
            if config.mode == "gan":
                samples = config.copy_and_resolve_references()
                samples.mode = "sample"
                runs[run] = {"config": config, "planned": planned}
                runs[f"{run}/synthetic"] = {"config": samples, "planned": planned}
                continue
            if config.data.synthetic.share:
                config.data.synthetic.path = "gan/0/synthetic"
            runs[run] = {"config": config, "planned": planned}
            for kind, evaluation in _evaluations(name, seed, scale).items():
                evaluation.checkpoint = run
                runs[f"{run}/{kind}"] = {"config": evaluation, "planned": planned}
    return runs


def _seeds(name: str, scale: str) -> tuple[int, ...]:
    once = name == "gan" or scale == "smoke" or (scale == "cpu" and name not in _THRICE)
    return (0,) if once else (0, 1, 2)


def _evaluations(name: str, seed: int, scale: str) -> dict[str, ConfigDict]:
    """Returns the evaluations of a training beside its own."""
    found = {}
    if name in ("net_standard", "bignet_standard", "narrow_wrn", "wrn"):
        found["noise"] = evaluate.get_config()
        found["noise"].evaluation.attacks = batteries.plain()
    if seed == 0:
        smoked = ("net_natural", "biggernet_curriculum")
        if name in (smoked if scale == "smoke" else _AS_THE_STUDY):
            found["study"] = presets.study(training_mode=name.startswith(_WITH_DROPOUT_OR_NORM))
        if name in _AVERAGED and scale != "smoke":
            found["averaged"] = presets.averaged()
        if name in _UNDER_NES:
            found["nes"] = nes.get_config()
        smoked = ("bignet_curriculum", "bignet_best")
        if name in (smoked if scale == "smoke" else _UNDER_AUTOATTACK):
            found["autoattack"] = presets.autoattack(None if scale == "full" else 1000)
    for evaluation in found.values():
        if scale == "smoke":
            _shrink(evaluation.evaluation)
        elif name.startswith("narrow"):
            evaluation.evaluation.num_examples = _FEW
    return found


def _scaled(name: str, config: ConfigDict, scale: str) -> ConfigDict:
    """Returns the config of a training at a scale."""
    if name.startswith("narrow"):
        config.model.name = "wrn_7_1"
        config.train.num_epochs = 2
        config.evaluation.num_examples = _FEW
    if scale == "cpu" and name == "gan":
        config.update_from_flattened_dict(_SMALL_GAN)
    if scale == "smoke":
        config = _smoke(name, config)
    return config


def _smoke(name: str, config: ConfigDict) -> ConfigDict:
    if name == "gan":
        config = gan.get_config("digits")
        changes: Mapping[str, Any] = {
            "train.num_steps": 2,
            "train.steps_per_round": 2,
            "generator.features": 4,
            "discriminator.features": 4,
            "judge.num_samples": 80,
            "sampling.num_images": 100,
            "judge.classifier.train.num_epochs": 1,
        }
    else:
        config.data.name = "digits"
        # As few kinds of training steps as will do, for each takes seconds to compile.
        changes = {
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
        _shrink(config.evaluation)
    config.update_from_flattened_dict(changes)
    return config


def _shrink(evaluation: ConfigDict) -> None:
    """Makes an evaluation one of seconds."""
    evaluation.batch_size = 64
    evaluation.num_examples = 32
    evaluation.num_passes = 2
    for attack in evaluation.attacks.values():
        if "num_steps" in attack:
            attack.num_steps = min(attack.num_steps, 2)
        if attack.attack == "nes":
            attack.num_queries = attack.num_queries // 10
