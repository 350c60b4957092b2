r"""Images of a conditional GAN in the batches of standard adversarial training of `net`.

    python run.py --config configs/experiments/synthetic.py:half \
        --config.data.synthetic.path=runs/gan/synthetic

The argument is none, quarter or half, their share of each batch, or half_real: the real images that
half has, alone, in as many steps, which needs no samples. Expected result and time: see
results/study/index.md.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import standard
from configs.experiments import arms, shown

ARMS: dict[str, dict[str, Any]] = {
    "none": {"model.name": "net"},
    "quarter": {"model.name": "net", "data.synthetic.share": 0.25},
    "half": {"model.name": "net", "data.synthetic.share": 0.5},
    "half_real": {"model.name": "net", "train.batch_size": 32, "train.num_epochs": 5},
}

PAGE = shown.experiment(
    "Synthetic images",
    "`net` after standard adversarial training, a share of each batch from a conditional "
    "GAN (at scale cpu a small one) in place of real images. All take the same number of steps: "
    "with half of it a model sees half as many real images, and “half the real, alone” sees "
    "these and no others, in batches half as large. The slides have no figures of it.",
    arms={
        "none": "net_standard",
        "a quarter": "net_synthetic_quarter",
        "half": "net_synthetic_half",
        "half the real, alone": "net_half_real",
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
        shown.more(
            "Half synthetic images are better than the other half alone",
            ("half", "0.03"),
            ("half the real, alone", "0.03"),
            by="ours",
        ),
    ],
)


def get_config(arm: str = "none") -> ConfigDict:
    """Returns the config of that arm."""
    return arms.get_config(ARMS, arm, standard.get_config)
