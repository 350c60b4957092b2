"""What an attack leaves of `net` where nothing defends it.

    python run.py --config configs/experiments/undefended.py

Expected result and time: see results/study/index.md.
"""

from ml_collections import ConfigDict

from configs import natural, presets


def get_config() -> ConfigDict:
    """Returns the config of naturally trained `net`."""
    config = natural.get_config()
    config.model.name = "net"
    return presets.corrected(config)
