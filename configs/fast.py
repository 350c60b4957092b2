"""A robust model in a minute of two cores: one-step attacks, Muon and a small network.

    python run.py --config configs/fast.py

"""

from ml_collections import ConfigDict

from configs import curriculum


def get_config(data: str = "cifar10") -> ConfigDict:
    """Return the config for a source of data: "cifar10", "digits" or another."""
    config = curriculum.get_config(data)
    config.model.name = "fastnet"
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 8e-3
    config.attack.name = "n_fgsm"
    config.attack.eps_start = config.attack.eps_end = config.attack.step_size = 0.025
    config.attack.num_steps_start = config.attack.num_steps_end = 1
    config.validation.num_steps = 5
    if data != "digits":
        config.train.num_epochs = 2
    return config
