import json
import math

import numpy as np
import pytest

from jaxadv.metrics import proportion


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
    assert proportion(successes, n)["ci95"] == pytest.approx(interval, abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (5123, 10_000), (10_000, 10_000)])
def test_interval_is_wilsons_formula(successes, n):
    z, p = 1.959963984540054, successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = proportion(successes, n)["ci95"]
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert 0 <= low <= p <= high <= 1


def test_result_of_numpy_counts_is_plain_json():
    result = proportion(np.int64(3), np.int32(4))
    assert json.loads(json.dumps(result)) == result
    assert (result["accuracy"], result["n"]) == (0.75, 4)
