"""The claims that the study's page checks against the records, by experiment.

`jaxadv.study.verdicts.assess` gives the verdicts. A claim that a model is more robust compares
accuracies at eps 0.03. Labels and columns are those of the experiment in
jaxadv/study/experiments.py.

In the texts `{gan}` becomes a description of the GAN that made the synthetic images.
"""

from jaxadv.study.specification import (
    ORIGINAL,
    SCORE,
    SLIDES,
    Cell,
    Claim,
    at_most,
    equal,
    higher,
    lower,
    no_gain,
)

_WITHOUT_FLAW_3 = "the study, without flaw 3"
_OURS = "this project"
_STUDYS_NET = Cell("the study's net", "4000", SLIDES)
_BEST, _STUDYS = "configs/curriculum.py", "the study's training"

STAYS_UNDEFENDED = at_most(
    "An undefended network keeps at most 1 % accuracy under attack",
    Cell("net", "0.03"),
    0.01,
)
UNDEFENDED = [
    STAYS_UNDEFENDED,
    higher(
        "At eps 0.01, steps of 0.02 are a weaker attack than steps of 0.01",
        Cell("net", "0.01, steps of 0.02", ORIGINAL),
        Cell("net", "0.01", ORIGINAL),
        origin="flaw 5",
        sides=("steps of 0.02", "steps of 0.01"),
    ),
]

ADAMW = higher(
    "AdamW trains a more robust net than SGD at the same learning rate",
    Cell("AdamW", "0.03"),
    Cell("SGD", "0.03"),
)
OPTIMIZER = [ADAMW]


def _gelu(model: str, threshold: float) -> Claim:
    points = f" by at least {100 * threshold:g} points" if threshold else ""
    return higher(
        f"GELU raises the clean accuracy of {model}{points} (natural training)",
        Cell(f"{model}, GELU", "clean"),
        Cell(f"{model}, ReLU", "clean"),
        by_more_than=threshold,
    )


GELU_BIGNET, GELU_BIGGERNET = _gelu("BigNet", 0.0), _gelu("BiggerNet", 0.0)
ACTIVATION = [
    GELU_BIGNET,
    _gelu("BigNet", 0.05),
    GELU_BIGGERNET,
    _gelu("BiggerNet", 0.05),
    higher(
        "GELU makes net more robust (curriculum)",
        Cell("net, GELU", "0.03"),
        Cell("net, ReLU", "0.03"),
        origin=_OURS,
    ),
]

CURRICULUM = higher(
    "The curriculum makes BigNet more robust",
    Cell("curriculum", "0.03"),
    Cell("standard", "0.03"),
)
CURRICULUM_CLEAN = lower(
    "The curriculum reduces the clean accuracy of BigNet",
    Cell("curriculum", "clean"),
    Cell("standard", "clean"),
    origin=_OURS,
)
ADVERSARY = [
    CURRICULUM,
    higher(
        "The curriculum raises the aggregated score of BigNet",
        Cell("curriculum", SCORE),
        Cell("standard", SCORE),
    ),
    CURRICULUM_CLEAN,
]

LONG_RAMP = higher(
    "At equal cost, a ramp to 0.1 is more robust than a fixed eps of 0.03",
    Cell("ramp to 0.1", "0.03"),
    Cell("fixed 0.03", "0.03"),
    origin="the study, at equal cost",
)
SHORT_RAMP = higher(
    "At equal cost, a ramp to 0.03 is more robust than a fixed eps of 0.03",
    Cell("ramp to 0.03", "0.03"),
    Cell("fixed 0.03", "0.03"),
    origin=_OURS,
)
CURRICULA = [
    LONG_RAMP,
    SHORT_RAMP,
    lower(
        "A ramp to 0.1 reduces clean accuracy",
        Cell("ramp to 0.1", "clean"),
        Cell("fixed 0.03", "clean"),
        origin=_OURS,
    ),
    higher(
        "The best checkpoint of the ramp to 0.1 is more robust than its last",
        Cell("ramp to 0.1", "0.03"),
        Cell("ramp to 0.1, last", "0.03"),
        origin=_OURS,
    ),
    higher(
        "At a fixed eps, 5 epochs on all images are more robust than 10 on half of them",
        Cell("fixed 0.03, all", "0.03"),
        Cell("fixed 0.03", "0.03"),
        origin=_OURS,
    ),
    *(
        higher(
            f"{label} is more robust than a fixed eps{on_images}",
            Cell(label, "0.03"),
            Cell(fixed, "0.03"),
            origin=_OURS,
        )
        for label in ("TRADES", "N-FGSM")
        for on_images, fixed in (("", "fixed 0.03"), (" on all images", "fixed 0.03, all"))
    ),
    *(
        lower(
            f"{label} reduces clean accuracy, compared with a fixed eps",
            Cell(label, "clean"),
            Cell("fixed 0.03", "clean"),
            origin=_OURS,
        )
        for label in ("TRADES", "N-FGSM")
    ),
]

MODEL_SIZE = [
    higher(
        "BigNet is more robust than the smaller net",
        Cell("bignet", "0.03"),
        Cell("net", "0.03"),
    ),
    higher(
        "BigNet has a higher aggregated score than the smaller net",
        Cell("bignet", SCORE),
        Cell("net", SCORE),
    ),
    higher(
        "BiggerNet is more robust than the smaller BigNet",
        Cell("biggernet", "0.03"),
        Cell("bignet", "0.03"),
        origin=_OURS,
    ),
    higher(
        "BiggerNet has a higher aggregated score than the smaller BigNet",
        Cell("biggernet", SCORE),
        Cell("bignet", SCORE),
        origin=_OURS,
    ),
    lower(
        "vit_3_128 is less robust than BigNet",
        Cell("vit_3_128", "0.03"),
        Cell("bignet", "0.03"),
    ),
    lower(
        "vit_3_128 has a lower aggregated score than BigNet",
        Cell("vit_3_128", SCORE),
        Cell("bignet", SCORE),
    ),
    *(
        higher(text.format(model), Cell(model, column), Cell("bignet", column))
        for model in ("vit_5_256", "wrn_13_10")
        for text, column in (
            ("{} is more robust than the smaller BigNet", "0.03"),
            ("{} has a higher aggregated score than the smaller BigNet", SCORE),
        )
    ),
    higher(
        "Evaluation with dropout makes BiggerNet seem less robust",
        Cell("biggernet", "evaluation mode 0.03", ORIGINAL),
        Cell("biggernet", "0.03", ORIGINAL),
        origin="flaw 1",
        sides=("without dropout", "with dropout"),
    ),
]

FLIP = higher(
    "A horizontal flip makes BiggerNet more robust (10 epochs; the study took 60)",
    Cell("BiggerNet, flip", "0.03"),
    Cell("BiggerNet, none", "0.03"),
)
FLIP_OVER_JITTER = higher(
    "BiggerNet is more robust with flip than with flip, crop and jitter (10 epochs)",
    Cell("BiggerNet, flip", "0.03"),
    Cell("BiggerNet, flip, crop, jitter", "0.03"),
)
AUGMENTATION = [
    FLIP,
    higher(
        "A horizontal flip raises the aggregated score of BiggerNet (10 epochs)",
        Cell("BiggerNet, flip", SCORE),
        Cell("BiggerNet, none", SCORE),
    ),
    FLIP_OVER_JITTER,
    higher(
        "BiggerNet has a higher aggregated score with flip than with flip, crop and jitter",
        Cell("BiggerNet, flip", SCORE),
        Cell("BiggerNet, flip, crop, jitter", SCORE),
    ),
    higher(
        "A horizontal flip makes BigNet more robust (10 epochs)",
        Cell("BigNet, flip", "0.03"),
        Cell("BigNet, none", "0.03"),
        origin=_OURS,
    ),
    higher(
        "BigNet is more robust with flip than with flip, crop and jitter (10 epochs)",
        Cell("BigNet, flip", "0.03"),
        Cell("BigNet, flip, crop, jitter", "0.03"),
        origin=_OURS,
    ),
]

RSE_ONE_SAMPLE = higher(
    "RSE makes BigNet more robust under attack with one noise sample",
    Cell("RSE", "one noise sample"),
    Cell("plain", "one noise sample"),
)
RSE, PNI, _FROZEN_PNI = (
    higher(
        f"{name} makes BigNet more robust under EOT",
        Cell(label, "200 gradients"),
        Cell("plain", "200 gradients"),
        origin=_WITHOUT_FLAW_3,
    )
    for name, label in (
        ("RSE", "RSE"),
        ("PNI", "PNI"),
        ("The study's frozen PNI", "PNI, frozen"),
    )
)
RANDOMNESS = [
    equal(
        "On the slides, RSE and the plain model are not significantly different",
        Cell("RSE", "one noise sample", SLIDES),
        Cell("plain", "one noise sample", SLIDES),
        origin="flaw 4",
    ),
    RSE_ONE_SAMPLE,
    RSE,
    PNI,
    _FROZEN_PNI,
    lower("RSE reduces clean accuracy", Cell("RSE", "clean"), Cell("plain", "clean")),
    higher(
        "The corrected PNI is more robust than the study's frozen PNI",
        Cell("PNI", "200 gradients"),
        Cell("PNI, frozen", "200 gradients"),
        origin="flaw 2",
    ),
]

WIDE_RESNET = [
    higher(
        "Evaluation with batch statistics makes wrn_7_1 seem more robust",
        Cell("wrn_7_1", "0.03", ORIGINAL),
        Cell("wrn_7_1", "evaluation mode 0.03", ORIGINAL),
        origin="flaw 1",
        sides=("batch statistics", "running statistics"),
    ),
    higher(
        "RSE raises the aggregated score of wrn_13_10",
        Cell("wrn_13_10 with RSE", SCORE),
        Cell("wrn_13_10", SCORE),
    ),
    *(
        higher(
            f"RSE makes {model} more robust under {attack}",
            Cell(f"{model} with RSE", column),
            Cell(model, column),
            origin=origin,
        )
        for model, attack, column, origin in (
            ("wrn_13_10", "attack with one noise sample", "one noise sample", "the study"),
            ("wrn_13_10", "EOT", "200 gradients", _WITHOUT_FLAW_3),
            ("wrn_7_1", "attack with one noise sample", "one noise sample", _OURS),
            ("wrn_7_1", "EOT", "200 gradients", _OURS),
        )
    ),
]

NES = [
    *(
        at_most(
            f"{name} keeps at most 5 % accuracy after 4,000 queries",
            Cell(label, "4000"),
            0.05,
            origin=_OURS,
        )
        for name, label in (
            ("The undefended net", "net, natural"),
            ("The curriculum's net", "net, curriculum"),
        )
    ),
    higher(
        "After 4,000 queries the study's net is more robust than our undefended net",
        _STUDYS_NET,
        Cell("net, natural", "4000"),
        origin="the slides",
    ),
    lower(
        "After 4,000 queries the study's net is less robust than our net under the curriculum",
        _STUDYS_NET,
        Cell("net, curriculum", "4000"),
        origin="the slides",
    ),
    lower(
        "The accuracy is lower after 4,000 queries than after 500",
        Cell("net, curriculum", "4000"),
        Cell("net, curriculum", "500"),
        origin="the study, on the curriculum's net",
        sides=("4,000 queries", "500 queries"),
    ),
]

HALF_SYNTHETIC, _QUARTER_SYNTHETIC = (
    higher(
        f"Replacing {share} of each batch by images {{gan}} makes net more robust",
        Cell(label, "0.03"),
        Cell("none", "0.03"),
        origin=_OURS,
    )
    for share, label in (("half", "a half"), ("a quarter", "a quarter"))
)
SYNTHETIC = [
    HALF_SYNTHETIC,
    _QUARTER_SYNTHETIC,
    higher(
        "Training on half real images and half images {gan} gives a more robust net than "
        "training on the real half alone",
        Cell("a half", "0.03"),
        Cell("half the real images", "0.03"),
        origin=_OURS,
    ),
]

OTHER_DEFENCES = [
    *(
        no_gain(
            f"{name} does not make net more robust",
            Cell(label, column),
            Cell("plain", column),
            origin,
        )
        for name, label, column, origin in (
            ("Spectral norm", "spectral norm", "0.03", "the study"),
            ("A learned low rank", "low rank, learned", "0.03", "the study"),
            ("A low rank by PCA", "low rank, PCA", "0.03", _OURS),
            ("Input noise", "input noise", "200 gradients", "the study"),
        )
    ),
    lower(
        "Input noise reduces clean accuracy",
        Cell("input noise", "clean"),
        Cell("plain", "clean"),
        origin=_OURS,
    ),
]

BEST_TRAINING, BEST_CLEAN = (
    higher(
        f"configs/curriculum.py makes BigNet more {what} than the study's training",
        Cell(_BEST, column),
        Cell(_STUDYS, column),
        origin=_OURS,
    )
    for what, column in (("robust", "0.03"), ("accurate on clean images", "clean"))
)
BEST_AT_LARGER_EPS = higher(
    "configs/curriculum.py makes BigNet more robust at eps 0.05 than the study's training",
    Cell(_BEST, "0.05"),
    Cell(_STUDYS, "0.05"),
    origin=_OURS,
)
BEST = [
    BEST_TRAINING,
    BEST_CLEAN,
    BEST_AT_LARGER_EPS,
    higher(
        "configs/curriculum.py gives BigNet a higher aggregated score than the study's training",
        Cell(_BEST, SCORE),
        Cell(_STUDYS, SCORE),
        origin=_OURS,
    ),
]
