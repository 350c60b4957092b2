"""PGD adversarial training (Madry et al., 2018): every image is attacked at eps 8/255.

    python run.py --config configs/pgd.py

Expected result of BigNet on CIFAR-10 (TFDS, images JPEG-compressed, full test split): 52.6 % clean,
32.5 % under PGD-40 at eps 0.03, 30.4 % under PGD-20 on the margin loss with 5 restarts (best
checkpoint, epoch 23). The last checkpoint has 53.2 % clean and 32.7 % under PGD-40. One seed;
33 min of training and 8 min of evaluation on 2 cores of an Intel Xeon. See
results/pgd/evaluation.json.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from jaxadv.configs import default


def get_config(data: str = "cifar10") -> ConfigDict:
    """Return the config for a source of data: "cifar10", "digits" or another."""
    config = default.get_config(data)
    config.data.augmentation = placeholder(str)  # None: the default of the data set
    config.train.num_epochs = 30
    config.train.batch_size = 128
    config.optimizer.schedule = "cosine"
    config.attack.fraction = 1.0
    config.attack.random_start = True
    config.attack.eps_start = config.attack.eps_end = 8 / 255
    config.attack.num_steps_start = config.attack.num_steps_end = 10
    config.attack.step_size = 2 / 255
    config.validation.eps = 8 / 255
    config.validation.step_size = 2 / 255
    return config
