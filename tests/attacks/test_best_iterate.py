"""For robust examples, attacks return the candidate with the largest margin, not the last one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import run
from linear_model import WEIGHTS, apply, examples

from jaxadv.core.losses import margin

pytestmark = pytest.mark.slow  # compiles much

IMAGES, LABELS = examples(n=8)
BUDGETS = range(1, 13)
OPTIONS = {
    "apgd": {"num_steps": 12, "num_targets": 0, "eps": 0.3},
    "square": {"eps": 0.3},
    "random_search": {"eps": 0.3},
}


def wavy(key, images):
    """Margins that oscillate along every path and stay below zero."""
    return jnp.sin(5 * apply(WEIGHTS, key, images)) + 10 * jax.nn.one_hot(LABELS, 5)


@pytest.mark.parametrize("name", OPTIONS)
def test_margins_are_the_largest_so_far(name):
    found = [
        run(name, wavy, IMAGES, LABELS, **OPTIONS[name] | {"num_queries": budget})
        for budget in BUDGETS
    ]
    margins = np.stack([result.margins for result in found])
    assert not found[-1].success.any()
    assert (np.diff(margins, axis=0) >= 0).all()
    assert (np.diff(margins, axis=0) == 0).any()  # a step decreased the margin and was rejected
    for result in found:
        seen = margin(wavy(None, result.images), LABELS)
        np.testing.assert_allclose(result.margins, seen, atol=1e-5)
