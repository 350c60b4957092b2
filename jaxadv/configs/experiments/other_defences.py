"""Defences without effect in the study: `net` after standard adversarial training.

    python run.py --config configs/experiments/other_defences.py:low_rank

The argument is none, spectral_norm, low_rank (projection to 625 principal components),
low_rank_learned (a learned projection, as in the study) or input_noise (sigma 0.1, at test time
only).

Expected results on CIFAR-10 (TFDS, images JPEG-compressed, full test split), clean and under PGD-40
at eps 0.03, on 2 cores of an AMD EPYC: none 46.2 and 23.5 % (mean of three seeds), 5 to 8 min;
one seed each: spectral_norm 10.0 and 10.0 % (it did not learn), 9 min; low_rank 51.2 and 23.1 %,
52 min; low_rank_learned 44.8 and 23.8 %, 50 min; input_noise 40.2 % clean and 24.4 % under PGD-10
with gradients averaged over 20 noise samples, 17 min. See results/study/index.md.
"""

from typing import Any

from ml_collections import ConfigDict

from jaxadv.configs import standard
from jaxadv.configs.experiments.variants import get_variant

VARIANTS: dict[str, dict[str, Any]] = {
    name: {"model.name": "net", "model.defence.name": name}
    for name in ("none", "spectral_norm", "low_rank", "input_noise")
}
VARIANTS["low_rank_learned"] = {**VARIANTS["low_rank"], "model.defence.low_rank.learned": True}
VARIANTS["input_noise"]["model.defence.input_noise.train"] = False


def get_config(variant: str = "low_rank") -> ConfigDict:
    """Return the training config of that defence."""
    return get_variant(VARIANTS, variant, standard.get_config)
