"""Random defences: BigNet after standard adversarial training.

    python run.py --config configs/experiments/randomness.py:rse

The argument is none, pni, pni_frozen (the study's variant), rse, dropout or input_noise. Training
takes 10 epochs and attacks half of each batch at eps 0.03 with steps of 0.008. The evaluation
averages gradients over the noise; the deterministic model meets as many gradients.

Expected results on CIFAR-10 (TFDS, images JPEG-compressed, full test split, mean of three seeds)
under PGD-10 at eps 0.03 with 1 and with 20 noise samples: pni 26.4 and 26.1 %, rse 32.5 and 24.9 %;
none has 25.6 % under PGD-10 and 25.3 % under PGD-200. 16 to 45 min on 2 shared cores of an Intel
Xeon or an AMD EPYC. pni_frozen, one seed: 26.6 and 26.2 %. dropout, input_noise: not run. See
results/study/index.md, and results/randomness.md for more attacks.
"""

from typing import Any

from ml_collections import ConfigDict

from jaxadv.configs import attack_suites, standard
from jaxadv.configs.experiments.variants import get_variant

VARIANTS: dict[str, dict[str, Any]] = {
    "none": {},
    "pni": {"model.defence.name": "pni"},
    "pni_frozen": {"model.defence.name": "pni", "model.defence.pni.frozen_sigma": True},
    "rse": {"model.defence.name": "rse"},
    "dropout": {"model.defence.name": "dropout", "model.dropout": 0.3},
    "input_noise": {"model.defence.name": "input_noise"},
}


def get_config(variant: str = "none") -> ConfigDict:
    """Return the training config of BigNet with that defence."""
    config = get_variant(VARIANTS, variant, standard.get_config)
    if variant == "none":
        config.evaluation.attacks = attack_suites.plain()
    return config
