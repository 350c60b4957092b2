"""Robust accuracy under APGD with each loss, at equal gradients.

    python benchmarks/apgd_losses.py runs/curriculum --out results/apgd_losses

One run of APGD in L-inf at eps 8/255 for each loss and number of steps, on the first held-out
images that the model was not trained on. Beside them: targeted APGD on the DLR loss with as many
gradients in total, for nine target classes. All losses attack the same images from the same starts.
The table has 95 % intervals, and the images that a loss fools and cross entropy does not, and the
other way round.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxadv.attacks import apgd
from jaxadv.core.devices import set_up_cpu
from jaxadv.core.losses import LOSSES
from jaxadv.evaluation.metrics import binomial_accuracy
from jaxadv.runs.workdir import load_dataset, provenance, read, restore_classifier

EPS, BATCH_SIZE, NUM_TARGETS = 8 / 255, 250, 9


def main() -> None:
    """Attack with each loss, print a table, and write a JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="workdir of a training run")
    parser.add_argument("--data-dir", help="TFDS directory; by default that of the run")
    parser.add_argument("--num-examples", type=int, default=1000)
    parser.add_argument("--steps", type=int, nargs="+", default=[18, 90], help="multiples of nine")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    options = parser.parse_args()
    set_up_cpu()
    began = time.monotonic()
    trained = read(options.run)
    trained.data.data_dir = options.data_dir or trained.data.data_dir
    dataset = load_dataset(trained.data)
    model, restored = restore_classifier(trained, dataset, options.run, "best")
    weights = restored.items["weights"]

    def logits_fn(key: jax.Array, images: jax.Array) -> jax.Array:
        return model.apply(weights, images)

    images = np.asarray(dataset.validation.images[: options.num_examples], np.float32) / 255
    labels = np.asarray(dataset.validation.labels[: options.num_examples])
    table = []
    for num_steps in options.steps:
        runs: dict[str, dict[str, Any]] = {
            loss: {"loss": loss, "num_steps": num_steps} for loss in LOSSES
        }
        runs["dlr, targeted"] = {
            "loss": "dlr", "num_steps": num_steps // NUM_TARGETS, "num_targets": NUM_TARGETS
        }  # fmt: skip
        reference = None
        for name, arguments in runs.items():
            fooled = attack(logits_fn, images, labels, arguments)
            reference = fooled if reference is None else reference
            table.append(describe(name, num_steps, fooled, reference))
            print(table[-1], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    result = {
        "run": trained.to_dict(),
        "num_examples": len(labels),
        "rows": table,
        "provenance": provenance(time.monotonic() - began),
    }
    path = options.out / f"{options.run.name}.json"
    path.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")


def attack(
    logits_fn: Any, images: np.ndarray, labels: np.ndarray, arguments: dict[str, Any]
) -> np.ndarray:
    """Return for each image whether it is misclassified under attack."""
    found = []
    for start in range(0, len(labels), BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        result = apgd(
            jax.random.key(0), logits_fn, images[rows], labels[rows], eps=EPS, **arguments
        )
        found.append(np.asarray(result.success))
    return np.concatenate(found)


def describe(
    name: str, num_steps: int, fooled: np.ndarray, reference: np.ndarray
) -> dict[str, Any]:
    """Return a row of the table."""
    accuracy = binomial_accuracy((~fooled).sum(), len(fooled))
    return {
        "loss": name,
        "gradients": num_steps,
        "accuracy": accuracy.accuracy,
        "ci95": accuracy.ci95,
        "fools_more_than_cross_entropy": int((fooled & ~reference).sum()),
        "fools_less_than_cross_entropy": int((reference & ~fooled).sum()),
    }


if __name__ == "__main__":
    main()
