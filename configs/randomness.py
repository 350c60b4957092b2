"""The study's randomness table: BigNet, plain or with a random defence, adversarially trained.

    python run.py --config configs/randomness.py:rse

The argument is none, pni, rse, dropout or input_noise. Standard adversarial training for 10
epochs, half of each batch attacked at eps .03 with step .008, then attacks that average over the
noise; the plain model meets as many gradients.

One seed, PGD-10 at eps .03 with one noise sample, then 20: plain 26.9 % (26.6 % under PGD-200),
PNI 26.2 and 25.5 %, RSE 32.5 and 24.2 %; 15 to 27 min of training and 12 to 23 min of evaluation
on 2 cores of an AMD EPYC, shared. dropout, input_noise: not run. See results/randomness.md.
"""

from ml_collections import ConfigDict

from configs import batteries, standard


def get_config(defence: str = "none") -> ConfigDict:
    """Returns the config for BigNet with that defence on CIFAR-10."""
    if defence not in ("none", "pni", "rse", "dropout", "input_noise"):
        raise ValueError(f"{defence!r} is no random defence: see configs/randomness.py")
    config = standard.get_config()
    config.model.defence.name = defence
    if defence == "dropout":
        config.model.dropout = 0.3
    noisy = defence != "none"
    config.evaluation.attacks = batteries.noise() if noisy else batteries.plain()
    return config
