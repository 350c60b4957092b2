import pytest
from tiny_config import tiny_config

from jaxadv.training.overfitting import describe_catastrophic_overfitting


def describe(robust=0.1, clean=0.9, num_steps=1, best=0.5, **changes):
    line = {
        "validation_accuracy_clean": clean,
        "validation_accuracy_robust": robust,
        "num_steps": num_steps,
    }
    return describe_catastrophic_overfitting(line, best, tiny_config(**changes))


def test_a_collapse_of_the_robust_accuracy_is_described():
    message = describe(**{"attack.name": "pgd"})
    assert "fell from 50.0% to 10.0%" in message
    assert "attack.name=n_fgsm, or config.train.gradient_alignment=0.2" in message
    assert "n_fgsm" not in describe(**{"attack.name": "n_fgsm"})
    assert "n_fgsm" not in describe(**{"attack.norm": "l2"})


@pytest.mark.parametrize(
    "case",
    [
        {"num_steps": 2},  # the attack has more than one step
        {"attack.fraction": 0.0},  # natural training
        {"robust": 0.26},  # more than half of the best
        {"robust": 0.01, "best": 0.05},  # within chance
        {"clean": 0.1},  # the training diverged
    ],
)
def test_other_falls_are_not(case):
    assert describe(**case) is None
