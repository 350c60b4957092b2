"""The claims that the study's page checks against the records, by experiment.

`jaxadv.study.verdicts.assess` decides whether a claim is supported.

Labels and columns are those of the experiment in jaxadv/study/experiments.py.
"""

from jaxadv.study.specification import ORIGINAL, SLIDES, Cell, at_most, equal, higher, no_gain

_WITHOUT_FLAW_3 = "the study, without flaw 3"
_OURS = "this project"
_STUDYS_NET = Cell("the study's net", "4000", SLIDES)
_BEST, _STUDYS = "configs/curriculum.py", "the study's training"

UNDEFENDED = [
    at_most(
        "An undefended network keeps at most 1 % accuracy under attack",
        Cell("net", "0.03"),
        0.01,
    ),
    higher(
        "At eps 0.01, steps of 0.02 are a weaker attack than steps of 0.01",
        Cell("net", "0.01, steps of 0.02", ORIGINAL),
        Cell("net", "0.01", ORIGINAL),
        origin="flaw 5",
    ),
]

OPTIMIZER = [
    higher(
        "AdamW trains a more robust model than SGD at the same learning rate",
        Cell("AdamW", "0.03"),
        Cell("SGD", "0.03"),
    ),
]

ACTIVATION = [
    higher(
        "A model with GELU is more robust than one with ReLU",
        Cell("GELU", "0.03"),
        Cell("ReLU", "0.03"),
    ),
]

ADVERSARY = [
    higher(
        "The curriculum makes the model more robust",
        Cell("curriculum", "0.03"),
        Cell("standard", "0.03"),
    ),
    higher(
        "The curriculum reduces clean accuracy",
        Cell("standard", "clean"),
        Cell("curriculum", "clean"),
        origin=_OURS,
    ),
]

CURRICULA = [
    higher(
        "A ramp to 0.03 is more robust than a fixed eps of 0.03",
        Cell("ramp to 0.03", "0.03"),
        Cell("fixed 0.03", "0.03"),
        origin=_OURS,
    ),
    higher(
        "A ramp to 0.1 is more robust at 0.03 than a fixed eps of 0.03 (last checkpoints)",
        Cell("ramp to 0.1, last", "0.03"),
        Cell("fixed 0.03, last", "0.03"),
        origin="the study, at equal cost",
    ),
    higher(
        "A ramp to 0.1 reduces clean accuracy (last checkpoints)",
        Cell("fixed 0.03, last", "clean"),
        Cell("ramp to 0.1, last", "clean"),
        origin=_OURS,
    ),
    higher(
        "The best checkpoint of the ramp to 0.1 is more robust than its last",
        Cell("ramp to 0.1, best", "0.03"),
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
        higher(
            f"{label} reduces clean accuracy, compared with a fixed eps",
            Cell("fixed 0.03", "clean"),
            Cell(label, "clean"),
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
        "BiggerNet is more robust than the smaller BigNet",
        Cell("biggernet", "0.03"),
        Cell("bignet", "0.03"),
        origin=_OURS,
    ),
    *(
        higher(
            f"{model} is more robust than the smaller BigNet",
            Cell(model, "0.03"),
            Cell("bignet", "0.03"),
        )
        for model in ("vit_5_256", "wrn_13_10")
    ),
    higher(
        "Evaluation with dropout makes BiggerNet seem less robust",
        Cell("biggernet", "evaluation mode 0.03", ORIGINAL),
        Cell("biggernet", "0.03", ORIGINAL),
        origin="flaw 1",
    ),
]

AUGMENTATION = [
    higher(
        "A horizontal flip makes the model more robust (10 epochs here, 60 in the study)",
        Cell("flip", "0.03"),
        Cell("none", "0.03"),
    ),
    higher(
        "Flip is more robust than flip, crop and jitter (10 epochs here, 60 in the study)",
        Cell("flip", "0.03"),
        Cell("flip, crop, jitter", "0.03"),
    ),
]

RANDOMNESS = [
    equal(
        "On the slides, RSE and the plain model are not significantly different",
        Cell("RSE", "one noise sample", SLIDES),
        Cell("plain", "one noise sample", SLIDES),
        origin="flaw 4",
    ),
    higher(
        "RSE is more robust under attack with one noise sample",
        Cell("RSE", "one noise sample"),
        Cell("plain", "one noise sample"),
    ),
    *(
        higher(
            f"{name} is more robust under averaged gradients",
            Cell(label, "200 gradients"),
            Cell("plain", "200 gradients"),
            origin=_WITHOUT_FLAW_3,
        )
        for name, label in (
            ("RSE", "RSE"),
            ("PNI", "PNI"),
            ("The study's frozen PNI", "PNI, frozen"),
        )
    ),
    higher("RSE reduces clean accuracy", Cell("plain", "clean"), Cell("RSE", "clean")),
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
    ),
    *(
        higher(
            f"RSE makes {model} more robust ({attack})",
            Cell(f"{model} with RSE", attack),
            Cell(model, attack),
            origin=origin,
        )
        for model, attack, origin in (
            ("wrn_13_10", "one noise sample", "the study"),
            ("wrn_13_10", "200 gradients", _WITHOUT_FLAW_3),
            ("wrn_7_1", "one noise sample", _OURS),
            ("wrn_7_1", "200 gradients", _OURS),
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
    higher(
        "After 4,000 queries the study's net is less robust than our net under the curriculum",
        Cell("net, curriculum", "4000"),
        _STUDYS_NET,
        origin="the slides",
    ),
    higher(
        "The accuracy is lower after 4,000 queries than after 500",
        Cell("net, curriculum", "500"),
        Cell("net, curriculum", "4000"),
        origin="the study, on the curriculum's net",
    ),
]

SYNTHETIC = [
    *(
        higher(
            f"{share} of synthetic images makes the model more robust",
            Cell(label, "0.03"),
            Cell("none", "0.03"),
            origin=_OURS,
        )
        for share, label in (("A half", "a half"), ("A quarter", "a quarter"))
    ),
    higher(
        "A half of synthetic images is more robust than the real half alone",
        Cell("a half", "0.03"),
        Cell("half the real images", "0.03"),
        origin=_OURS,
    ),
]

OTHER_DEFENCES = [
    no_gain(
        f"{name} does not make the model more robust",
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
]

BEST = [
    higher(
        f"configs/curriculum.py is more {what}",
        Cell(_BEST, column),
        Cell(_STUDYS, column),
        origin=_OURS,
    )
    for what, column in (
        ("accurate on clean images than the study's training", "clean"),
        ("robust at eps 0.03", "0.03"),
        ("robust at eps 0.05", "0.05"),
        ("robust under AutoAttack", "AutoAttack 0.03"),
    )
]
