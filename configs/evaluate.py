"""A battery of attacks on a trained classifier, restored from the workdir of its run alone.

    python run.py --config configs/evaluate.py --config.checkpoint=runs/curriculum

The standard battery, which the runs of configs/curriculum.py and its like end with; 8 min for
BigNet on the 10,000 test images of CIFAR-10, on 2 cores of an AMD EPYC, before the last two of its
attacks were added.

    python run.py --config configs/evaluate.py:eot --config.checkpoint=runs/randomness_rse \
        --config.evaluation.num_examples=1000

A model with noise of its own, under gradients averaged over ever more draws of it: of BigNet with
RSE 1 draw leaves 31.1 % of 1,000 images, 20 leave 24.1 %; 4 min on 2 cores of an Intel Xeon.
`:noise` is a battery for such models, `:plain` the same for models without noise.

    python run.py --config configs/evaluate.py:autoattack --config.checkpoint=runs/curriculum \
        --config.evaluation.num_examples=1000

AutoAttack at L-inf 8/255, beside PGD-40: of the first 1,000 images 26.2 % stand, after PGD-40
31.8 %; 12 min on 2 cores of an AMD EPYC, beside other work. `:autoattack_l2` is the same at L2 .5,
`:rand` the version for models with noise, `:distance` FAB to its end on the first 1,000 images, not
run. See results/autoattack.md.

    python run.py --config configs/evaluate.py:blackbox --config.checkpoint=runs/nes/standard

Attacks that see outputs only, on the first 1,000 images: of `net` after standard adversarial
training NES leaves 9.1 %, Square 0.5 %; 13 min. `:study_nes` is the study's NES at its five
budgets, 2 min; `:noisy_nes` sweeps the estimate's samples and sigma on a model with noise of its
own, 8 min for BigNet with RSE. See results/nes.md.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import batteries, default

BATTERIES = {
    "default": batteries.standard,
    "noise": batteries.noise,
    "plain": batteries.plain,
    "eot": batteries.eot,
    "autoattack": batteries.autoattack,
    "autoattack_l2": batteries.autoattack_l2,
    "rand": batteries.rand,
    "distance": batteries.distance,
    "blackbox": batteries.blackbox,
    "study_nes": batteries.study_nes,
    "noisy_nes": batteries.noisy_nes,
}
NUM_EXAMPLES = {
    "rand": 1000,
    "distance": 1000,
    "blackbox": 1000,
    "study_nes": 200,
    "noisy_nes": 200,
}


def get_config(battery: str = "default") -> ConfigDict:
    """Returns the complete config of an evaluation with that battery."""
    if battery not in BATTERIES:
        raise ValueError(f"no battery {battery!r}: use one of {', '.join(BATTERIES)}")
    config = ConfigDict()
    config.mode = "evaluate"
    config.checkpoint = placeholder(str)  # workdir of a training run
    config.which = "best"  # best (on the held-out split) | last
    config.compilation_cache = True  # keep what was compiled for the next start, in ~/.cache/jaxadv
    config.data = ConfigDict()
    config.data.data_dir = placeholder(str)  # TFDS directory; None: as in the run
    config.evaluation = default.get_config().evaluation
    config.evaluation.attacks = BATTERIES[battery]()
    config.evaluation.num_examples = NUM_EXAMPLES.get(battery)
    return config
