"""What the page of the study shows of each experiment.

`arms` are pairs of a label and a training of configs/study.py, `:last` for its last checkpoint. A
column is a heading and the entries that may fill it, `attack/eps` or `clean`, of the training's
own evaluation or of the evaluation named before a colon. `study` are the study's figures, in %, by
label and heading. A claim says that one entry, `(label, heading)`, is more than another, or at most
a share; `by` says whose claim it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import slides

_EPS = slides.EPS
_GRID = {"clean": ("clean",), **{eps: (f"pgd40/{eps}",) for eps in _EPS}}
_AUTOATTACK = {"AutoAttack .03": ("autoattack:autoattack/0.03",)}
_AS_THERE = {heading: tuple(f"study:{key}" for key in keys) for heading, keys in _GRID.items()}
_AS_THERE_COARSE = {
    "clean": ("study:clean",),
    **{eps: (f"study:pgd40_coarse/{eps}",) for eps in _EPS},
}
_BUDGETS = ("500", "1000", "2000", "3000", "4000")


def experiments() -> ConfigDict:
    """Returns the experiments in the order of the slides; `order` holds their names."""
    found = {
        "undefended": _experiment(
            "An undefended network",
            "`net`, trained without an adversary, under PGD-40.",
            arms={"net": "net_natural"},
            study=slides.UNDEFENDED,
            extra={".01, steps of .02": ("study:pgd40_coarse/0.01",)},
            claims=[
                _at_most("An undefended network falls to nothing", ("net", "0.03"), 0.01),
                _more(
                    "Steps of .02 are a weaker attack at eps .01 than steps of .01",
                    ("net", ".01, steps of .02"),
                    ("net", "as there 0.01"),
                    by="flaw 5",
                ),
            ],
        ),
        "optimizer": _experiment(
            "SGD against AdamW",
            "`net` under the study's curriculum. The slides have no figures of it.",
            arms={"AdamW": "net_curriculum", "SGD": "net_sgd"},
            claims=[_more("AdamW trains better than SGD", ("AdamW", "0.03"), ("SGD", "0.03"))],
        ),
        "activation": _experiment(
            "ReLU against GELU",
            "`net` under the study's curriculum. The slides have no figures of it.",
            arms={"ReLU": "net_curriculum", "GELU": "net_gelu"},
            claims=[_more("GELU is better than ReLU", ("GELU", "0.03"), ("ReLU", "0.03"))],
        ),
        "adversary": _experiment(
            "Standard against curriculum training",
            "BigNet for 10 epochs, at a fixed eps of .03 or under the study's curriculum, which "
            "spends twice the gradients.",
            arms={"standard": "bignet_standard", "curriculum": "bignet_curriculum"},
            study={"curriculum": slides.MODEL_SIZE["bignet"]},
            claims=[
                _more(
                    "The curriculum makes the model more robust",
                    ("curriculum", "0.03"),
                    ("standard", "0.03"),
                ),
                _more(
                    "It costs clean accuracy",
                    ("standard", "clean"),
                    ("curriculum", "clean"),
                    by="ours",
                ),
            ],
        ),
        "curricula": _experiment(
            "Curricula at equal cost",
            "`net`, 60 gradient evaluations for each training image in every arm, all from a "
            "random start. The long ramp ends at eps .1, three times the eps that is judged.",
            arms={
                "fixed .03": "net_fixed",
                "ramp to .03": "net_short_ramp",
                "ramp to .1, last": "net_long_ramp:last",
                "ramp to .1, best": "net_long_ramp",
                "TRADES": "net_trades",
                "N-FGSM": "net_n_fgsm",
            },
            claims=[
                _more(
                    "A ramp to .03 is better than a fixed eps of .03",
                    ("ramp to .03", "0.03"),
                    ("fixed .03", "0.03"),
                    by="ours",
                ),
                _more(
                    "A ramp to .1 is better at .03 than a fixed eps of .03",
                    ("ramp to .1, last", "0.03"),
                    ("fixed .03", "0.03"),
                ),
                _more(
                    "The best checkpoint of the long ramp is better than its last",
                    ("ramp to .1, best", "0.03"),
                    ("ramp to .1, last", "0.03"),
                    by="flaw 6",
                ),
                _more(
                    "TRADES is better than a fixed eps",
                    ("TRADES", "0.03"),
                    ("fixed .03", "0.03"),
                    by="ours",
                ),
                _more(
                    "N-FGSM is better than a fixed eps",
                    ("N-FGSM", "0.03"),
                    ("fixed .03", "0.03"),
                    by="ours",
                ),
            ],
        ),
        "model_size": _experiment(
            "Model size",
            "Each model under the study's curriculum. The aggregated score is the sum of the "
            "accuracies at the six eps.",
            figure="parameters",
            arms={
                "net": "net_curriculum",
                "bignet": "bignet_curriculum",
                "biggernet": "biggernet_curriculum",
                "vit_3_128": "vit_3_128",
                "vit_5_256": "vit_5_256",
                "wrn_13_10": "wrn",
            },
            study=slides.MODEL_SIZE,
            claims=[
                _more(
                    "A larger model is more robust: BigNet against net",
                    ("bignet", "0.03"),
                    ("net", "0.03"),
                ),
                _more(
                    "A larger model is more robust: BiggerNet against BigNet",
                    ("biggernet", "0.03"),
                    ("bignet", "0.03"),
                ),
                _more(
                    "A larger model is more robust: WRN against BigNet",
                    ("wrn_13_10", "0.03"),
                    ("bignet", "0.03"),
                ),
                _more(
                    "Judged with its dropout on BiggerNet seems less robust",
                    ("biggernet", "as there 0.03"),
                    ("biggernet", "dropout on, .03"),
                    by="flaw 1",
                ),
            ],
            extra={"dropout on, .03": ("study:training_mode/0.03",)},
        ),
        "augmentation": _experiment(
            "Augmentation",
            "BigNet under the study's curriculum, for 60 epochs there and 10 here at scale cpu; "
            "there it was judged with steps of .02.",
            arms={
                "none": "bignet_curriculum",
                "flip": "bignet_flip",
                "flip, crop, jitter": "bignet_flip_crop_jitter",
            },
            study=slides.AUGMENTATION,
            as_there=_AS_THERE_COARSE,
            claims=[
                _more("A horizontal flip helps", ("flip", "0.03"), ("none", "0.03")),
                _more(
                    "Crop and jitter on top of it take some of that back",
                    ("flip", "0.03"),
                    ("flip, crop, jitter", "0.03"),
                ),
            ],
        ),
        "randomness": _experiment(
            "Randomness",
            "BigNet after standard adversarial training at eps .03, step .008, plain or with a "
            "random defence. With 200 gradients the attack on a random model averages over 20 "
            "draws of its noise in each of 10 steps; the plain model meets PGD-200.",
            figure="bars",
            arms={
                "plain": "bignet_standard",
                "PNI": "bignet_pni",
                "PNI, frozen": "bignet_pni_frozen",
                "RSE": "bignet_rse",
            },
            study=slides.RANDOMNESS | {"PNI, frozen": slides.RANDOMNESS["PNI"]},
            columns={
                "clean": ("clean",),
                "one noise sample": ("pgd10/0.03", "noise:pgd10/0.03"),
                "200 gradients": ("eot20/0.03", "noise:pgd200/0.03"),
                "noise off": ("noise_off/0.03",),
            },
            as_there={"clean": ("study:clean",), "one noise sample": ("study:pgd40/0.03",)},
            claims=[
                _more(
                    "RSE is more robust, under one noise sample",
                    ("RSE", "one noise sample"),
                    ("plain", "one noise sample"),
                ),
                _more(
                    "RSE is more robust, under averaged gradients",
                    ("RSE", "200 gradients"),
                    ("plain", "200 gradients"),
                    by="flaw 3",
                ),
                _more(
                    "PNI is more robust, under averaged gradients",
                    ("PNI", "200 gradients"),
                    ("plain", "200 gradients"),
                    by="flaw 3",
                ),
                _more("RSE costs clean accuracy", ("plain", "clean"), ("RSE", "clean")),
                _more(
                    "The sound PNI is better than the frozen one of the study",
                    ("PNI", "200 gradients"),
                    ("PNI, frozen", "200 gradients"),
                    by="flaw 2",
                ),
            ],
        ),
        "wide_resnet": _experiment(
            "Wide ResNet and RSE",
            "Each under the study's curriculum; the narrow one for 2 epochs, at scale cpu.",
            arms={
                "net": "net_curriculum",
                "wrn_7_1": "narrow_wrn",
                "wrn_7_1 with RSE": "narrow_wrn_rse",
                "wrn_13_10": "wrn",
                "wrn_13_10 with RSE": "wrn_rse",
            },
            study=slides.WRN_RSE,
            columns=_GRID | {"0.03": ("pgd40/0.03", "eot20/0.03")},
            claims=[
                _more(
                    "RSE makes the wide ResNet more robust",
                    ("wrn_13_10 with RSE", "0.03"),
                    ("wrn_13_10", "0.03"),
                ),
                _more(
                    "RSE makes the narrow one more robust",
                    ("wrn_7_1 with RSE", "0.03"),
                    ("wrn_7_1", "0.03"),
                    by="ours",
                ),
            ],
        ),
        "nes": _experiment(
            "NES over the query budget",
            "200 images, eps .1, sigma .001, 100 queries for a gradient, steps of .02, no early "
            "stop. How the study's `net` was trained is not said.",
            figure="queries",
            arms={
                "net": "net_curriculum",
                "net, standard": "net_standard",
                "net, natural": "net_natural",
            },
            study=slides.NES,
            columns={budget: (f"nes:nes{budget}/0.1",) for budget in _BUDGETS},
            as_there={},
            claims=[
                _at_most("4,000 queries break the net", ("net, natural", "4000"), 0.05),
                _at_most(
                    "4,000 queries break it after adversarial training too",
                    ("net", "4000"),
                    0.05,
                    by="ours",
                ),
                _more(
                    "More queries break more",
                    ("net", "500"),
                    ("net", "4000"),
                ),
            ],
        ),
        "synthetic": _experiment(
            "Synthetic images",
            "`net` after standard adversarial training, a share of each batch from a conditional "
            "GAN (at scale cpu a small one). The slides have no figures of it.",
            arms={
                "none": "net_standard",
                "a fifth": "net_synthetic_fifth",
                "half": "net_synthetic_half",
            },
            claims=[
                _more(
                    "Half synthetic images make the model more robust",
                    ("half", "0.03"),
                    ("none", "0.03"),
                ),
                _more(
                    "A fifth of synthetic images makes the model more robust",
                    ("a fifth", "0.03"),
                    ("none", "0.03"),
                    by="ours",
                ),
            ],
        ),
        "other_defences": _experiment(
            "What failed there",
            "`net` after standard adversarial training. Input noise is on at test time alone and "
            "is attacked with gradients averaged over 20 draws. The slides have no figures of it.",
            columns=_GRID | {"0.03": ("pgd40/0.03", "eot20/0.03")},
            arms={
                "plain": "net_standard",
                "spectral norm": "net_spectral_norm",
                "low rank": "net_low_rank",
                "input noise": "net_input_noise",
            },
            claims=[
                _more(
                    f"{name[0].upper()}{name[1:]} does not make the model more robust",
                    ("plain", "0.03"),
                    (name, "0.03"),
                    or_equal=True,
                )
                for name in ("spectral norm", "low rank", "input noise")
            ],
        ),
        "best": _experiment(
            "The best BigNet",
            "`configs/curriculum.py`: every image attacked, a short ramp, a cosine schedule and an "
            "average of the weights, for 30 epochs.",
            arms={
                "configs/curriculum.py": "bignet_best",
                "the study's recipe": "bignet_curriculum",
            },
            study={"the study's recipe": slides.MODEL_SIZE["bignet"]},
            claims=[
                _more(
                    "It is more accurate than the study's recipe",
                    ("configs/curriculum.py", "clean"),
                    ("the study's recipe", "clean"),
                    by="ours",
                ),
                _more(
                    "It is more robust at eps .03",
                    ("configs/curriculum.py", "0.03"),
                    ("the study's recipe", "0.03"),
                    by="ours",
                ),
                _more(
                    "It is more robust under AutoAttack",
                    ("configs/curriculum.py", "AutoAttack .03"),
                    ("the study's recipe", "AutoAttack .03"),
                    by="ours",
                ),
            ],
        ),
    }
    return ConfigDict({**found, "order": tuple(found)})


def _experiment(
    title: str,
    text: str,
    *,
    arms: Mapping[str, str],
    claims: Sequence[Mapping[str, Any]],
    study: Mapping[str, Mapping[str, float]] | None = None,
    columns: Mapping[str, tuple[str, ...]] | None = None,
    as_there: Mapping[str, tuple[str, ...]] = _AS_THERE,
    extra: Mapping[str, tuple[str, ...]] | None = None,
    figure: str = "eps",
) -> ConfigDict:
    """Returns an experiment as plain values; a ConfigDict would not keep the order of mappings."""
    own = _GRID | _AUTOATTACK if columns is None else columns
    return ConfigDict(
        {
            "title": title,
            "text": text,
            "figure": figure,  # eps | parameters | queries | bars
            "arms": tuple(arms.items()),
            "study": tuple((label, tuple(row.items())) for label, row in (study or {}).items()),
            "columns": tuple(own.items()),
            "as_there": tuple(as_there.items()),
            "extra": tuple((extra or {}).items()),  # columns that only claims speak of
            "claims": tuple(tuple(claim.items()) for claim in claims),
        }
    )


def _more(
    text: str,
    more: tuple[str, str],
    less: tuple[str, str],
    by: str = "the study",
    or_equal: bool = False,
) -> dict[str, Any]:
    return {"text": text, "by": by, "more": more, "less": less, "or_equal": or_equal}


def _at_most(text: str, entry: tuple[str, str], share: float, by: str = "the study") -> dict:
    return {"text": text, "by": by, "entry": entry, "at_most": share}
