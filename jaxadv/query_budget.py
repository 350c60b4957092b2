"""What queries bought a black-box attack: accuracy over the budget, and the cost of successes."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from jaxadv.metrics import proportion


def accuracy_over_queries(
    broken: Bool[np.ndarray, "n"], queries: Int[np.ndarray, "n"], budget: int, *, anytime: bool
) -> list[dict[str, Any]]:
    """Returns the accuracy at budgets 1, 2, 5, 10, 20, ... and at the whole one, if it is not 0.

    An attack that stops with its first success would have had it with any budget that held it, so
    one run tells the accuracy at every smaller budget. One that looks only at the end does not.

    Args:
      broken: whether each example of the split is misclassified in the end.
      queries: what the attack took for it; 0 where it was misclassified as it stood.
      budget: of each example.
      anytime: whether the attack stops with its first success.
    """
    decades = [d * 10**k for k in range(len(str(budget))) for d in (1, 2, 5)]
    budgets = [*(b for b in decades if b < budget and anytime), *([budget] if budget else [])]
    return [
        {"queries": b, **proportion((~broken | (queries > b)).sum(), len(broken))} for b in budgets
    ]


def cost_of_success(
    broken: Bool[np.ndarray, "m"], queries: Int[np.ndarray, "m"]
) -> dict[str, float | None]:
    """Returns the share of the attacked examples that it broke, and their mean and median cost."""
    spent = queries[broken]
    return {
        "success_rate": float(broken.mean()) if len(broken) else None,
        "mean_queries": float(spent.mean()) if len(spent) else None,
        "median_queries": float(np.median(spent)) if len(spent) else None,
    }
