"""What `jaxadv.evaluate` costs above the attacks that it runs.

    python benchmarks/evaluate.py mnist.npz --out results/performance

A plain Flax network is evaluated by the suite "standard", and by FGSM alone. Beside it the same
attacks run alone, on the same images and in the same batches. Runs alternate, after a warm-up that
compiles. The data is a file with the arrays `train_images`, `train_labels`, `test_images` and
`test_labels` of MNIST: 28 x 28 bytes, and classes.
"""

import argparse
import json
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import jaxadv
from jaxadv.core.losses import cross_entropy
from jaxadv.core.types import HostBatch
from jaxadv.evaluation.attack_runner import run_attack
from jaxadv.evaluation.attack_suites import named_suite
from jaxadv.evaluation.evaluate import models_of
from jaxadv.runs.workdir import provenance

EPS, BATCH = 0.1, 512


class Net(nn.Module):
    """Four convolutions and two dense layers."""

    @nn.compact
    def __call__(self, images):
        """Return the logits."""
        x = images
        for features in (32, 64):
            x = nn.relu(nn.Conv(features, (3, 3), padding="VALID")(x))
            x = nn.relu(nn.Conv(features, (3, 3), padding="VALID")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(10)(nn.relu(nn.Dense(200)(x.reshape(len(x), -1))))


def main() -> None:
    """Measure both, print the ratio, write a JSON file."""
    parser = argparse.ArgumentParser(description="What jaxadv.evaluate costs above its attacks.")
    parser.add_argument("data", type=Path)
    parser.add_argument("--num-examples", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    jaxadv.set_up_cpu()
    began = time.monotonic()
    with np.load(options.data) as arrays:
        data = {name: array[: max(options.num_examples, 8192)] for name, array in arrays.items()}
    classifier = _train(data["train_images"][..., None] / 255, data["train_labels"])
    images = data["test_images"][: options.num_examples, ..., None]
    labels = data["test_labels"][: options.num_examples].astype(np.int32)
    result = jaxadv.evaluate(classifier, images, labels, eps=EPS, progress=False)
    print(result)
    model = models_of(classifier, HostBatch(images, labels))["on"]
    correct = np.flatnonzero(result.examples.predictions == labels)
    attacks = named_suite("standard", (EPS,), "linf", False)

    fgsm = {"fgsm": {"attack": "fgsm"}}

    def evaluate(suite: Any = "standard") -> None:
        jaxadv.evaluate(classifier, images, labels, attacks=suite, eps=EPS, progress=False)

    def attack(names: Collection[str] = ()) -> None:
        for one in attacks:
            if one.name in names or not names:
                run_attack(model, HostBatch(images, labels), one, correct, BATCH, seed=0)

    attack()  # the warm-up; that of the suite is above
    evaluate(fgsm)
    suite = _alternate(options.repetitions, attack, evaluate)
    single = _alternate(options.repetitions, lambda: attack(["fgsm"]), lambda: evaluate(fgsm))
    ratios = np.divide(suite["evaluate"], suite["attacks"])
    extra = np.subtract(single["evaluate"], single["attacks"])
    content = {
        "num_examples": len(labels),
        "seconds": suite,
        "ratio": float(np.median(ratios)),
        "range": [float(ratios.min()), float(ratios.max())],
        "seconds_fgsm_alone": single,
        "extra_seconds_of_fgsm_alone": float(np.median(extra)),
        "provenance": provenance(time.monotonic() - began),
    }
    print(f"evaluate takes {content['ratio']:.3f} times its attacks ({ratios.round(3)})")
    print(f"with FGSM alone it takes {np.median(extra):.2f} s more than the attack")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "evaluate.json").write_text(json.dumps(content, indent=2) + "\n")


def _alternate(repetitions: int, attacks: Callable, evaluate: Callable) -> dict[str, list[float]]:
    """Return the seconds of both, measured alternately."""
    seconds: dict[str, list[float]] = {"attacks": [], "evaluate": []}
    for _ in range(repetitions):
        for name, work in (("attacks", attacks), ("evaluate", evaluate)):
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _train(images: np.ndarray, labels: np.ndarray) -> jaxadv.Classifier:
    """Return the network after a short training without an adversary."""
    net, optimizer = Net(), optax.adam(1e-3)
    variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    state = optimizer.init(variables)

    @jax.jit
    def step(variables, state, images, labels):
        def loss(variables):
            return cross_entropy(net.apply(variables, images), labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(variables), state)
        return optax.apply_updates(variables, updates), state

    generator = np.random.default_rng(0)
    for _ in range(200):
        rows = generator.integers(len(labels), size=64)
        variables, state = step(
            variables, state, images[rows].astype(np.float32), labels[rows].astype(np.int32)
        )
    return jaxadv.wrap(net, variables)


if __name__ == "__main__":
    main()
