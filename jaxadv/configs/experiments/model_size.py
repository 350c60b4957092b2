"""Model size: the study's models under its curriculum.

    python run.py --config configs/experiments/model_size.py:biggernet

The argument is net, bignet, biggernet, vit_3_128, vit_5_256 or wrn_13_10. Expected results on
CIFAR-10 (TFDS, images JPEG-compressed, full test split), clean and under PGD-40 at eps 0.03, on 2
cores of an AMD EPYC: net 42.4 and 27.4 %, 13 to 15 min; bignet 52.1 and 32.2 %, 16 to 32 min (means
of three seeds); biggernet 55.6 and 31.8 %, 106 min (one seed); vit_3_128 51.7 and 33.4 % on the
first 1,000 images, 140 min beside other load (one seed). The other models: not run; estimated times
are in results/study/index.md.
"""

from ml_collections import ConfigDict

from jaxadv.configs.experiments.variants import get_variant

MODELS = ("net", "bignet", "biggernet", "vit_3_128", "vit_5_256", "wrn_13_10")
VARIANTS = {name: {"model.name": name} for name in MODELS}


def get_config(model: str = "bignet") -> ConfigDict:
    """Return the training config of that model."""
    return get_variant(VARIANTS, model)
