"""Accuracies with confidence intervals, and the cost of black-box attacks in queries."""

from typing import SupportsInt

import numpy as np
from jaxtyping import Bool, Int

from jaxadv.core.results import Accuracy, AccuracyAtBudget, QueryCost


def binomial_accuracy(num_correct: SupportsInt, n: SupportsInt) -> Accuracy:
    """Return an accuracy with its 95 % Wilson interval (Wilson, 1927).

    The interval stays inside [0, 1] and has a positive width also at 0 and at n correct examples,
    where that of the normal approximation is zero.

    Args:
      num_correct: number of correctly classified examples.
      n: number of examples, at least one.

    >>> binomial_accuracy(0, 100).ci95
    (0.0, 0.036993...)
    """
    from scipy.stats import binomtest  # slow to import

    interval = binomtest(int(num_correct), int(n)).proportion_ci(0.95, method="wilson")
    return Accuracy(
        accuracy=int(num_correct) / int(n),
        ci95=(float(interval.low), float(interval.high)),
        n=int(n),
    )


def accuracy_over_queries(
    fooled: Bool[np.ndarray, "n"], queries: Int[np.ndarray, "n"], budget: int, *, anytime: bool
) -> tuple[AccuracyAtBudget, ...]:
    """Return the accuracy at the query budgets 1, 2, 5, 10, 20, ... and at the full budget.

    An attack that stops at its first success would have had it with any budget that covers its
    queries. One run therefore gives the accuracy at all smaller budgets.

    Args:
      fooled: whether each example of the split is misclassified at the end.
      queries: that the attack spent on it; 0 where the clean image is misclassified.
      budget: queries per example; 0 gives no accuracies.
      anytime: whether the attack stops at its first success. Otherwise only the full budget counts.
    """
    decades = [d * 10**k for k in range(len(str(budget))) for d in (1, 2, 5)]
    budgets = [*(b for b in decades if b < budget and anytime), *([budget] if budget else [])]
    accuracies = [binomial_accuracy((~fooled | (queries > b)).sum(), len(fooled)) for b in budgets]
    return tuple(
        AccuracyAtBudget(queries=b, accuracy=one.accuracy, ci95=one.ci95, n=one.n)
        for b, one in zip(budgets, accuracies, strict=True)
    )


def query_cost(
    fooled: Bool[np.ndarray, "m"],
    queries: Int[np.ndarray, "m"],
    over_queries: tuple[AccuracyAtBudget, ...],
) -> QueryCost:
    """Return the success rate of a black-box attack, and the mean and median cost of a success.

    Args:
      fooled: whether each attacked example, correctly classified before, is misclassified.
      queries: that the attack spent on it.
      over_queries: accuracy at growing budgets.
    """
    spent = queries[fooled]
    return QueryCost(
        success_rate=float(fooled.mean()) if len(fooled) else None,
        mean_queries=float(spent.mean()) if len(spent) else None,
        median_queries=float(np.median(spent)) if len(spent) else None,
        over_queries=over_queries,
    )
