"""Attacks on models that run outside of JAX: their overhead, and their speed beside PyTorch.

    pip install -e ".[benchmarks]" && pip install --no-deps torchattacks
    python benchmarks/host_models.py --out results

The model is a convolutional net in PyTorch with random weights. The radius is tiny, so no attack
succeeds, and all implementations make the same calls of the model.

- Overhead: Square, NES and random search on a `BlackBox`, which takes `--milliseconds` per call:
  time of the attack over the time inside of the model.
- Speed: time of the implementation in PyTorch over that of jaxadv, above 1 if jaxadv is faster.
  Square of `pyautoattack` beside a `BlackBox`; PGD and APGD of `torchattacks` beside a `HostModel`.

The implementations take turns. Every number is the median over the repetitions, after a warm-up.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import torch
import torchattacks
from pyautoattack.square import SquareAttack
from torch import nn

from jaxadv.attacks import BlackBox, HostModel, apgd, nes, pgd, random_search, square
from jaxadv.core.devices import set_up_cpu
from jaxadv.runs.workdir import provenance

EPS = 1e-6
KEY = jax.random.key
SHAPES = {"mnist": (28, 28, 1), "cifar": (32, 32, 3)}
NUM_QUERIES, NUM_STEPS = 200, 40


def main() -> None:
    """Run the benchmark, print its numbers, and write `host_models.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, nargs="*", default=[32, 250], help="batch sizes")
    parser.add_argument("--repetitions", type=int, default=5, help="by default 5")
    parser.add_argument("--milliseconds", type=float, default=5, help="per call; by default 5")
    parser.add_argument("--out", type=Path, help="folder of host_models.json; by default none")
    options = parser.parse_args()
    set_up_cpu()
    began = time.monotonic()
    overheads = measure_overhead(options.milliseconds / 1000, options.repetitions)
    speeds = [
        {"images": name, "batch": batch, **measure_speed(shape, batch, options.repetitions)}
        for name, shape in SHAPES.items()
        for batch in options.batches
    ]
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        record = {
            "milliseconds": options.milliseconds,
            "overhead": overheads,
            "speed": speeds,
            "provenance": provenance(time.monotonic() - began),
        }
        (options.out / "host_models.json").write_text(json.dumps(record, indent=2) + "\n")


def measure_overhead(seconds: float, repetitions: int) -> dict[str, float]:
    """Return for each attack its time as a multiple of the time inside of the model."""
    images = np.random.default_rng(0).uniform(size=(32, *SHAPES["mnist"])).astype(np.float32)
    labels = np.zeros(len(images), np.int32)
    probabilities = np.tile(np.float32([0.6, 0.4]), (len(images) * 32, 1))
    inside = []

    def predict(queries: np.ndarray) -> np.ndarray:
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            pass
        inside.append(time.perf_counter() - began)
        return probabilities[: len(queries)]

    model = BlackBox(predict)
    calls: dict[str, Callable] = {
        "square": lambda: square(KEY(0), model, images, labels, eps=EPS, num_queries=NUM_QUERIES),
        "random_search": lambda: random_search(
            KEY(0), model, images, labels, eps=EPS, num_queries=NUM_QUERIES
        ),
        "nes": lambda: nes(
            KEY(0), model, images, labels, eps=EPS, step_size=EPS, samples_per_gradient=32,
            num_queries=33 * NUM_QUERIES // 2,
        ),
    }  # fmt: skip
    ratios = {}
    for name, call in calls.items():
        call()
        measured = []
        for _ in range(repetitions):
            inside.clear()
            measured.append(_seconds(call) / sum(inside))
        ratios[name] = statistics.median(measured)
        print(f"{name:14} {ratios[name]:.2f} times the time of the model", flush=True)
    return ratios


def measure_speed(shape: tuple[int, ...], batch: int, repetitions: int) -> dict[str, float]:
    """Return for each attack the speed of jaxadv as a multiple of that of PyTorch."""
    model = _make_model(shape)
    images = np.random.default_rng(0).uniform(size=(batch, *shape)).astype(np.float32)
    with torch.no_grad():
        classes = model(_channels_first(images)).argmax(1)
    labels = classes.numpy().astype(np.int32)
    torch_images = _channels_first(images).contiguous()
    black_box, white_box = BlackBox(_predict(model)), _host_model(model)
    square_attack = SquareAttack(model, eps=EPS, n_queries=NUM_QUERIES, seed=0, device="cpu")
    torch_pgd = torchattacks.PGD(model, eps=EPS, alpha=EPS / 4, steps=NUM_STEPS)
    torch_apgd = torchattacks.APGD(model, eps=EPS, steps=NUM_STEPS)
    pairs: dict[str, tuple[Callable, Callable]] = {
        "square": (
            lambda: square(KEY(0), black_box, images, labels, eps=EPS, num_queries=NUM_QUERIES),
            lambda: square_attack.perturb(torch_images, classes),
        ),
        "pgd": (
            lambda: pgd(
                KEY(0), white_box, images, labels, eps=EPS, step_size=EPS / 4, num_steps=NUM_STEPS
            ),
            lambda: torch_pgd(torch_images, classes),
        ),
        "apgd": (
            lambda: apgd(KEY(0), white_box, images, labels, eps=EPS, num_steps=NUM_STEPS),
            lambda: torch_apgd(torch_images, classes),
        ),
    }
    speeds = {}
    for name, (ours, theirs) in pairs.items():
        ours(), theirs()
        times = [(_seconds(ours), _seconds(theirs)) for _ in range(repetitions)]
        speeds[name] = statistics.median(other / own for own, other in times)
        own, other = (statistics.median(column) for column in zip(*times, strict=True))
        print(
            f"{name:7} {shape} batch {batch}: jaxadv {own:.2f} s, PyTorch {other:.2f} s, "
            f"speed {speeds[name]:.2f}",
            flush=True,
        )
    return speeds


def _make_model(shape: tuple[int, ...]) -> nn.Module:
    """Return a convolutional net with 10 classes."""
    torch.manual_seed(0)
    widths = (shape[2], 32, 32, 64, 64)
    layers: list[nn.Module] = []
    for i, (width, next_width) in enumerate(pairwise(widths)):
        layers += [nn.Conv2d(width, next_width, 3, padding=1), nn.ReLU()]
        if i % 2:
            layers.append(nn.MaxPool2d(2))
    size = 64 * (shape[0] // 4) * (shape[1] // 4)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(size, 10))
    return model.eval().requires_grad_(False)


def _predict(model: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    @torch.no_grad()
    def predict(images: np.ndarray) -> np.ndarray:
        return model(_channels_first(images)).softmax(1).numpy()

    return predict


def _host_model(model: nn.Module) -> HostModel:
    @torch.no_grad()
    def forward(images: jax.Array) -> np.ndarray:
        return model(_channels_first(images)).numpy()

    def forward_for_gradient(images: jax.Array) -> tuple[np.ndarray, Callable]:
        inputs = _channels_first(images).requires_grad_()
        logits = model(inputs)

        def pull_back(cotangent: jax.Array) -> np.ndarray:
            cotangent = torch.from_dlpack(cotangent)
            (gradient,) = torch.autograd.grad(logits, inputs, cotangent, retain_graph=True)
            return gradient.permute(0, 2, 3, 1).numpy()

        return logits.detach().numpy(), pull_back

    return HostModel(10, forward, forward_for_gradient)


def _channels_first(images: jax.Array | np.ndarray) -> torch.Tensor:
    return torch.from_dlpack(images).permute(0, 3, 1, 2)


def _seconds(call: Callable) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
