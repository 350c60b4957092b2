"""The study's randomness table: BigNet, plain or with a random defence, adversarially trained.

    python run.py --config configs/randomness.py:rse

The argument is none, pni, rse, dropout or input_noise. Standard adversarial training for 10
epochs, half of each batch attacked at eps .03 with step .008, then attacks that average over the
noise; the plain model meets as many gradients.

Expected result and time: not run.
"""

from ml_collections import ConfigDict

from configs import default, standard


def get_config(defence: str = "none") -> ConfigDict:
    """Returns the config for BigNet with that defence on CIFAR-10."""
    if defence not in ("none", "pni", "rse", "dropout", "input_noise"):
        raise ValueError(f"{defence!r} is no random defence: see configs/randomness.py")
    config = standard.get_config()
    config.model.defence.name = defence
    if defence == "dropout":
        config.model.dropout = 0.3
    noisy = defence != "none"
    config.evaluation.attacks = default.noise_battery() if noisy else default.plain_battery()
    return config
