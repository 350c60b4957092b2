"""Evaluation of a trained classifier by an attack suite; see configs/attack_suites.py.

The suite is the argument of the config. The run needs only the workdir of the training.

    python run.py --config configs/evaluate.py --config.checkpoint=runs/curriculum

The standard suite, which also ends each training. 8 min for BigNet on the 10,000 test images of
CIFAR-10, on 2 cores of an AMD EPYC; measured before the suite had random_search and pgd_unbounded.

    python run.py --config configs/evaluate.py:eot --config.checkpoint=runs/randomness_rse \
        --config.evaluation.num_examples=1000

Gradients averaged over up to 50 noise samples, for models with a random defence. BigNet with RSE
has 31.1 % on 1,000 images with one noise sample and 24.1 % with 20; 4 min on 2 cores of an Intel
Xeon. `:noise` is the suite for random defences, `:plain` its counterpart for deterministic models.

    python run.py --config configs/evaluate.py:autoattack --config.checkpoint=runs/curriculum \
        --config.evaluation.num_examples=1000

AutoAttack and PGD-40 in the L-inf ball of eps 8/255. `configs/curriculum.py` has 26.2 % on the
first 1,000 images, and 31.8 % under PGD-40; 12 min on 2 cores of an AMD EPYC with other load.
`:autoattack_l2` is the same at L2 eps 0.5, `:rand` is AutoAttack's version for random defences.
`:distance` is FAB without early stopping on the first 1,000 images: not run. See
results/autoattack.md.

    python run.py --config configs/evaluate.py:blackbox --config.checkpoint=runs/nes/standard

Black-box attacks on the first 1,000 images. `net` after standard adversarial training has 9.1 %
under NES and 0.5 % under Square; 13 min. `:study_nes` is the study's NES at its five query budgets,
2 min. `:noisy_nes` varies sigma and the number of samples of NES on a model with a random defence,
8 min for BigNet with RSE. See results/nes.md.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from jaxadv.configs import attack_suites, default

SUITES = {
    "default": attack_suites.standard,
    "noise": attack_suites.noise,
    "plain": attack_suites.plain,
    "eot": attack_suites.eot,
    "autoattack": attack_suites.autoattack,
    "autoattack_l2": attack_suites.autoattack_l2,
    "rand": attack_suites.rand,
    "distance": attack_suites.distance,
    "blackbox": attack_suites.blackbox,
    "study_nes": attack_suites.study_nes,
    "noisy_nes": attack_suites.noisy_nes,
}
NUM_EXAMPLES = {
    "rand": 1000,
    "distance": 1000,
    "blackbox": 1000,
    "study_nes": 200,
    "noisy_nes": 200,
}


def get_config(suite: str = "default") -> ConfigDict:
    """Return the config of an evaluation by that suite."""
    if suite not in SUITES:
        raise ValueError(f"unknown attack suite {suite!r}: use one of {', '.join(SUITES)}")
    config = ConfigDict()
    config.mode = "evaluate"
    config.checkpoint = placeholder(str)  # workdir of a training
    config.which = "best"  # best (on the held-out images) | last
    config.compilation_cache = True  # of XLA, on disk in ~/.cache/jaxadv
    config.data = ConfigDict()
    config.data.source = placeholder(str)  # the data at another path; None: as in the training
    config.data.data_dir = placeholder(str)  # TFDS directory; None: as in the training
    config.evaluation = default.get_config().evaluation
    config.evaluation.attacks = SUITES[suite]()
    config.evaluation.num_examples = NUM_EXAMPLES.get(suite)
    return config
