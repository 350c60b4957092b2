"""Counts with their uncertainty."""

from typing import SupportsInt


def proportion(successes: SupportsInt, n: SupportsInt) -> dict:
    """Returns an accuracy as reports write it: the estimate, its interval and its count.

    The interval is Wilson's at 95 % (Wilson 1927), which stays inside [0, 1] and is
    honest at 0 and at n, where the normal approximation has width zero.

    Args:
      successes: examples classified correctly.
      n: examples in all, at least one.

    >>> proportion(0, 100)["ci95"]
    [0.0, 0.036993...]
    """
    from scipy.stats import binomtest  # takes a second, which the start need not wait for

    interval = binomtest(int(successes), int(n)).proportion_ci(0.95, method="wilson")
    return {
        "accuracy": int(successes) / int(n),
        "ci95": [float(interval.low), float(interval.high)],
        "n": int(n),
    }
