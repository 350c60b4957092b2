r"""Synthetic images: `net` after standard adversarial training with samples of a conditional GAN.

    python run.py --config configs/experiments/synthetic.py:half \
        --config.data.synthetic.path=runs/gan/synthetic

The argument is none, or quarter or half, the share of synthetic images in each batch, or half_real:
the real images of half without synthetic ones, in as many steps.

Expected results on CIFAR-10 (TFDS, images JPEG-compressed, full test split), clean and under PGD-40
at eps 0.03: none 46.2 and 23.5 %, half_real 43.3 and 22.8 % (means of three seeds), quarter 45.5
and 21.6 %, half 42.0 and 18.2 % (one seed each, with the samples of a small GAN); 3 to 10 min on 2
cores of an AMD EPYC or an Intel Xeon. See results/study/index.md.
"""

from typing import Any

from ml_collections import ConfigDict

from jaxadv.configs import standard
from jaxadv.configs.experiments.variants import get_variant

VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"model.name": "net"},
    "quarter": {"model.name": "net", "data.synthetic.share": 0.25},
    "half": {"model.name": "net", "data.synthetic.share": 0.5},
    "half_real": {"model.name": "net", "train.batch_size": 32, "train.num_epochs": 5},
}


def get_config(variant: str = "none") -> ConfigDict:
    """Return the training config with that share."""
    return get_variant(VARIANTS, variant, standard.get_config)
