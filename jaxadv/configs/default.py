"""All keys of a training with their defaults; the other configs change some of them.

    python run.py --config configs/default.py

`jaxadv/config.py` has the values that each key may take.

The defaults are the study's curriculum, `configs/study_curriculum.py`, which has the expected
result and the time. Radii and step sizes are in units of the [0, 1] pixel range; `8 / 255` is a
valid value.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from jaxadv.configs import attack_suites


def get_config(data: str = "cifar10") -> ConfigDict:
    """Return the config for a source of data: "cifar10", "digits" or another."""
    config = ConfigDict()
    config.mode = "train"
    config.seed = 0
    config.compilation_cache = True  # of XLA, on disk in ~/.cache/jaxadv

    config.data = ConfigDict()
    # digits | a name of TFDS (cifar10, svhn_cropped, imagenette/160px-v2:1.0.0) | folder:DIR |
    # npz:FILE | huggingface:DIR; see docs/data.md.
    config.data.source = data
    config.data.data_dir = placeholder(str)  # TFDS directory; None: default of TFDS
    config.data.size = placeholder(int)  # images are resized and cropped to it; None: as stored
    config.data.channels = placeholder(int)  # 1 | 3: images are converted; None: as stored
    # True: images are read during training; None: if they do not fit into the memory of a device.
    config.data.streaming = placeholder(bool)
    config.data.test_fraction = 0.2  # share that becomes the test split if the source has none
    config.data.validation_fraction = 0.04  # share of the train split held out for validation
    # none | flip | flip_crop | flip_crop_jitter; None: flip if a mirrored image of the data set has
    # its class.
    config.data.augmentation = placeholder(str)
    config.data.augmentation = "none"

    # Synthetic images that replace a share of each batch: those that `config.mode=sample` of
    # configs/gan.py writes, or an .npz with the arrays image and label.
    config.data.synthetic = ConfigDict()
    config.data.synthetic.path = placeholder(str)  # folder or .npz
    config.data.synthetic.share = 0.0  # of each batch; 0: none
    config.data.synthetic.label_smoothing = 0.0  # of synthetic labels

    config.model = ConfigDict()
    # net | bignet | biggernet | wrn_<depth>_<width> | vit_<depth>_<width> | fastnet | smallnet, a
    # published architecture of docs/models.md, or the import path of a module of your own, such as
    # my_models:SmallCNN; see docs/training.md.
    config.model.name = "bignet"
    config.model.activation = placeholder(str)  # relu | gelu | silu; None: default of the model
    config.model.dropout = placeholder(float)  # rate in [0, 1); None: default of the architecture
    config.model.options = ConfigDict()  # further keyword arguments of the module

    # none | pni | rse | input_noise | low_rank | dropout | spectral_norm. Only the options of the
    # named defence are used; see jaxadv/models/defences.py.
    config.model.defence = ConfigDict()
    config.model.defence.name = "none"
    config.model.defence.pni = ConfigDict({"frozen_sigma": False})
    config.model.defence.rse = ConfigDict()
    config.model.defence.rse.sigma_init = 0.2  # noise before the first convolution
    config.model.defence.rse.sigma_inner = 0.1  # noise before the other convolutions
    config.model.defence.rse.before_norm = False  # wide ResNet: as in the study
    config.model.defence.input_noise = ConfigDict({"sigma": 0.1, "train": True})
    config.model.defence.low_rank = ConfigDict({"rank": 625, "learned": False})

    # Weights to start from: a file of PyTorch, safetensors or DeepMind, a folder of Orbax, or the
    # workdir of a run; see docs/models.md. None: random weights.
    config.init_from = placeholder(str)

    config.train = ConfigDict()
    config.train.num_epochs = 10
    config.train.batch_size = 64  # over all devices together
    # Precision of matrix products and convolutions: float32 | tensorfloat32 | bfloat16. bfloat16 is
    # the fastest: TF32 on a GPU, bfloat16 on a TPU. CPUs compute in float32.
    config.train.precision = "bfloat16"
    config.train.ema_decay = 0.0  # moving average of the weights (EMA); 0: none
    config.train.swa_start = placeholder(
        float
    )  # epoch after which they are averaged (SWA); None: never
    config.train.label_smoothing = 0.0  # of the labels of real images
    config.train.cutmix = 0.0  # probability that two images exchange a box; 0: no CutMix
    config.train.loss = "cross_entropy"  # cross_entropy | trades | mart | ikl
    config.train.trades_beta = 6.0  # weight of the KL divergence in TRADES
    config.train.mart_weight = 5.0  # lambda of MART
    config.train.ikl_alpha = 4.0  # weight of the cross entropy in IKL
    config.train.ikl_beta = 20.0  # weight of the squared error in IKL
    config.train.awp_gamma = 0.0  # adversarial weight perturbation, relative size; 0: none
    config.train.gradient_alignment = 0.0  # weight of the GradAlign regulariser; 0: none

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # adamw | muon | sgd
    config.optimizer.learning_rate = 1e-3  # peak of the schedule
    config.optimizer.schedule = "constant"  # constant | cosine | linear
    config.optimizer.warmup_epochs = 0.0  # linear warm-up from 0, before the schedule
    config.optimizer.weight_decay = 0.01
    config.optimizer.momentum = 0.9  # of sgd
    config.optimizer.nesterov = False  # of sgd

    # The attack in training. Start and end values define a linear curriculum over epochs; equal
    # values define a fixed attack. Fraction 0 is natural training.
    config.attack = ConfigDict()
    config.attack.name = "pgd"  # pgd | n_fgsm (one step, initial noise of twice the radius)
    config.attack.fraction = 0.5  # of each batch replaced by adversarial examples
    config.attack.norm = "linf"  # linf | l2 | l1
    config.attack.loss = "cross_entropy"  # cross_entropy | margin | kl (TRADES, IKL)
    config.attack.random_start = False
    config.attack.step_size = 0.01
    config.attack.eps_start = 0.01
    config.attack.eps_end = 0.1
    config.attack.num_steps_start = 10
    config.attack.num_steps_end = 40

    # PGD on the held-out images after each epoch, which selects the best checkpoint.
    config.validation = ConfigDict()
    config.validation.eps = 0.03
    config.validation.step_size = 0.01
    config.validation.num_steps = 10

    # The final evaluation. Each named attack gives one result per eps; see attack_suites.py.
    config.evaluation = ConfigDict()
    config.evaluation.batch_size = 128 if data == "digits" else 512  # over all devices together
    config.evaluation.split = "test"  # test | held_out (the validation part of the train split)
    config.evaluation.num_examples = placeholder(int)  # first n of the split; None: all
    # As train.precision, for attacks only: low precision overestimates robustness. Scores: float32.
    config.evaluation.precision = "float32"
    config.evaluation.num_passes = 50  # forward passes per image of a model with a random defence
    config.evaluation.attacks = attack_suites.standard()
    config.evaluation.export = ()  # attacks whose images are written, as floats and as bytes
    config.evaluation.fail_on_warnings = False  # exit with code 3 after a warning, for CI

    # Randomised smoothing of a model with Gaussian input noise (Cohen et al., 2019).
    config.evaluation.certification = ConfigDict()
    config.evaluation.certification.num_examples = 0  # first n of the split; 0: none
    config.evaluation.certification.num_selection = 100  # noise samples that select the class
    config.evaluation.certification.num_estimation = 100_000  # that bound its probability
    config.evaluation.certification.failure = 0.001  # probability that a certificate is wrong
    config.evaluation.certification.radii = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5)  # L2
    return config
