"""Models of the study by size, each under its curriculum.

    python run.py --config configs/experiments/model_size.py:biggernet

The argument is net, bignet, biggernet, vit_3_128, vit_5_256 or wrn_13_10. Expected result and time:
see results/study/index.md.
"""

from ml_collections import ConfigDict

from configs import slides
from configs.experiments import arms, shown

MODELS = ("net", "bignet", "biggernet", "vit_3_128", "vit_5_256", "wrn_13_10")

PAGE = shown.experiment(
    "Model size",
    "Each model under the study's curriculum. The aggregated score is the sum of the "
    "accuracies at the six eps.",
    figures=("eps", "parameters"),
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
        shown.more(
            "A larger model is more robust: BigNet against net",
            ("bignet", "0.03"),
            ("net", "0.03"),
        ),
        shown.more(
            "A larger model is more robust: BiggerNet against BigNet",
            ("biggernet", "0.03"),
            ("bignet", "0.03"),
            by="ours",
        ),
        *(
            shown.more(
                f"A larger model is more robust: {model} against BigNet",
                (model, "0.03"),
                ("bignet", "0.03"),
            )
            for model in ("vit_5_256", "wrn_13_10")
        ),
        shown.more(
            "Judged with its dropout on BiggerNet seems less robust",
            ("biggernet", "running 0.03"),
            ("biggernet", "as there 0.03"),
            by="flaw 1",
        ),
    ],
    extra=shown.RUNNING,
)


def get_config(model: str = "bignet") -> ConfigDict:
    """Returns the config of that model."""
    return arms.get_config({name: {"model.name": name} for name in MODELS}, model)
