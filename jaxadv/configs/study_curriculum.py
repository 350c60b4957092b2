"""The study's linear curriculum: half of each batch is attacked, eps from 0.01 to 0.1.

    python run.py --config configs/study_curriculum.py

Expected result on CIFAR-10 (TFDS, images JPEG-compressed, full test split): 52.0 % clean;
44.8 / 38.0 / 31.6 / 25.9 / 20.7 % under PGD-40 at eps 0.01 / 0.02 / 0.03 / 0.04 / 0.05. Time on 2
cores of an AMD EPYC: 30 min of training (shared machine) and 7 min of evaluation. See
results/curriculum.md.
"""

from ml_collections import ConfigDict

from jaxadv.configs import default


def get_config(data: str = "cifar10") -> ConfigDict:
    """Return the defaults, which are the study's values, for a source of data."""
    return default.get_config(data)
