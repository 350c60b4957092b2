"""What an attack returns for an example that stays robust is the best that it saw, not the last."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import run
from linear_model import WEIGHTS, apply, examples

from jaxadv.losses import margin

IMAGES, LABELS = examples(n=8)
BUDGETS = range(1, 13)
OPTIONS = {
    "apgd": {"num_steps": 12, "num_targets": 0, "eps": 0.3},
    "square": {"eps": 0.3},
    "random_search": {"eps": 0.3},
}


def wavy(key, images):
    """Margins that go up and down along any path, and never above zero."""
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
    assert (np.diff(margins, axis=0) == 0).any()  # a step led down, and was not kept
    for result in found:
        seen = margin(wavy(None, result.images), LABELS)
        np.testing.assert_allclose(result.margins, seen, atol=1e-5)
