"""Compare random starts of PGD and APGD with those of ODI, at equal numbers of gradients.

    PYTHONPATH=. python benchmarks/starts.py runs/curriculum --out results/starts

The steps of ODI (Tashiro et al., 2020) count as gradients: each restart has the same number in
total. Both attacks ascend the margin, in L-inf at eps 8/255, on held-out images that the model was
not trained on. The table has the accuracy after each restart, and the number of images on which a
start differs from the random one.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.attacks import apgd, pgd
from jaxadv.core.devices import set_up_cpu
from jaxadv.core.logits import predicted_class
from jaxadv.core.paired_test import mcnemar
from jaxadv.core.types import Images, Labels, LogitsFn
from jaxadv.evaluation.metrics import binomial_accuracy
from jaxadv.runs.workdir import load_dataset, provenance, read, restore_classifier

EPS, BATCH_SIZE = 8 / 255, 250
NUM_GRADIENTS, NUM_RESTARTS = 20, 5
NUM_ODI_STEPS = {"random": 0, "odi": 2}


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

    def logits_fn(key: jax.Array, images: jax.Array) -> jax.Array:
        return model.apply(restored.items["weights"], images)

    images = jnp.asarray(dataset.validation.images[: options.num_examples], jnp.float32) / 255
    labels = jnp.asarray(dataset.validation.labels[: options.num_examples])
    rows = []
    for attack in ("pgd", "apgd"):
        fooled = {
            start: attack_all(logits_fn, images, labels, attack, NUM_ODI_STEPS[start])
            for start in NUM_ODI_STEPS
        }
        rows += [describe(attack, start, fooled[start], fooled["random"]) for start in fooled]
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


def attack_all(
    logits_fn: LogitsFn, images: Images, labels: Labels, attack: str, num_odi_steps: int
) -> np.ndarray:
    """Return for each restart and image whether it, or an earlier one, fooled the model."""
    if attack == "pgd":
        run = partial(pgd, step_size=EPS / 4, num_steps=NUM_GRADIENTS - num_odi_steps)
    else:
        run = partial(apgd, num_steps=NUM_GRADIENTS - 1 - num_odi_steps)
    found = []
    for begin in range(0, len(labels), BATCH_SIZE):
        rows = slice(begin, begin + BATCH_SIZE)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), begin), NUM_RESTARTS)
        restarts = []
        for key in keys:
            result = run(
                key, logits_fn, images[rows], labels[rows],
                eps=EPS, loss="margin", num_odi_steps=num_odi_steps,
            )  # fmt: skip
            adversarial = result if attack == "pgd" else result.images
            restarts.append(predicted_class(logits_fn(key, adversarial)) != labels[rows])
        found.append(np.logical_or.accumulate(np.asarray(restarts)))
    return np.concatenate(found, axis=1)


def describe(attack: str, start: str, fooled: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """Return a row of the table."""
    accuracies = [binomial_accuracy((~one).sum(), len(one)) for one in fooled]
    return {
        "attack": attack,
        "start": start,
        "odi_steps": NUM_ODI_STEPS[start],
        "accuracy_after_restarts": [one.accuracy for one in accuracies],
        "ci95": accuracies[-1].ci95,
        "fools_more_than_random": int((fooled[-1] & ~reference[-1]).sum()),
        "fools_less_than_random": int((reference[-1] & ~fooled[-1]).sum()),
        "p_value_of_mcnemar": mcnemar(reference[-1], fooled[-1]),
    }


if __name__ == "__main__":
    main()
