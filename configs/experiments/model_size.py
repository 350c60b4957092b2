"""Models of the study by size, each under its curriculum.

    python run.py --config configs/experiments/model_size.py:biggernet

The argument is net, bignet, biggernet, vit_3_128, vit_5_256 or wrn_13_10. Expected result and time:
see results/study/index.md.
"""

from ml_collections import ConfigDict

from configs.experiments import arms

MODELS = ("net", "bignet", "biggernet", "vit_3_128", "vit_5_256", "wrn_13_10")


def get_config(model: str = "bignet") -> ConfigDict:
    """Returns the config of that model."""
    return arms.get_config({name: {"model.name": name} for name in MODELS}, model)
