"""What an attack leaves of `net` where nothing defends it.

    python run.py --config configs/experiments/undefended.py

Expected result and time: see results/study/index.md.
"""

from ml_collections import ConfigDict

from configs import natural, presets, slides
from configs.experiments import shown

PAGE = shown.experiment(
    "An undefended network",
    "`net`, trained without an adversary, under PGD-40.",
    arms={"net": "net_natural"},
    study=slides.UNDEFENDED,
    extra={".01, steps of .02": ("study:pgd40_coarse/0.01",)},
    claims=[
        shown.at_most("An undefended network falls to nothing: at most 1 %", ("net", "0.03"), 0.01),
        shown.more(
            "Steps of .02 are a weaker attack at eps .01 than steps of .01",
            ("net", ".01, steps of .02"),
            ("net", "as there 0.01"),
            by="flaw 5",
        ),
    ],
)


def get_config() -> ConfigDict:
    """Returns the config of naturally trained `net`."""
    config = natural.get_config()
    config.model.name = "net"
    return presets.corrected(config)
