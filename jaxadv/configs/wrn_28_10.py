"""WideResNet-28-10 with synthetic images (Wang et al., 2023), the recipe of RobustBench's leaders.

    python run.py --config configs/wrn_28_10.py --config.data.synthetic.path=1m.npz

`1m.npz` holds the million images of an EDM diffusion model that the authors published, as the
arrays `image` and `label`. Published at eps 8/255: 92.44 % clean and 67.31 % under AutoAttack, with
20 million such images, larger batches and more epochs. Result and time here: not run at full size,
which needs several accelerators; docs/accelerators.md predicts the time.

The values are those of the authors' command for a million images: TRADES with beta 5, SGD with
Nesterov momentum, 400 epochs, each as many steps as the real images fill batches, 70 % of each
batch synthetic. Three things differ. The learning rate changes in each step, not in each epoch, and
rises from 0, not from a 25th of its peak. TRADES starts uniformly in the ball, not within 0.001 of
the clean image. The best checkpoint is chosen on the last 2 % of the train split, 1,000 images; the
authors hold out 1,024.
"""

from ml_collections import ConfigDict

from jaxadv.configs import attack_suites, trades


def get_config(data: str = "cifar10") -> ConfigDict:
    """Return the config for a source of data: "cifar10" or another."""
    config = trades.get_config(data)
    config.model.name = "dm_wideresnet_28_10"
    config.data.augmentation = "flip_crop"
    config.data.validation_fraction = 0.02
    config.data.synthetic.path = "1m.npz"
    config.data.synthetic.share = 0.7
    config.data.synthetic.label_smoothing = 0.1
    config.train.num_epochs = 400
    config.train.batch_size = 512
    config.train.trades_beta = 5.0
    config.train.label_smoothing = 0.1
    config.train.ema_decay = 0.995
    config.optimizer.name = "sgd"
    config.optimizer.nesterov = True
    config.optimizer.learning_rate = 0.2
    config.optimizer.weight_decay = 5e-4
    config.optimizer.warmup_epochs = 10.0
    config.evaluation.attacks = attack_suites.autoattack()
    return config
