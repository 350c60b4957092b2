"""Linear models, for which the result of an attack has a closed form."""

from functools import partial

import jax.numpy as jnp
import numpy as np

SHAPE = (4, 4, 3)
SIZE = 48
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
DUAL_ORDERS = {"linf": 1, "l2": 2, "l1": np.inf}


def linear(weights):
    """A model whose logits are the images times weights of shape (SIZE, classes)."""
    return partial(apply, weights)


def apply(weights, key, images):
    return images.reshape(-1, SIZE) @ jnp.asarray(weights, images.dtype)


def random_weights(num_classes):
    weights = np.random.default_rng(0).normal(size=(SIZE, num_classes))
    return weights - weights.mean(axis=0)  # a grey image is on all decision boundaries


# For tests that need any model; attacks on it compile once.
WEIGHTS = random_weights(5)
LOGITS_FN = linear(WEIGHTS)


def disjoint_weights(num_classes):
    """Classes that use different pixels, with weights of equal magnitude.

    All pairs of classes are equally far apart in any norm, so the smallest perturbation reaches the
    class that is nearest in logits.
    """
    owner = np.arange(SIZE) % num_classes
    signs = np.where(np.arange(SIZE) // num_classes % 2, -1.0, 1.0)
    return np.where(owner[:, None] == np.arange(num_classes), signs[:, None], 0.0)


def examples(num_classes=5, n=32, seed=0, low=0.0, high=1.0):
    generator = np.random.default_rng(seed)
    images = generator.uniform(low, high, (n, *SHAPE)).astype(np.float32)
    return jnp.asarray(images), jnp.asarray(generator.integers(0, num_classes, n, np.int32))


def flat(batch):
    return np.asarray(batch, np.float64).reshape(len(batch), -1)


def length(deltas, norm):
    return np.linalg.norm(flat(deltas), ORDERS[norm], axis=1)


def radii(weights, images, labels, norm):
    """The distance of each image to the nearest other class; negative where misclassified."""
    gaps = weights.T[np.asarray(labels)][:, None] - weights.T
    margins = np.einsum("nkd,nd->nk", gaps, flat(images))
    distances = np.linalg.norm(gaps, DUAL_ORDERS[norm], axis=2)
    is_label = np.eye(weights.shape[1], dtype=bool)[np.asarray(labels)]
    return np.divide(margins, distances, out=np.full_like(margins, np.inf), where=~is_label).min(1)


def numpy_pgd(weights, start, images, labels, *, eps, step_size, num_steps, norm, loss):
    """PGD on a linear model in NumPy, with an explicit gradient."""
    clean, adversarial = flat(images), flat(start)
    onehot = np.eye(weights.shape[1])[np.asarray(labels)]
    for _ in range(num_steps):
        logits = adversarial @ weights
        if loss == "cross_entropy":
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            towards = odds / odds.sum(axis=1, keepdims=True)
        else:
            towards = np.eye(weights.shape[1])[np.where(onehot, -np.inf, logits).argmax(axis=1)]
        gradient = (towards - onehot) @ weights.T
        if norm == "linf":
            adversarial = adversarial + step_size * np.sign(gradient)
            adversarial = np.minimum(np.maximum(adversarial, clean - eps), clean + eps)
        elif norm == "l1":
            room = np.where(gradient > 0, 1 - adversarial, adversarial)
            gradient *= room > 1e-6
            largest = np.abs(gradient) == np.abs(gradient).max(axis=1, keepdims=True)
            moved = adversarial + step_size * largest * np.sign(gradient)
            adversarial = clean + l1_projection(clean, moved - clean, eps)
        else:
            gradient /= np.sqrt((gradient**2).sum(axis=1, keepdims=True))
            delta = adversarial + step_size * gradient - clean
            distance = np.sqrt((delta**2).sum(axis=1, keepdims=True))
            adversarial = clean + np.where(distance > eps, delta * eps / distance, delta)
        adversarial = np.minimum(np.maximum(adversarial, 0), 1)
    return adversarial.reshape(images.shape)


def l1_projection(clean, deltas, eps):
    """The nearest perturbation of each row in the L1 ball within the box, by its breakpoints."""
    projected = []
    for x, delta in zip(clean, deltas, strict=True):
        size, room = np.abs(delta), np.where(delta > 0, 1 - x, x)

        def length(amount, size=size, room=room):
            return np.clip(size - amount, 0, room).sum()

        amount = 0.0
        if length(0.0) > eps:
            points = np.unique(np.concatenate([[0], size, np.maximum(size - room, 0)]))
            lengths = [length(point) for point in points]
            amount = np.interp(-eps, np.negative(lengths), points)
        projected.append(np.sign(delta) * np.clip(size - amount, 0, room))
    return np.stack(projected)
