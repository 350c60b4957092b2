"""The experiments of the study, as its page shows them.

The trainings that they name are in configs/study.py.
"""

from jaxadv.study import claims, slides
from jaxadv.study.specification import (
    AUTOATTACK,
    CLEAN_AND_RADII,
    EVALUATION_MODE,
    NOISE,
    ORIGINAL_RADII,
    ORIGINAL_RADII_COARSE,
    Experiment,
)

# Topics, under which the page groups the claims.
_CURRICULUM = "Curriculum"
_RANDOM = "Random defences: PNI and RSE"
_OPTIMIZATION = "Optimizer and activation"
_ARCHITECTURE = "Architecture and size"
_DATA = "Augmentation and synthetic images"
_OTHER = "Other defences"
_ATTACKS = "Attacks"

_NOT_ON_SLIDES = "The slides have no values for this experiment."

UNDEFENDED = Experiment(
    "undefended",
    "Undefended network",
    _ATTACKS,
    "`net` after natural training, under PGD-40.",
    trainings={"net": "net_natural"},
    slides=slides.UNDEFENDED,
    original=ORIGINAL_RADII | {"0.01, steps of 0.02": ("study:pgd40_coarse/0.01",)},
    claims=claims.UNDEFENDED,
)

OPTIMIZER = Experiment(
    "optimizer",
    "SGD and AdamW",
    _OPTIMIZATION,
    "`net` under the study's curriculum: AdamW with weight decay 0.01 or SGD with momentum 0.9. "
    f"Both have learning rate 0.001, which was not tuned. {_NOT_ON_SLIDES}",
    trainings={"AdamW": "net_curriculum", "SGD": "net_sgd"},
    claims=claims.OPTIMIZER,
)

ACTIVATION = Experiment(
    "activation",
    "ReLU and GELU",
    _OPTIMIZATION,
    "BigNet and BiggerNet after 10 epochs of natural training. The BigNet with GELU has it in its "
    "dense layers and the BiggerNet in all layers, as in the study. `net` is trained under the "
    "study's curriculum. The slides say that GELU gains 5 to 7 points of clean accuracy on the "
    "larger models, and have no values.",
    trainings={
        "BigNet, ReLU": "bignet_natural_relu",
        "BigNet, GELU": "bignet_natural",
        "BiggerNet, ReLU": "biggernet_natural_relu",
        "BiggerNet, GELU": "biggernet_natural",
        "net, ReLU": "net_curriculum",
        "net, GELU": "net_gelu",
    },
    claims=claims.ACTIVATION,
)

ADVERSARY = Experiment(
    "adversary",
    "Standard and curriculum training",
    _CURRICULUM,
    "BigNet after 10 epochs at a fixed eps of 0.03 or under the study's curriculum, which takes "
    "128 gradients per training image instead of 60.",
    trainings={"standard": "bignet_standard", "curriculum": "bignet_curriculum"},
    claims=claims.ADVERSARY,
)

CURRICULA = Experiment(
    "curricula",
    "Curricula at equal cost",
    _CURRICULUM,
    "`net`; every training takes 60 gradient evaluations per training image, all from a random "
    "start. The fixed eps and the ramps take 10 steps on half of each batch for 10 epochs. “All” "
    "takes 11 steps on every image for 5 epochs; TRADES takes 10, because its update takes two "
    "gradients. N-FGSM takes one step on every image for 30 epochs: three times as many AdamW "
    "updates as the ramps, and six times as many as “all”. The long ramp leads to eps 0.1, three "
    "times the eps of the evaluation (flaw 6); its last epoch has 0.091.",
    trainings={
        "fixed 0.03": "net_fixed",
        "fixed 0.03, last": "net_fixed:last",
        "ramp to 0.03": "net_short_ramp",
        "ramp to 0.1": "net_long_ramp",
        "ramp to 0.1, last": "net_long_ramp:last",
        "fixed 0.03, all": "net_fixed_all",
        "TRADES": "net_trades",
        "N-FGSM": "net_n_fgsm",
    },
    claims=claims.CURRICULA,
)

MODEL_SIZE = Experiment(
    "model_size",
    "Model size",
    _ARCHITECTURE,
    "Each model under the study's curriculum for 10 epochs. vit_3_128 has one seed and 1,000 test "
    "images. The aggregated score is the sum of the accuracies at the six radii.",
    trainings={
        "net": "net_curriculum",
        "bignet": "bignet_curriculum",
        "biggernet": "biggernet_curriculum",
        "vit_3_128": "vit_3_128",
        "vit_5_256": "vit_5_256",
        "wrn_13_10": "wrn",
    },
    slides=slides.MODEL_SIZE,
    original=ORIGINAL_RADII | EVALUATION_MODE,
    plots=("eps", "parameters"),
    claims=claims.MODEL_SIZE,
)

AUGMENTATION = Experiment(
    "augmentation",
    "Augmentation",
    _DATA,
    "BiggerNet, as in the study, and BigNet under the study's curriculum for 10 epochs. The study "
    "trained for 60 epochs. Its values, and ours under the original protocol, are for attacks with "
    "steps of 0.02.",
    trainings={
        "BiggerNet, none": "biggernet_curriculum",
        "BiggerNet, flip": "biggernet_flip",
        "BiggerNet, flip, crop, jitter": "biggernet_flip_crop_jitter",
        "BigNet, none": "bignet_curriculum",
        "BigNet, flip": "bignet_flip",
        "BigNet, flip, crop, jitter": "bignet_flip_crop_jitter",
    },
    slides={f"BiggerNet, {name}": values for name, values in slides.AUGMENTATION.items()},
    original=ORIGINAL_RADII_COARSE,
    slides_note="10 epochs here, 60 in the study",
    claims=claims.AUGMENTATION,
)

RANDOMNESS = Experiment(
    "randomness",
    "Random defences",
    _RANDOM,
    "BigNet after standard adversarial training at eps 0.03 with steps of 0.008, with or without "
    "a random defence. “200 gradients” is PGD-10 with gradients averaged over 20 noise samples, "
    "and PGD-200 on the plain model. “One noise sample” is PGD-10 with steps of 0.008, as in "
    "training, under the corrected protocol, and 40 steps of 0.01 under the original protocol. "
    "Predictions of random models are the mean of 50 forward passes, and of 2 under the original "
    "protocol; the study has “several”. “Noise off” is a different model: the same weights "
    "without noise. The three plain models and seed 0 of PNI and RSE were trained again for "
    "this page, so that results/randomness.md has other values for them. Seeds 1 and 2 of PNI and "
    "RSE (†) are those of that page: other code and another machine, which round differently.",
    trainings={
        "plain": "bignet_standard",
        "PNI": "bignet_pni",
        "PNI, frozen": "bignet_pni_frozen",
        "RSE": "bignet_rse",
    },
    slides=slides.RANDOMNESS,
    columns={"clean": ("clean", "noise:clean"), **NOISE, "noise off": ("noise_off/0.03",)},
    original={"clean": ("study:clean",), "one noise sample": ("study:pgd40/0.03",)},
    plots=("bars",),
    claims=claims.RANDOMNESS,
)

WIDE_RESNET = Experiment(
    "wide_resnet",
    "Wide ResNet and RSE",
    _RANDOM,
    "Each model under the study's curriculum; wrn_7_1 for 2 epochs, which end at eps 0.055. “200 "
    "gradients” is PGD-10 with gradients averaged over 20 noise samples for RSE, and PGD-200 for "
    "plain models. “One noise sample” is PGD-10 with steps of 0.008. wrn_7_1 is evaluated on "
    "500 images.",
    trainings={
        "net": "net_curriculum",
        "wrn_7_1": "narrow_wrn",
        "wrn_7_1 with RSE": "narrow_wrn_rse",
        "wrn_13_10": "wrn",
        "wrn_13_10 with RSE": "wrn_rse",
    },
    slides=slides.WRN_RSE,
    columns=CLEAN_AND_RADII | NOISE,
    original=ORIGINAL_RADII | EVALUATION_MODE,
    claims=claims.WIDE_RESNET,
)

_QUERIES = ("500", "1000", "2000", "3000", "4000")
NES = Experiment(
    "nes",
    "NES over the query budget",
    _ATTACKS,
    "200 images, eps 0.1, sigma 0.001, 100 queries per gradient, steps of 0.02, no early "
    "stopping. The slides do not say how the study's `net` was trained. We attack our best "
    "checkpoints, on test images. PGD-40 takes as many steps as 4,000 queries allow, with the "
    "exact gradient.",
    trainings={
        "the study's net": "",
        "net, natural": "net_natural",
        "net, standard": "net_standard",
        "net, curriculum": "net_curriculum",
    },
    slides=slides.NES,
    columns={
        "clean": ("nes:clean",),
        **{queries: (f"nes:nes{queries}/0.1",) for queries in _QUERIES},
        "PGD-40": ("nes:pgd40/0.1",),
    },
    original={},
    plots=("queries",),
    num_slide_images=200,
    claims=claims.NES,
)

SYNTHETIC = Experiment(
    "synthetic",
    "Synthetic images",
    _DATA,
    "`net` after standard adversarial training, with PGD steps of 0.008 from the clean image. "
    "Samples of a conditional GAN (a small one at scale cpu) replace a share of each batch. All "
    "trainings take the same number of steps. With a half, the model trains on half as many real "
    "images; “half the real images” trains on these alone, in batches half as large. "
    f"{_NOT_ON_SLIDES}",
    trainings={
        "none": "net_standard",
        "a quarter": "net_synthetic_quarter",
        "a half": "net_synthetic_half",
        "half the real images": "net_half_real",
    },
    claims=claims.SYNTHETIC,
)

OTHER_DEFENCES = Experiment(
    "other_defences",
    "Defences that failed in the study",
    _OTHER,
    "`net` after standard adversarial training. The projection to 625 dimensions is learned, as "
    "in the study, or fixed to the principal components. Input noise is on at test time only: "
    "its weights are those of the plain model of the same seed. It is attacked by PGD-10 with "
    f"gradients averaged over 20 noise samples, the plain model by PGD-200. {_NOT_ON_SLIDES}",
    trainings={
        "plain": "net_standard",
        "spectral norm": "net_spectral_norm",
        "low rank, learned": "net_low_rank_learned",
        "low rank, PCA": "net_low_rank",
        "input noise": "net_input_noise",
    },
    columns=CLEAN_AND_RADII | AUTOATTACK | NOISE,
    claims=claims.OTHER_DEFENCES,
)

_BEST, _STUDYS = "configs/curriculum.py", "the study's training"
BEST = Experiment(
    "best",
    "The best BigNet",
    _CURRICULUM,
    "`configs/curriculum.py` attacks every image and has a short ramp, flips, a cosine schedule "
    "and a moving average of the weights. It takes 30 epochs and 194 gradients per image; the "
    "study's training takes 10 epochs and 128 gradients. The study's own weights, trained for an "
    "unknown number of epochs, have 55.3 % clean accuracy on these test images, and 29.1 % at "
    "eps 0.03 (results/curriculum.md).",
    trainings={_BEST: "bignet_best", _STUDYS: "bignet_curriculum"},
    claims=claims.BEST,
)

# In the order of the page, by topic.
EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        ADVERSARY, CURRICULA, BEST, RANDOMNESS, WIDE_RESNET, OPTIMIZER, ACTIVATION, MODEL_SIZE,
        AUGMENTATION, SYNTHETIC, OTHER_DEFENCES, UNDEFENDED, NES,
    )
}  # fmt: skip
