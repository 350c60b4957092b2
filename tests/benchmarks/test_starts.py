import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.starts import EPS, NUM_ODI_STEPS, attack_all, describe

WEIGHTS = np.random.default_rng(0).normal(size=(48, 5)).astype(np.float32)
IMAGES = np.random.default_rng(1).uniform(0.3, 0.7, (64, 4, 4, 3)).astype(np.float32)


def logits_fn(key, images):
    return images.reshape(len(images), -1) @ WEIGHTS


@pytest.mark.parametrize("num_odi_steps", NUM_ODI_STEPS.values())
@pytest.mark.parametrize("attack", ["pgd", "apgd"])
def test_a_linear_model_is_fooled_where_its_boundary_is_within_eps(attack, num_odi_steps):
    logits = logits_fn(None, IMAGES)
    labels = logits.argmax(1)
    gaps = WEIGHTS.T[labels][:, None] - WEIGHTS.T[None]
    margins = np.take_along_axis(logits, labels[:, None], 1) - logits
    with np.errstate(invalid="ignore"):
        distances = np.nanmin(margins / np.abs(gaps).sum(2), axis=1)
    fooled = attack_all(logits_fn, jnp.asarray(IMAGES), jnp.asarray(labels), attack, num_odi_steps)
    assert 5 < (distances < EPS).sum() < 60
    np.testing.assert_array_equal(fooled[-1], distances < EPS)
    assert (fooled[1:] >= fooled[:-1]).all()


def test_rows_compare_with_the_random_start():
    random, odi = np.zeros((5, 10), bool), np.ones((5, 10), bool)
    random[:, :3], odi[:, 0], odi[:, 9] = True, False, False
    row = describe("pgd", "odi", odi, random)
    assert row["accuracy_after_restarts"] == [0.2] * 5
    assert (row["fools_more_than_random"], row["fools_less_than_random"]) == (6, 1)
    assert row["p_value_of_mcnemar"] == pytest.approx(2 * 8 / 2**7)
