"""Catastrophic overfitting of training with one-step attacks (Wong et al., 2020)."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

_LEAST_FALL = 0.1  # of the robust accuracy, beyond chance


def describe_catastrophic_overfitting(
    line: Mapping[str, Any], best_robust: float, config: ConfigDict
) -> str | None:
    """Return a message if the robust accuracy has collapsed and the clean accuracy has not.

    Args:
      line: metrics of an epoch.
      best_robust: best robust accuracy on held-out images in the epochs before.
      config: of the training.
    """
    clean, robust = line["validation_accuracy_clean"], line["validation_accuracy_robust"]
    has_one_step = config.attack.fraction > 0 and line["num_steps"] == 1
    has_collapsed = robust < best_robust / 2 and robust < best_robust - _LEAST_FALL
    if not has_one_step or not has_collapsed or clean < best_robust:
        return None
    cures = ["more steps", "a smaller config.attack.eps_end"]
    if config.attack.norm == "linf" and config.attack.name != "n_fgsm":
        cures.append("config.attack.name=n_fgsm")
    if config.attack.norm == "linf" and not config.train.gradient_alignment:
        cures.append("config.train.gradient_alignment=0.2")
    return (
        "Catastrophic overfitting (Wong et al., 2020): the robust accuracy on held-out images fell "
        f"from {best_robust:.1%} to {robust:.1%}. The attack of one step no longer finds "
        f"adversarial images. Try {', or '.join(cures)}. The best checkpoint is kept."
    )
