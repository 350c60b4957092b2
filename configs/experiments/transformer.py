"""A small vision transformer beside BigNet: 4 epochs of the study's curriculum.

    python run.py --config configs/experiments/transformer.py:vit_3_128

The argument is vit_3_128 or bignet. The ramp is compressed to 4 epochs, which is what two cores
train of the transformer in 150 minutes; the study trained for an unknown number of epochs.
Evaluation is on the first 1,000 test images. See results/study/index.md.
"""

from ml_collections import ConfigDict

from configs.experiments.variants import get_variant

NUM_EPOCHS = 4
VARIANTS = {
    name: {"model.name": name, "train.num_epochs": NUM_EPOCHS, "evaluation.num_examples": 1000}
    for name in ("vit_3_128", "bignet")
}


def get_config(model: str = "vit_3_128") -> ConfigDict:
    """Return the training config of that model."""
    return get_variant(VARIANTS, model)
