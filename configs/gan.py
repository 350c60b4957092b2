"""A conditional GAN, its samples, and what a judge says of them.

    python run.py --config configs/gan.py:digits

On scikit-learn's digits: a judge that was trained on real digits recognises 98.1 % of the samples;
4 min on 2 cores of an AMD EPYC, the judge's training included. See results/synthetic.md.

    python run.py --config configs/gan.py

On CIFAR-10, for a GPU: 50,000 steps of 365 GFLOP, 1.8e16 in all. Not run; at the 2 to 5 % of its
bfloat16 peak that kernels so small may reach, an H100 would take 8 to 20 minutes. What a smaller
one comes to on 2 cores stands in results/synthetic.md.

    python run.py --config configs/gan.py:digits --config.mode=sample --workdir runs/gan_digits

Writes labelled images of the trained generator to the folder `synthetic` of its workdir, which
`--config.data.synthetic.path` of a training config reads, and has them judged; 40 s for 10,000 of
the digits.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import natural


def get_config(data: str = "cifar10") -> ConfigDict:
    """Returns the config for "cifar10" or "digits"."""
    config = ConfigDict()
    config.mode = "gan"  # gan | sample
    config.seed = 0
    config.compilation_cache = True  # keep what was compiled for the next start, in ~/.cache/jaxadv

    config.data = natural.get_config(data).data
    del config.data.synthetic
    config.data.augmentation = "none" if data == "digits" else "flip"
    config.latent_size = 128

    config.generator = ConfigDict()
    config.generator.features = 64  # of the last block; each before it has twice as many
    config.generator.num_blocks = 3  # that double the side, from 4
    config.generator.attention = False

    config.discriminator = ConfigDict()
    config.discriminator.features = 64  # of the first block; the later ones have up to four times
    config.discriminator.num_blocks = 4
    config.discriminator.attention = False

    config.train = ConfigDict()
    config.train.num_steps = 50_000  # of the generator
    config.train.steps_per_round = 2500  # between two checkpoints
    config.train.batch_size = 64  # over all devices together
    config.train.num_discriminator_steps = 2  # for each step of the generator
    config.train.ema_decay = 0.9999  # of the generator's weights
    config.train.mixed_precision = True  # bfloat16 on a GPU or TPU; a CPU computes in float32

    config.optimizer = ConfigDict()  # Adam
    config.optimizer.generator_learning_rate = 1e-4
    config.optimizer.discriminator_learning_rate = 2e-4
    config.optimizer.beta1 = 0.0
    config.optimizer.beta2 = 0.9

    # The classifier that judges the samples: one that is trained first, or that of another run.
    config.judge = ConfigDict()
    config.judge.checkpoint = placeholder(str)  # workdir of a run; None: trained as follows
    config.judge.num_samples = 2000  # judged after each round
    config.judge.classifier = natural.get_config(data)
    del config.judge.classifier.compilation_cache

    config.sampling = ConfigDict()
    config.sampling.path = placeholder(str)  # folder to write; None: synthetic in the workdir
    config.sampling.num_images = 10_000
    config.sampling.which = "best"  # best (by the distance to the train split) | last
    config.sampling.sampler = "prior"  # prior | ddls
    config.sampling.ddls = ConfigDict({"step_size": 0.01, "num_steps": 50})
    config.sampling.truncation = placeholder(float)  # latents beyond it are drawn again
    config.sampling.min_probability = 0.0  # of its class by the judge; samples below are dropped
    config.sampling.labels = "intended"  # intended | judged, the class that the judge sees
    config.sampling.batch_size = 256  # over all devices together
    config.sampling.shard_size = 10_000  # images of a file
    config.sampling.format = "shards"  # shards | npz, beside them a file PATH.npz

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
                "judge.num_samples": 1000,
                "judge.classifier.model.name": "net",
                "judge.classifier.train.num_epochs": 6,
            }
        )
    return config
