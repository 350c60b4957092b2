import json
import math

import numpy as np
import pytest

from jaxadv.core.results import Accuracy
from jaxadv.evaluation.metrics import binomial_accuracy


@pytest.mark.parametrize(
    ("successes", "n", "interval"),
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I.
    [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_interval_is_the_published_one(successes, n, interval):
    assert binomial_accuracy(successes, n).ci95 == pytest.approx(interval, abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (5123, 10_000), (10_000, 10_000)])
def test_interval_is_wilsons_formula(successes, n):
    z, p = 1.959963984540054, successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = binomial_accuracy(successes, n).ci95
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert 0 <= low <= p <= high <= 1


def test_result_of_numpy_counts_is_plain_json():
    result = binomial_accuracy(np.int64(3), np.int32(4))
    assert Accuracy.from_json(json.loads(json.dumps(result.to_json()))).n == 4
    assert (result.accuracy, result.n) == (0.75, 4)
