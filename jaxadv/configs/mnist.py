"""MNIST in the L-inf ball of eps 0.1: PGD under a linear curriculum, on a small network.

    python run.py --config configs/mnist.py

TFDS's MNIST, which the first start downloads and prepares. For MNIST in an `.npz` file, such as the
one of Keras:

    python run.py --config configs/mnist.py:npz:mnist.npz

Expected result, trained on the first 17,435 images of MNIST: 98.6 % clean, 92.7 % under PGD-40 at
eps 0.1, 18.0 % at 0.2; 2 min of training and 2 min of evaluation on 2 cores of an Intel Xeon. See
results/models.md. On all 60,000 images: not run.
"""

from ml_collections import ConfigDict

from jaxadv.configs import curriculum

EPS = 0.1


def get_config(data: str = "mnist") -> ConfigDict:
    """Return the config for MNIST, or for another source of grayscale images."""
    config = curriculum.get_config(data)
    config.model.name = "mnist_cnn"
    config.train.num_epochs = 20
    config.attack.step_size = 0.03
    config.attack.eps_start = 0.02
    config.attack.eps_end = 0.12
    config.attack.num_steps_start = 5
    config.attack.num_steps_end = 10
    config.validation.eps = EPS
    config.validation.step_size = 0.02
    attacks = config.evaluation.attacks
    attacks.fgsm.eps = attacks.pgd40.eps = (0.05, EPS, 0.2)
    attacks.pgd20_restarts.eps = (EPS,)
    return config
