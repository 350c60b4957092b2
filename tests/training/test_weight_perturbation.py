import jax.numpy as jnp
import numpy as np

from jaxadv.training.weight_perturbation import perturb_weights


def test_each_kernel_moves_up_the_loss_by_a_share_of_its_norm():
    params = {"kernel": jnp.array([[3.0, 0.0], [0.0, 4.0]]), "bias": jnp.array([1.0, 2.0])}
    gradients = {"kernel": jnp.array([[0.0, 2.0], [0.0, 0.0]]), "bias": jnp.array([1.0, 1.0])}
    moved = perturb_weights(params, gradients, 0.01)
    np.testing.assert_allclose(moved["kernel"], [[3.0, 0.05], [0.0, 4.0]], rtol=1e-6)
    np.testing.assert_array_equal(moved["bias"], params["bias"])


def test_a_gradient_of_zero_moves_nothing():
    params = {"kernel": jnp.ones((2, 2))}
    moved = perturb_weights(params, {"kernel": jnp.zeros((2, 2))}, 0.01)
    np.testing.assert_array_equal(moved["kernel"], params["kernel"])
