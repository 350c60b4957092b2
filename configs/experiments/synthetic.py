r"""Images of a conditional GAN in the batches of standard adversarial training of `net`.

    python run.py --config configs/experiments/synthetic.py:half \
        --config.data.synthetic.path=runs/gan/synthetic

The argument is none, fifth or half: their share of each batch. Expected result and time: see
results/study/index.md.
"""

from ml_collections import ConfigDict

from configs import standard
from configs.experiments import arms

SHARES = {"none": 0.0, "fifth": 0.1875, "half": 0.5}  # of 64 images, on any number of devices


def get_config(arm: str = "half") -> ConfigDict:
    """Returns the config of that arm."""
    changes = {
        name: {"model.name": "net", "data.synthetic.share": share} for name, share in SHARES.items()
    }
    return arms.get_config(changes, arm, standard.get_config)
