"""Adversarial weight perturbation (AWP; Wu et al., 2020)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

_TINY = 1e-20


def perturb_weights(params: PyTree, gradients: PyTree, gamma: float) -> PyTree:
    """Return the weights that AWP trains at: one step of ascent on the loss.

    Each tensor w moves by gamma ||w|| g / ||g|| along its gradient g (eq. 8 to 10, with one step).
    Only tensors of two axes or more move, which in most models leaves out biases and the scales of
    norms, as in the authors' code.

    Args:
      params: the weights.
      gradients: of the loss, of the same structure.
      gamma: size of the perturbation relative to the norm of each tensor.
    """

    def perturb(weights: Array, gradient: Array) -> Array:
        if weights.ndim < 2:
            return weights
        length = jnp.linalg.norm(weights.ravel()) / (jnp.linalg.norm(gradient.ravel()) + _TINY)
        return weights + gamma * length * gradient

    return jax.tree.map(perturb, params, gradients)
