import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.starts import EPS, NUM_START_STEPS, attack, start_weights

WEIGHTS = np.random.default_rng(0).normal(size=(48, 5)).astype(np.float32)
IMAGES = np.random.default_rng(1).uniform(0.3, 0.7, (64, 4, 4, 3)).astype(np.float32)


def model_fn(images):
    return images.reshape(len(images), -1) @ WEIGHTS


@pytest.mark.parametrize("kind", NUM_START_STEPS)
def test_a_linear_model_is_fooled_where_its_boundary_is_within_eps(kind):
    logits = np.asarray(model_fn(IMAGES))
    labels = logits.argmax(1)
    gaps = WEIGHTS.T[labels][:, None] - WEIGHTS.T[None]
    margins = np.take_along_axis(logits, labels[:, None], 1) - logits
    with np.errstate(invalid="ignore"):
        distances = np.nanmin(margins / np.abs(gaps).sum(2), axis=1)
    fooled = attack(model_fn, IMAGES, labels, kind)
    assert 5 < (distances < EPS).sum() < 60
    np.testing.assert_array_equal(fooled[-1], distances < EPS)
    assert (fooled[1:] >= fooled[:-1]).all()


def test_adi_lowers_the_label_and_raises_one_class():
    labels = jnp.arange(500) % 10
    weights = np.asarray(start_weights(jax.random.key(0), labels, 10, "adi"))
    of_labels = weights[np.arange(500), labels]
    assert of_labels.min() >= -0.5
    assert of_labels.max() <= 0.1
    assert (np.isclose(weights, 0.8).sum(1) == 1).all()
