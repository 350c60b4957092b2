"""Standard against curriculum adversarial training, as the study ran them: BigNet, 10 epochs.

    python run.py --config configs/experiments/adversary.py:standard

The argument is standard, eps .03 and 10 steps of .008, or curriculum, which ends at three times
that eps and has spent twice the gradients. For curricula at equal cost see curricula.py. Expected
result and time: see results/study/index.md.
"""

from ml_collections import ConfigDict

from configs import standard, study_curriculum
from configs.experiments import arms

ARMS = {"standard": standard.get_config, "curriculum": study_curriculum.get_config}


def get_config(arm: str = "curriculum") -> ConfigDict:
    """Returns the config of that arm."""
    return arms.get_config({name: {} for name in ARMS}, arm, ARMS.get(arm, standard.get_config))
