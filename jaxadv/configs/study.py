"""The study: trainings of configs/experiments/, and a page that compares them with its slides.

    python run.py --config configs/study.py --config.study.dry_run=True
    python run.py --config configs/study.py
    python run.py --config configs/study.py --config.study.only=nes,randomness

The first command prints the cost of each run on this device. The second runs all that have no
record yet, and writes results/study/index.html and index.md. The records are in results/study/runs,
the checkpoints in runs/study; to repeat a run, delete both.

The argument is the scale. `cpu`, the default: 132 of its 159 runs took 31 hours, on 2 cores of an
AMD EPYC or an Intel Xeon and lately on one; the page says which are not run. 20 of 37 trainings
have three seeds, the others one. `full` is for a GPU: all models, three seeds each; not run.
`smoke` checks the program with tiny models on scikit-learn's digits, in 2 min on 2 cores of an AMD
EPYC:

    python run.py --config configs/study.py:smoke

This file holds values: the scale, the folders, the trainings and their seeds, the attack suites.
`jaxadv/study/plan.py` makes the runs from them; jaxadv/study/ also has the evaluation protocols,
the claims and the text of the page. Configs import nothing of jaxadv but other configs: anything
else would load JAX before the flags are checked.
"""

from collections.abc import Callable

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from jaxadv.configs import evaluate, gan
from jaxadv.configs.experiments import (
    activation,
    adversary,
    augmentation,
    best,
    curricula,
    model_size,
    optimizer,
    other_defences,
    randomness,
    synthetic,
    undefended,
    wide_resnet,
)

# The trainings by name, in the order of their runs.
TRAININGS: dict[str, Callable[[], ConfigDict]] = {
    "net_natural": undefended.get_config,
    "net_curriculum": lambda: optimizer.get_config("adamw"),
    "bignet_standard": lambda: adversary.get_config("standard"),
    "bignet_curriculum": lambda: adversary.get_config("curriculum"),
    "net_sgd": lambda: optimizer.get_config("sgd"),
    "net_gelu": lambda: activation.get_config("gelu"),
    "bignet_natural_relu": lambda: activation.get_config("bignet_relu"),
    "bignet_natural": lambda: activation.get_config("bignet_gelu"),
    "biggernet_natural_relu": lambda: activation.get_config("biggernet_relu"),
    "biggernet_natural": lambda: activation.get_config("biggernet_gelu"),
    "net_standard": lambda: other_defences.get_config("none"),
    "biggernet_curriculum": lambda: model_size.get_config("biggernet"),
    "biggernet_flip": lambda: augmentation.get_config("biggernet_flip"),
    "biggernet_flip_crop_jitter": lambda: augmentation.get_config("biggernet_flip_crop_jitter"),
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
# At scale cpu, with three seeds.
_THREE_SEEDS = (
    *("net_curriculum", "net_sgd", "net_gelu", "net_standard", "net_fixed", "net_short_ramp"),
    *("net_long_ramp", "net_fixed_all", "net_trades", "net_n_fgsm", "net_half_real"),
    *("bignet_curriculum", "bignet_standard", "bignet_rse", "bignet_pni", "bignet_best"),
    *("bignet_natural_relu", "bignet_natural", "biggernet_natural_relu", "biggernet_natural"),
)
# Not run below scale full; a dry run estimates their time.
_FOR_GPU = ("vit_5_256", "wrn", "wrn_rse")
_SUITES = ("default", "plain", "study_nes", "autoattack")
_RESULTS = {
    "smoke": "runs/study_smoke/results",
    "cpu": "results/study",
    "full": "results/study_full",
}


def get_config(scale: str = "cpu") -> ConfigDict:
    """Return the config of the study at a scale: "smoke", "cpu" or "full"."""
    if scale not in _RESULTS:
        raise ValueError(f"unknown scale {scale!r}: use {', '.join(_RESULTS)}")
    config = ConfigDict()
    config.mode = "study"
    config.compilation_cache = True  # of XLA, on disk in ~/.cache/jaxadv
    config.data = ConfigDict({"data_dir": placeholder(str)})  # TFDS directory; None: its default
    config.study = ConfigDict()
    config.study.scale = scale
    config.study.only = ""  # names of experiments, separated by commas; "": all
    config.study.dry_run = False  # print the estimated cost of each run, and run nothing
    config.study.results = _RESULTS[scale]  # folder of the records and the page
    config.trainings = ConfigDict({name: _training(name, scale) for name in TRAININGS})
    config.seeds = ConfigDict({name: _seeds(name, scale) for name in TRAININGS})
    config.order = tuple(TRAININGS)  # a ConfigDict does not keep it
    config.not_planned = () if scale == "full" else _FOR_GPU
    config.suites = ConfigDict({suite: evaluate.get_config(suite) for suite in _SUITES})
    return config


def _training(name: str, scale: str) -> ConfigDict:
    if name == "gan" and scale == "smoke":
        return gan.get_config("digits")
    return TRAININGS[name]()


def _seeds(name: str, scale: str) -> tuple[int, ...]:
    one_seed = scale == "smoke" or (scale == "cpu" and name not in _THREE_SEEDS)
    return (0,) if one_seed or name == "gan" else (0, 1, 2)
