"""Configs of short trainings on the digits, of a classifier and of a GAN."""

from jaxadv.configs import curriculum, gan


def tiny_config(**changes):
    """Return the config of a classifier; it uses all features of training."""
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


def tiny_gan_config(**changes):
    """Return the config of a GAN of two rounds."""
    config = gan.get_config("digits")
    config.data.augmentation = "none"
    config.update_from_flattened_dict(
        {
            "latent_size": 4,
            "generator.features": 2,
            "discriminator.features": 2,
            "discriminator.num_blocks": 2,
            "train.num_steps": 4,
            "train.steps_per_round": 2,
            "train.batch_size": 8,
            "evaluator.num_samples": 80,
            "evaluator.classifier.train.num_epochs": 1,
            "sampling.num_images": 50,
            "sampling.batch_size": 32,
            "sampling.shard_size": 20,
            **changes,
        }
    )
    return config
