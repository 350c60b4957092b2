import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.core.losses import (
    LOSSES,
    cross_entropy,
    dlr,
    kl_divergence,
    make_objective,
    make_targeted_objective,
    margin,
    probability,
    probability_margin,
    soft_cross_entropy,
)

LOGITS = jnp.array([[2.0, -1.0, 0.5], [0.0, 0.0, 3.0], [1.0, 1.0, 1.0]])


def test_cross_entropy_is_minus_log_softmax():
    losses = cross_entropy(LOGITS, jnp.array([0, 1, 2]))
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(losses, -np.log(probabilities[[0, 1, 2], [0, 1, 2]]), rtol=1e-6)


def test_cross_entropy_of_large_logits_is_finite():
    losses = cross_entropy(LOGITS * 1000, jnp.array([1, 0, 0]))
    np.testing.assert_allclose(losses, [3000, 3000, np.log(3)], atol=1e-3)


def test_margin_is_the_largest_other_logit_minus_the_labels():
    assert margin(LOGITS, jnp.array([0, 1, 2])).tolist() == [-1.5, 3.0, 0.0]
    assert margin(LOGITS, jnp.array([1, 2, 0])).tolist() == [3.0, -3.0, 0.0]


def test_margin_is_positive_for_misclassified_examples():
    logits = jax.random.normal(jax.random.key(0), (200, 5))
    labels = jax.random.randint(jax.random.key(1), (200,), 0, 5)
    np.testing.assert_array_equal(margin(logits, labels) > 0, logits.argmax(axis=1) != labels)


@pytest.mark.parametrize("scale", [1e25, 1e30, 1e37])
def test_margin_of_huge_logits_is_finite_and_has_a_gradient(scale):
    logits, labels = scale * jnp.array([[3.0, 5.0, -9.0]]), jnp.array([0])
    assert 0 < margin(logits, labels)[0] < jnp.inf
    assert margin(logits, jnp.array([1]))[0] < 0
    gradient = jax.grad(lambda logits: margin(logits, labels).sum())(logits)[0]
    assert gradient[1] == -gradient[0] > 0


def test_probability_is_the_negative_probability_of_the_label():
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]])) + 5
    np.testing.assert_allclose(probability(logits, jnp.array([0, 2])), [-0.7, -0.1], rtol=1e-5)


def test_probability_margin_is_the_margin_of_the_probabilities():
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]])) + 5
    found = probability_margin(logits, jnp.array([0, 2]))
    np.testing.assert_allclose(found, [-0.5, 0.6], rtol=1e-5)
    assert probability_margin(jnp.array([[jnp.nan, 0.0]]), jnp.array([0])) == jnp.inf


def test_dlr_is_the_margin_divided_by_first_minus_third_logit():
    """Croce & Hein (2020), eq. 6; the labels have ranks 1, 2 and 4."""
    logits = jnp.array([[5.0, 3.0, 1.0, 0.0], [5.0, 3.0, 1.0, 0.0], [5.0, 3.0, 1.0, 0.0]])
    np.testing.assert_allclose(dlr(logits, jnp.array([0, 1, 3])), [-2 / 4, 2 / 4, 5 / 4])


def test_targeted_dlr_divides_by_first_minus_mean_of_third_and_fourth_logit():
    """Croce & Hein (2020), eq. 7."""
    logits = jnp.array([[5.0, 3.0, 1.0, 0.0], [3.0, 5.0, 0.0, 1.0]])
    objective = make_targeted_objective("dlr", jnp.array([0, 0]), jnp.array([3, 1]))
    np.testing.assert_allclose(objective(logits), [-5 / 4.5, 2 / 4.5], rtol=1e-6)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_dlr_of_few_classes_is_the_margin(num_classes):
    """Two classes have no third logit; three have no fourth, which the targeted DLR needs."""
    logits = jnp.array([[4.0, 1.0, -2.0], [1.0, 4.0, -2.0]])[:, :num_classes]
    labels, targets = jnp.array([0, 0]), jnp.array([1, 1])
    np.testing.assert_allclose(
        make_targeted_objective("dlr", labels, targets)(logits), [-3, 3], rtol=1e-6
    )
    scale = {2: 1, 3: 6}[num_classes]
    np.testing.assert_allclose(dlr(logits, labels), np.array([-3, 3]) / scale, rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_ascending_an_objective_moves_from_the_label_to_the_target(loss):
    """Without a target the gradient lowers the label's logit; with one it raises the target's."""
    logits = jnp.array([[1.0, 0.5, 0.2, -0.3, -1.0]])
    label, target = jnp.array([0]), jnp.array([2])
    away = jax.grad(lambda logits: make_objective(loss, label, None)(logits).sum())(logits)
    assert away[0, 0] < 0
    for objective in (
        make_objective(loss, label, target),
        make_targeted_objective(loss, label, target),
    ):
        towards = jax.grad(lambda logits, fn=objective: fn(logits).sum())(logits)
        assert towards[0, 2] > 0
        assert towards[0, 0] < 0


def test_gradient_of_margin_is_nonzero_for_two_logits():
    gradient = jax.grad(lambda logits: margin(logits, jnp.array([0, 1, 2])).sum())(LOGITS)
    np.testing.assert_array_equal(gradient[:2], [[-1, 0, 1], [0, -1, 1]])


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_depend_on_their_own_example_only(loss):
    labels = jnp.array([0, 1, 2])
    each = [LOSSES[loss](LOGITS[i : i + 1], labels[i : i + 1])[0] for i in range(3)]
    np.testing.assert_array_equal(LOSSES[loss](LOGITS, labels), each)


def test_soft_cross_entropy_weights_the_classes_by_their_targets():
    logits = jax.random.normal(jax.random.key(0), (2, 5))
    targets = jnp.array([[0.2, 0.3, 0.5, 0, 0], [0, 0, 0, 0, 1]])
    expected = -(np.asarray(targets) * np.asarray(jax.nn.log_softmax(logits))).sum(-1)
    np.testing.assert_allclose(soft_cross_entropy(logits, targets), expected, rtol=1e-5)


def test_kl_divergence_has_the_reference_as_first_argument():
    first, second = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.9, 0.1]]))
    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    np.testing.assert_allclose(kl_divergence(first, second + 3), [expected], rtol=1e-5)
    np.testing.assert_allclose(kl_divergence(first, first), [0], atol=1e-7)
