"""Every key of a training run, once, with its default; the other configs are differences.

A budget (eps, step_size) is in units of the [0, 1] pixel range; 8/255 is written `8 / 255`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import batteries


def get_config(data: str = "cifar10") -> ConfigDict:
    """Returns the complete config of a training run on "cifar10" or "digits"."""
    config = ConfigDict()
    config.mode = "train"  # train | evaluate
    config.seed = 0
    config.compilation_cache = True  # keep what was compiled for the next start, in ~/.cache/jaxadv

    config.data = ConfigDict()
    config.data.name = data  # cifar10 | digits
    config.data.data_dir = placeholder(str)  # TFDS directory; None: TFDS's own default
    config.data.validation_fraction = 0.04  # of the train split, held out to choose the best
    config.data.augmentation = "none"  # none | flip | flip_crop_jitter

    # Images of a generator beside the real ones, as `config.mode=sample` of configs/gan.py writes
    # them, or an .npz with image and label.
    config.data.synthetic = ConfigDict()
    config.data.synthetic.path = placeholder(str)  # folder or .npz
    config.data.synthetic.share = 0.0  # of each batch
    config.data.synthetic.label_smoothing = 0.0  # of their labels

    config.model = ConfigDict()
    config.model.name = "bignet"  # net | bignet | biggernet | wrn_<depth>_<width> | vit_<...>
    config.model.activation = placeholder(str)  # relu | gelu; None: the architecture's own
    config.model.dropout = placeholder(float)  # rate in [0, 1); None: the architecture's own

    # The defence named is used, with the options of its name; see jaxadv/models/defences.py.
    config.model.defence = ConfigDict()
    config.model.defence.name = "none"  # none | a name below | dropout | spectral_norm
    config.model.defence.pni = ConfigDict({"granularity": "layer", "frozen_sigma": False})
    config.model.defence.rse = ConfigDict()
    config.model.defence.rse.sigma_init = 0.2  # before the first convolution
    config.model.defence.rse.sigma_inner = 0.1  # before the others
    config.model.defence.rse.before_norm = False  # in a wide ResNet, as in the study
    config.model.defence.input_noise = ConfigDict({"sigma": 0.1, "train": True})
    config.model.defence.low_rank = ConfigDict({"rank": 625, "learned": False})

    config.train = ConfigDict()
    config.train.num_epochs = 10
    config.train.batch_size = 64  # over all devices together
    # Of matrix products and convolutions: float32 | tensorfloat32 | bfloat16, as JAX understands
    # them. The last is the fastest: TF32 on a GPU, bfloat16 on a TPU; a CPU computes in float32.
    config.train.precision = "bfloat16"
    config.train.ema_decay = 0.0  # of the weights; 0: evaluate the raw weights
    config.train.loss = "cross_entropy"  # cross_entropy, of the mixed batch | trades
    config.train.trades_beta = 6.0  # weight of the divergence in the loss of TRADES

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # adamw | sgd
    config.optimizer.learning_rate = 1e-3  # the peak of the schedule
    config.optimizer.schedule = "constant"  # constant | cosine | piecewise
    config.optimizer.warmup_epochs = 0.0  # linear warm-up from 0 before the schedule
    config.optimizer.weight_decay = 0.01
    config.optimizer.momentum = 0.9  # of sgd

    # The adversary of training. Equal start and end make it fixed; fraction 0 is natural training.
    config.attack = ConfigDict()
    config.attack.name = "pgd"  # pgd | n_fgsm, which takes one step, from noise of twice the radius
    config.attack.fraction = 0.5  # of each batch that is replaced by adversarial examples
    config.attack.norm = "linf"  # linf | l2
    config.attack.loss = "cross_entropy"  # cross_entropy | margin | kl, that of TRADES
    config.attack.random_start = False
    config.attack.step_size = 0.01
    config.attack.eps_start = 0.01
    config.attack.eps_end = 0.1
    config.attack.num_steps_start = 10
    config.attack.num_steps_end = 40

    # After each epoch, on the held-out part of the train split: chooses the best checkpoint.
    config.validation = ConfigDict()
    config.validation.eps = 0.03
    config.validation.step_size = 0.01
    config.validation.num_steps = 10

    # The final evaluation: one attack for each name, one result for each eps.
    config.evaluation = ConfigDict()
    config.evaluation.batch_size = 128 if data == "digits" else 512  # over all devices together
    config.evaluation.split = (
        "test"  # test | held_out, those of the train split that are not learned
    )
    config.evaluation.num_examples = placeholder(int)  # the first n; None: the whole split
    # Likewise, of the attacks; a blunt one would flatter the model. Scores are taken in float32.
    config.evaluation.precision = "float32"
    config.evaluation.num_passes = 50  # of a stochastic model over each image
    config.evaluation.attacks = batteries.standard()
    config.evaluation.export = ()  # names of attacks whose images are written, as floats and bytes
    config.evaluation.fail_on_warnings = False  # exit with 3 where a warning is raised, for CI

    # Randomised smoothing of a model with Gaussian noise on its images (Cohen et al. 2019).
    config.evaluation.certification = ConfigDict()
    config.evaluation.certification.num_examples = 0  # the first n; 0: certify nothing
    config.evaluation.certification.num_selection = 100  # passes that choose the class
    config.evaluation.certification.num_estimation = 100_000  # passes that bound its probability
    config.evaluation.certification.failure = 0.001  # probability that a certificate is wrong
    config.evaluation.certification.radii = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5)  # L2
    return config
