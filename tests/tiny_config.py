"""A config of a short training on the digits that uses all features of training."""

from configs import curriculum


def tiny_config(**changes):
    config = curriculum.get_config("digits")
    config.model.name = "net"
    config.model.dropout = 0.2
    config.train.num_epochs = 3
    config.train.batch_size = 64
    config.data.augmentation = "flip"
    config.attack.num_steps_end = 2
    config.attack.fraction = 0.5
    config.validation.num_steps = 2
    config.evaluation.batch_size = 64
    config.evaluation.num_examples = 64
    config.evaluation.attacks = {
        "fgsm": {"attack": "fgsm", "eps": (0.03, 0.1)},
        "pgd": {"attack": "pgd", "eps": (0.03, 0.1), "step_size": 0.01, "num_steps": 5},
    }
    config.update_from_flattened_dict(changes)
    return config
