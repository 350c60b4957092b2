"""Measurements for the tests of verdicts."""

import numpy as np

from jaxadv.evaluation.metrics import binomial_accuracy
from jaxadv.study.measurements import Measurement

N = 1000  # images


def measurement(*robust_ranges, training="net", weights="w", n=N, learned=True):
    """Return a measurement in which the images in ranges (start, end) are robust."""
    robust = np.zeros(n, bool)
    for start, end in robust_ranges:
        robust[start:end] = True
    share = binomial_accuracy(robust.sum(), n)
    source = (weights, "pgd40/0.03")
    return Measurement(share.accuracy, share.ci95, n, robust, training, source, learned=learned)


def of_training(by_seed, training):
    """Return the measurements as those of another training, with other weights."""
    return {
        seed: one._replace(training=training, source=(f"{training}{seed}", one.source[1]))
        for seed, one in by_seed.items()
    }
