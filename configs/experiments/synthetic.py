r"""Images of a conditional GAN in the batches of standard adversarial training of `net`.

    python run.py --config configs/experiments/synthetic.py:half \
        --config.data.synthetic.path=runs/gan/synthetic

The argument is none, quarter or half: their share of each batch. Expected result and time: see
results/study/index.md.
"""

from ml_collections import ConfigDict

from configs import standard
from configs.experiments import arms, shown

SHARES = {"none": 0.0, "quarter": 0.25, "half": 0.5}

PAGE = shown.experiment(
    "Synthetic images",
    "`net` after standard adversarial training, a share of each batch from a conditional "
    "GAN (at scale cpu a small one). The slides have no figures of it.",
    arms={
        "none": "net_standard",
        "a quarter": "net_synthetic_quarter",
        "half": "net_synthetic_half",
    },
    claims=[
        shown.more(
            "Half synthetic images make the model more robust",
            ("half", "0.03"),
            ("none", "0.03"),
            by="ours",
        ),
        shown.more(
            "A quarter of synthetic images makes the model more robust",
            ("a quarter", "0.03"),
            ("none", "0.03"),
            by="ours",
        ),
    ],
)


def get_config(arm: str = "none") -> ConfigDict:
    """Returns the config of that arm."""
    changes = {
        name: {"model.name": "net", "data.synthetic.share": share} for name, share in SHARES.items()
    }
    return arms.get_config(changes, arm, standard.get_config)
