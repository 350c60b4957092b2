"""Compare random, ODI and ADI-like starts of PGD at equal numbers of gradients.

    PYTHONPATH=. python benchmarks/starts.py runs/curriculum --out results/starts

ODI (Tashiro et al., 2020) moves a random start along the gradient of randomly weighted logits, so
that the outputs of the starts differ. The start "adi" lowers the weight of the label and raises
that of another class, as ADI does, the start of A3 (Liu et al., 2022). It is not adaptive: A3
chooses the signs from earlier successes, and the class by its logit. The steps of a start count as
gradients: each restart has the same number in total. PGD ascends the margin; its step size falls
from 2 eps along a cosine.

L-inf at eps 8/255, on held-out images that the model was not trained on. The table has the accuracy
after each restart, and the number of images on which a start differs from the random one.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxadv.core.devices import set_up_cpu
from jaxadv.core.logits import predicted_class
from jaxadv.core.losses import margin
from jaxadv.evaluation.metrics import binomial_accuracy
from jaxadv.runs.workdir import load_dataset, provenance, read, restore_classifier

EPS, BATCH_SIZE = 8 / 255, 250
NUM_GRADIENTS, NUM_RESTARTS = 20, 5
NUM_START_STEPS = {"random": 0, "odi": 2, "adi": 7}  # after their papers
_LOW, _HIGH, _RAISED = -0.5, 0.1, 0.8  # weights of ADI: of the label, and of the other class


def main() -> None:
    """Attack from each kind of start, print a table, and write a JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="workdir of a training run")
    parser.add_argument("--num-examples", type=int, default=1000)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    options = parser.parse_args()
    set_up_cpu()
    began = time.monotonic()
    trained = read(options.run)
    dataset = load_dataset(trained.data)
    model, restored = restore_classifier(trained, dataset, options.run, "best")
    model_fn = partial(model.apply, restored.items["weights"])
    images = np.asarray(dataset.validation.images[: options.num_examples], np.float32) / 255
    labels = np.asarray(dataset.validation.labels[: options.num_examples])
    fooled = {kind: attack(model_fn, images, labels, kind) for kind in NUM_START_STEPS}
    rows = [describe(kind, found, fooled["random"]) for kind, found in fooled.items()]
    for row in rows:
        print(row)
    options.out.mkdir(parents=True, exist_ok=True)
    result = {
        "run": trained.to_dict(),
        "num_examples": len(labels),
        "gradients_of_a_restart": NUM_GRADIENTS,
        "rows": rows,
        "provenance": provenance(time.monotonic() - began),
    }
    path = options.out / f"{options.run.name}.json"
    path.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")


def attack(model_fn: Callable, images: np.ndarray, labels: np.ndarray, kind: str) -> np.ndarray:
    """Return for each restart and image whether it, or an earlier one, fooled the model."""
    found = []
    for begin in range(0, len(labels), BATCH_SIZE):
        rows = slice(begin, begin + BATCH_SIZE)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), begin), NUM_RESTARTS)
        restarts = [run_once(model_fn, key, images[rows], labels[rows], kind) for key in keys]
        found.append(np.logical_or.accumulate(np.asarray(restarts)))
    return np.concatenate(found, axis=1)


@partial(jax.jit, static_argnames=("model_fn", "kind"))
def run_once(
    model_fn: Callable, key: jax.Array, images: jax.Array, labels: jax.Array, kind: str
) -> jax.Array:
    """Return whether one restart misclassifies each image at any iterate."""
    noise_key, weight_key = jax.random.split(key)

    def project(iterate: jax.Array) -> jax.Array:
        return jnp.clip(jnp.clip(iterate, images - EPS, images + EPS), 0, 1)

    def towards(iterate: jax.Array, objective: Callable, size: Any) -> tuple[jax.Array, jax.Array]:
        def total(iterate: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = model_fn(iterate)
            return objective(logits).sum(), predicted_class(logits) != labels

        gradient, wrong = jax.grad(total, has_aux=True)(iterate)
        return project(iterate + size * jnp.sign(gradient)), wrong

    weights = start_weights(weight_key, labels, model_fn(images).shape[1], kind)
    iterate = project(images + jax.random.uniform(noise_key, images.shape, minval=-EPS, maxval=EPS))
    wrong = jnp.zeros(len(labels), bool)
    num_start = NUM_START_STEPS[kind]
    for _ in range(num_start):
        iterate, now = towards(iterate, lambda logits: (weights * logits).sum(1), EPS)
        wrong |= now

    def step(state: tuple, i: jax.Array) -> tuple[tuple, None]:
        iterate, wrong = state
        size = EPS * (1 + jnp.cos(jnp.pi * i / (NUM_GRADIENTS - num_start)))
        iterate, now = towards(iterate, partial(margin, labels=labels), size)
        return (iterate, wrong | now), None

    steps = jnp.arange(NUM_GRADIENTS - num_start)
    (iterate, wrong), _ = lax.scan(step, (iterate, wrong), steps)
    return wrong | (predicted_class(model_fn(iterate)) != labels)


def start_weights(key: jax.Array, labels: jax.Array, num_classes: int, kind: str) -> jax.Array:
    """Return the weights of the logits that the start ascends, (batch, classes)."""
    weight_key, low_key, class_key = jax.random.split(key, 3)
    shape = (len(labels), num_classes)
    weights = jax.random.uniform(weight_key, shape, minval=-1, maxval=1)
    if kind != "adi":
        return weights
    rows = jnp.arange(len(labels))
    low = jax.random.uniform(low_key, (len(labels),), minval=_LOW, maxval=_HIGH)
    other = (labels + jax.random.randint(class_key, (len(labels),), 1, num_classes)) % num_classes
    return weights.at[rows, labels].set(low).at[rows, other].set(_RAISED)


def describe(kind: str, fooled: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """Return a row of the table."""
    accuracies = [binomial_accuracy((~one).sum(), len(one)) for one in fooled]
    return {
        "start": kind,
        "start_steps": NUM_START_STEPS[kind],
        "accuracy_after_restarts": [one.accuracy for one in accuracies],
        "ci95": accuracies[-1].ci95,
        "fools_more_than_random": int((fooled[-1] & ~reference[-1]).sum()),
        "fools_less_than_random": int((reference[-1] & ~fooled[-1]).sum()),
    }


if __name__ == "__main__":
    main()
