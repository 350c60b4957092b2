"""The study's randomness table: BigNet, plain or with a random defence, adversarially trained.

    python run.py --config configs/randomness.py:rse

The argument is none, pni, rse, dropout or input_noise. Standard adversarial training for 10
epochs, half of each batch attacked at eps .03 with step .008, then attacks that average over the
noise; the plain model meets as many gradients.

Mean of three seeds, PGD-10 at eps .03 with one noise sample, then 20: plain 26.0 % (25.7 % under
PGD-200), PNI 26.4 and 25.9 %, RSE 32.0 and 24.6 %; 7 to 12 min of training and 4 to 20 min of
evaluation on 2 cores of an Intel Xeon, shared. dropout, input_noise: not run. See
results/randomness.md.
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
