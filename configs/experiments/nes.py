"""NES over the query budget: the study's, on a trained `net`.

    python run.py --config configs/experiments/nes.py --config.checkpoint=runs/optimizer_adamw

200 images, eps .1, budgets from 500 to 4,000 queries, no early stop. Expected result and time: see
results/study/index.md.
"""

from ml_collections import ConfigDict

from configs import evaluate, slides
from configs.experiments import shown

_THEIRS = ("the study's net", "slides 4000")

PAGE = shown.experiment(
    "NES over the query budget",
    "200 images, eps .1, sigma .001, 100 queries for a gradient, steps of .02, no early "
    "stop. How the study's `net` was trained is not said. Ours: the best checkpoints, on test "
    "images; PGD-40 takes as many steps as 4,000 queries allow, of the true gradient.",
    figures=("queries",),
    study_n=200,
    arms={
        "the study's net": "",
        "net, natural": "net_natural",
        "net, standard": "net_standard",
        "net, curriculum": "net_curriculum",
    },
    study=slides.NES,
    columns={
        "clean": ("nes:clean",),
        **{budget: (f"nes:nes{budget}/0.1",) for budget in shown.BUDGETS},
        "PGD-40": ("nes:pgd40/0.1",),
    },
    as_there={},
    claims=[
        *(
            shown.at_most(
                f"4,000 queries leave {whose} net at most 5 %", (label, "4000"), 0.05, by="ours"
            )
            for whose, label in (
                ("the undefended", "net, natural"),
                ("the curriculum's", "net, curriculum"),
            )
        ),
        *(
            shown.more(
                f"The study's net is {relation} at 4,000 queries", more, less, by="its figures"
            )
            for relation, more, less in (
                ("more robust than our undefended one", _THEIRS, ("net, natural", "4000")),
                ("less robust than our curriculum's", ("net, curriculum", "4000"), _THEIRS),
            )
        ),
        shown.more(
            "More queries break more: 500 against 4,000",
            ("net, curriculum", "500"),
            ("net, curriculum", "4000"),
            by="the study, on the curriculum's net",
        ),
    ],
)


def get_config() -> ConfigDict:
    """Returns the config of the evaluation."""
    return evaluate.get_config("study_nes")
