"""A conditional GAN, its samples, and their evaluation by a classifier.

    python run.py --config configs/gan.py:digits

Expected result on scikit-learn's digits: a classifier trained on real digits classifies 98.1 % of
the samples as their class; 4 min on 2 cores of an AMD EPYC, including the classifier's training.
See results/synthetic.md.

    python run.py --config configs/gan.py

CIFAR-10, for a GPU: not run. 50,000 steps of 365 GFLOP, 1.8e16 in total. An H100 would take 8 to
20 minutes if kernels of this size reach 2 to 5 % of its bfloat16 peak. results/synthetic.md has the
result of a smaller GAN on 2 cores.

    python run.py --config configs/gan.py:digits --config.mode=sample --workdir runs/gan_digits

Write labelled images of the trained generator to `synthetic` in the workdir, for
`--config.data.synthetic.path` of a training, and evaluate them; 40 s for 10,000 digits.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from jaxadv.configs import natural


def get_config(data: str = "cifar10") -> ConfigDict:
    """Return the config for a source of data: "cifar10", "digits" or another."""
    config = ConfigDict()
    config.mode = "gan"  # gan | sample
    config.seed = 0
    config.compilation_cache = True  # of XLA, on disk in ~/.cache/jaxadv

    config.data = natural.get_config(data).data
    del config.data.synthetic
    config.data.augmentation = placeholder(str)  # None: the default of the data set
    config.latent_size = 128

    config.generator = ConfigDict()
    config.generator.features = 64  # of the last block, doubled in each block before it
    config.generator.num_blocks = 3  # each doubles the resolution, from 4 x 4

    config.discriminator = ConfigDict()
    config.discriminator.features = 64  # of the first block; later blocks have up to four times
    config.discriminator.num_blocks = 4

    config.train = ConfigDict()
    config.train.num_steps = 50_000  # of the generator
    config.train.steps_per_round = 2500  # between checkpoints
    config.train.batch_size = 64  # over all devices together
    config.train.num_discriminator_steps = 2  # per generator step
    config.train.ema_decay = 0.9999  # of the generator's weights
    config.train.mixed_precision = True  # bfloat16 on GPUs and TPUs, float32 on CPUs

    config.optimizer = ConfigDict()  # Adam
    config.optimizer.generator_learning_rate = 1e-4
    config.optimizer.discriminator_learning_rate = 2e-4
    config.optimizer.beta1 = 0.0
    config.optimizer.beta2 = 0.9

    # The classifier that evaluates the samples: trained first, or taken from another run.
    config.evaluator = ConfigDict()
    config.evaluator.checkpoint = placeholder(str)  # workdir of a run; None: train `classifier`
    config.evaluator.num_samples = 2000  # evaluated after each round
    config.evaluator.classifier = natural.get_config(data)
    del config.evaluator.classifier.compilation_cache

    config.sampling = ConfigDict()
    config.sampling.path = placeholder(str)  # output folder; None: `synthetic` in the workdir
    config.sampling.num_images = 10_000
    config.sampling.which = "best"  # best (by the Fréchet distance to the train split) | last
    config.sampling.sampler = "prior"  # prior | ddls
    config.sampling.ddls = ConfigDict({"step_size": 0.01, "num_steps": 50})
    config.sampling.truncation = placeholder(float)  # latents beyond it are redrawn; None: off
    config.sampling.min_probability = 0.0  # of its class by the evaluator; others are dropped
    config.sampling.labels = "intended"  # intended | judged (the class that the evaluator predicts)
    config.sampling.batch_size = 256  # over all devices together
    config.sampling.shard_size = 10_000  # images per file
    config.sampling.format = "shards"  # shards | npz (also writes PATH.npz)

    if data == "digits":
        config.update_from_flattened_dict(
            {
                "generator.features": 8,
                "discriminator.features": 16,
                "discriminator.num_blocks": 3,
                "train.num_steps": 600,
                "train.steps_per_round": 150,
                "train.num_discriminator_steps": 1,
                "train.ema_decay": 0.99,
                "optimizer.generator_learning_rate": 1e-3,
                "optimizer.discriminator_learning_rate": 1e-3,
                "optimizer.beta1": 0.5,
                "evaluator.num_samples": 1000,
                "evaluator.classifier.model.name": "net",
                "evaluator.classifier.train.num_epochs": 6,
            }
        )
    return config
