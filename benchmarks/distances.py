"""Distances that minimal-norm attacks find, beside those of Foolbox on the same weights and images.

    pip install -e ".[benchmarks]"
    python benchmarks/distances.py runs/standard --num-examples 500 --out results/distances

Both implementations attack the images that the model classifies correctly, in one batch, with equal
arguments. The script prints the median distance, the accuracy at a usual radius and the seconds of
the second call, when jaxadv has compiled. HopSkipJump has the number of queries that Foolbox needs.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import foolbox
import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch_models import to_torch

from jaxadv import attacks
from jaxadv.core.devices import set_up_cpu
from jaxadv.models.classifier import make_logits_fn
from jaxadv.runs.workdir import load_dataset, provenance, read, restore_classifier

EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
STEPS, SEARCHES, JUMPS = 100, 5, 15
Attack = Callable[[], np.ndarray]
# By attack and norm: the arguments of jaxadv, and the attack of Foolbox.
PAIRS = {
    ("fmn", "linf"): ({"num_steps": STEPS}, partial(foolbox.attacks.LInfFMNAttack, steps=STEPS)),
    ("fmn", "l2"): ({"num_steps": STEPS}, partial(foolbox.attacks.L2FMNAttack, steps=STEPS)),
    ("fmn", "l1"): ({"num_steps": STEPS}, partial(foolbox.attacks.L1FMNAttack, steps=STEPS)),
    ("ddn", "l2"): ({"num_steps": STEPS}, partial(foolbox.attacks.DDNAttack, steps=STEPS)),
    ("cw", "l2"): (
        {"num_steps": STEPS, "num_searches": SEARCHES, "constant": 0.1},
        partial(
            foolbox.attacks.L2CarliniWagnerAttack,
            binary_search_steps=SEARCHES,
            steps=STEPS,
            initial_const=0.1,
        ),
    ),
    ("deepfool", "l2"): ({}, partial(foolbox.attacks.L2DeepFoolAttack, steps=50)),
    ("deepfool", "linf"): ({}, partial(foolbox.attacks.LinfDeepFoolAttack, steps=50)),
    ("hop_skip_jump", "l2"): (
        {"early_stop": False},
        partial(foolbox.attacks.HopSkipJumpAttack, steps=JUMPS, constraint="l2"),
    ),
}


def main() -> None:
    """Run all pairs, print a table, and write a JSON file."""
    options = _options()
    set_up_cpu()
    trained = read(options.run)
    if options.data_dir:
        trained.data.data_dir = options.data_dir
    dataset = load_dataset(trained.data)
    model, restored = restore_classifier(trained, dataset, options.run, "best")
    variables = restored.items["weights"]
    images = np.asarray(dataset.test.images[: options.num_examples], np.float32) / 255
    labels = np.asarray(dataset.test.labels[: options.num_examples])
    is_correct = np.asarray(model.apply(variables, images)).argmax(1) == labels
    images, labels = images[is_correct], labels[is_correct]
    counter = _Counter(to_torch(model, variables)).eval()
    began, results = time.monotonic(), {}
    for (name, norm), (arguments, make_reference) in PAIRS.items():
        if options.attacks and name not in options.attacks:
            continue
        theirs, queries = _foolbox(make_reference(), counter, images, labels)
        if name == "hop_skip_jump":
            arguments = {**arguments, "num_queries": queries // len(labels)}
        ours = _jaxadv(name, model, variables, images, labels, {"norm": norm, **arguments})
        results[f"{name}/{norm}"] = {
            "jaxadv": _measure(ours, images, norm),
            "foolbox": _measure(theirs, images, norm),
            "arguments": arguments,
        }
        _print(f"{name}/{norm}", results[f"{name}/{norm}"])
    record = {
        "checkpoint": str(options.run),
        "model": trained.model.name,
        "n": options.num_examples,
        "correct": len(labels),
        "eps": EPS,
        "results": results,
        "provenance": provenance(time.monotonic() - began),
    }
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"{options.name or options.run.name}.json"
        path.write_text(json.dumps(record, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="workdir of a training run")
    parser.add_argument(
        "--num-examples", type=int, default=500, help="first images of the test split"
    )
    parser.add_argument("--attacks", nargs="*", help="names of attacks, by default all")
    parser.add_argument("--data-dir", help="TFDS directory; by default that of the run")
    parser.add_argument("--out", type=Path, help="folder of NAME.json; by default none")
    parser.add_argument("--name", help="NAME of the JSON file; by default that of the workdir")
    return parser.parse_args()


class _Counter(torch.nn.Module):
    """A model that counts the images that it classifies."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model, self.count = model, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.count += len(images)
        return self.model(images)


def _jaxadv(name, model, variables, images, labels, arguments) -> tuple[np.ndarray, float]:
    """Return the adversarial images and the seconds of the second call."""

    def logits_fn(key, images):
        return make_logits_fn(model, variables, np.arange(len(images)))(key, images)

    attack = getattr(attacks, name)
    arrays = jnp.asarray(images), jnp.asarray(labels)
    for _ in range(2):
        began = time.monotonic()
        found = jax.block_until_ready(attack(jax.random.key(0), logits_fn, *arrays, **arguments))
    return np.asarray(found.images), time.monotonic() - began


def _foolbox(attack, counter, images, labels) -> tuple[tuple[np.ndarray, float], int]:
    """Return the adversarial images and the seconds, and the number of forward passes."""
    torch.manual_seed(0)
    tensor = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    counter.count = 0
    wrapped = foolbox.PyTorchModel(counter, bounds=(0, 1), device="cpu")
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, found, success = attack(wrapped, tensor, torch.from_numpy(labels).long(), epsilons=None)
    seconds = time.monotonic() - began
    found = torch.where(success[:, None, None, None], found, tensor)
    return (found.detach().numpy().transpose(0, 2, 3, 1), seconds), counter.count


def _measure(result: tuple[np.ndarray, float], images: np.ndarray, norm: str) -> dict[str, float]:
    """Return median distance, robust accuracy and seconds; the clean image means no success."""
    found, seconds = result
    deltas = (found.astype(np.float64) - images).reshape(len(images), -1)
    distances = np.linalg.norm(deltas, ORDERS[norm], axis=1)
    distances = np.where(distances == 0, np.inf, distances)
    return {
        "median_distance": float(np.median(distances)),
        "found": float(np.isfinite(distances).mean()),
        "robust_accuracy": float((distances > EPS[norm]).mean()),
        "seconds": seconds,
    }


def _print(name: str, result: dict) -> None:
    ours, theirs = result["jaxadv"], result["foolbox"]
    print(
        f"{name:17} median {ours['median_distance']:.4f} / {theirs['median_distance']:.4f}  robust "
        f"{ours['robust_accuracy']:.1%} / {theirs['robust_accuracy']:.1%}  found "
        f"{ours['found']:.1%} / {theirs['found']:.1%}  seconds {ours['seconds']:.1f} / "
        f"{theirs['seconds']:.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
