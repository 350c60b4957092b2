"""Standard and curriculum adversarial training of BigNet for 10 epochs, as in the study.

    python run.py --config configs/experiments/adversary.py:standard

The argument is standard or curriculum. `standard` attacks at eps 0.03 with 10 steps of 0.008. The
curriculum ends at about three times that eps and takes about twice the gradients; curricula.py has
curricula of equal cost.

Expected results on CIFAR-10 (TFDS, images JPEG-compressed, full test split, mean of three seeds):
standard 57.1 % clean, 25.0 % under PGD-40 at eps 0.03 and 21.0 % under AutoAttack (1,000 images),
18 min on 2 cores of an AMD EPYC or 9 to 11 min on one with later code; curriculum 52.1, 32.2 and
27.2 %, 25 min or 16 to 17 min. See results/study/index.md.
"""

from ml_collections import ConfigDict

from jaxadv.configs import standard, study_curriculum
from jaxadv.configs.experiments.variants import evaluate_corrected

VARIANTS = {"standard": standard.get_config, "curriculum": study_curriculum.get_config}


def get_config(variant: str = "curriculum") -> ConfigDict:
    """Return the config of that training."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    return evaluate_corrected(VARIANTS[variant]())
