"""The study's randomness table: BigNet, plain or with a random defence, adversarially trained.

    python run.py --config configs/experiments/randomness.py:rse

The argument is none, pni, pni_frozen (as the study had it), rse, dropout or input_noise. Standard
adversarial training for 10 epochs, half of each batch attacked at eps .03 with step .008, then
attacks that average over the noise; the plain model meets as many gradients.

Mean of three seeds, PGD-10 at eps .03 with one noise sample, then 20: plain 26.0 % (25.7 % under
PGD-200), PNI 26.4 and 25.9 %, RSE 32.0 and 24.6 %; 7 to 12 min of training and 4 to 20 min of
evaluation on 2 cores of an Intel Xeon, shared. dropout, input_noise: not run. See
results/randomness.md.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import batteries, standard
from configs.experiments import arms

ARMS: dict[str, dict[str, Any]] = {
    "none": {},
    "pni": {"model.defence.name": "pni"},
    "pni_frozen": {"model.defence.name": "pni", "model.defence.pni.frozen_sigma": True},
    "rse": {"model.defence.name": "rse"},
    "dropout": {"model.defence.name": "dropout", "model.dropout": 0.3},
    "input_noise": {"model.defence.name": "input_noise"},
}


def get_config(arm: str = "none") -> ConfigDict:
    """Returns the config for BigNet with that defence on CIFAR-10."""
    config = arms.get_config(ARMS, arm, standard.get_config)
    if arm == "none":
        config.evaluation.attacks = batteries.plain()
    return config
