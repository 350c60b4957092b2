"""The battery of attacks on a trained classifier, restored from the workdir of its run alone.

    python run.py --config configs/evaluate.py --config.checkpoint=runs/curriculum

The figures are those that the run itself ended with; 8 min for BigNet on the 10,000 test images of
CIFAR-10, on 2 cores of an AMD EPYC.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import default


def get_config() -> ConfigDict:
    """Returns the complete config of an evaluation."""
    config = ConfigDict()
    config.mode = "evaluate"
    config.checkpoint = placeholder(str)  # workdir of a training run
    config.which = "best"  # best (on the held-out split) | last
    config.data = ConfigDict()
    config.data.data_dir = placeholder(str)  # TFDS directory; None: as in the run
    config.evaluation = default.get_config().evaluation
    return config
