"""A test of two classifiers on the same examples."""

import numpy as np
from jaxtyping import Bool


def mcnemar(first: Bool[np.ndarray, "n"], second: Bool[np.ndarray, "n"]) -> float:
    """Return the p value of McNemar's exact test, two-sided (McNemar, 1947).

    >>> mcnemar(np.array([True, False, False]), np.array([True, True, True]))
    0.5

    Args:
      first: whether the first classifier is correct on each example.
      second: whether the second one is.
    """
    from scipy.stats import binomtest  # slow to import

    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
