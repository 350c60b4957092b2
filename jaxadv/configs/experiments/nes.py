"""The study's NES on a trained `net`, over the query budget.

    python run.py --config configs/experiments/nes.py --config.checkpoint=runs/optimizer_adamw

200 test images, eps 0.1, budgets from 500 to 4,000 queries, no early stopping. Expected accuracy
after 4,000 queries on CIFAR-10 (TFDS, images JPEG-compressed), one seed: `net` after natural
training 0.0 %, after standard adversarial training 14.0 %, under the study's curriculum 25.5 %;
1 to 2 min on 2 cores of an AMD EPYC. See results/study/index.md.
"""

from ml_collections import ConfigDict

from jaxadv.configs import evaluate


def get_config() -> ConfigDict:
    """Return the config of the evaluation."""
    return evaluate.get_config("study_nes")
