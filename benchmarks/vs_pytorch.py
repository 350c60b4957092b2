"""Speed relative to PyTorch and foolbox, with the same model, weights, batch and attack.

    pip install -e ".[benchmarks]" && pip install --no-deps torchattacks
    python benchmarks/vs_pytorch.py net bignet fastnet smallnet biggernet wrn_7_2 vit_3_128 \
        --out results/performance

Three tasks are measured:

- attack: PGD with 10 steps and a random start. The rate is in gradients per second.
- training step: that attack on the whole batch, then an AdamW update. The rate is in images.
- forward: 10 forward passes. The rate is in images.

PyTorch runs each task eagerly with NCHW and with channels-last images, and compiled with
channels-last images. The attack also runs as torchattacks implements it, and as foolbox does on the
JAX model, on the first device.

The runs of a task are interleaved: each of five repetitions executes every run once, after a
warm-up that compiles. The ratio of a repetition is the rate of jaxadv over that of the PyTorch
variant with the best median rate. Above 1, jaxadv is faster. Its median and range are reported.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import torch
from common import Run, make_attack, make_problem, measure_interleaved
from flax import linen
from jaxtyping import PyTree
from torch.nn import functional
from torch_models import to_torch

from jaxadv.attacks import pgd
from jaxadv.core.devices import AXIS, pmap_batches, replicate, set_up_cpu
from jaxadv.core.types import HostBatch
from jaxadv.data.augment import make_augment
from jaxadv.data.resident import make_resident
from jaxadv.models import make_model
from jaxadv.runs.workdir import provenance
from jaxadv.training.curriculum import Budget
from jaxadv.training.losses import TrainingLoss, mixed_cross_entropy
from jaxadv.training.setup import TrainingSetup
from jaxadv.training.step import init_state, make_train_step

EPS, STEP_SIZE, NUM_STEPS = 8 / 255, 2 / 255, 10
LEARNING_RATE = 1e-3
BATCHES = {"net": 256, "bignet": 256, "biggernet": 128, "fastnet": 128, "smallnet": 128}
DEFAULT_BATCH = 32  # for all other models
FORMATS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}


def main() -> None:
    """Measure the tasks on each model, print a table for each, and write JSON files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="names of `jaxadv.models.make_model`")
    parser.add_argument(
        "--tasks", nargs="*", default=list(TASKS), choices=TASKS, help="by default all"
    )
    parser.add_argument("--out", type=Path, help="folder of vs_pytorch_MODEL.json; by default none")
    options = parser.parse_args()
    set_up_cpu()
    if jax.default_backend() != "cpu":
        raise SystemExit(
            f"JAX uses the backend {jax.default_backend()!r}, but PyTorch is measured on the CPU: "
            "set JAX_PLATFORMS=cpu"
        )
    for name in options.models:
        began = time.monotonic()
        batch_size = BATCHES.get(name, DEFAULT_BATCH)
        results = {task: _compare(TASKS[task](name, batch_size)) for task in options.tasks}
        for task, result in results.items():
            _print(name, task, result)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            record = {
                "model": name,
                "batch_size": batch_size,
                "torch": torch.__version__,
                "torch_threads": torch.get_num_threads(),
                "tasks": results,
                "provenance": provenance(time.monotonic() - began),
            }
            path = options.out / f"vs_pytorch_{name}.json"
            path.write_text(json.dumps(record, indent=2) + "\n")


def attack_runs(name: str, batch_size: int) -> dict[str, Run]:
    """Return runs of PGD with 10 steps on a batch; they count gradients."""
    model = make_model(name, 10)
    weights, split, _ = make_problem(model, batch_size)
    attack = {"attack": "pgd", "eps": (EPS,), "step_size": STEP_SIZE, "num_steps": NUM_STEPS}
    images, labels = _to_torch(split)

    def make_run(module: torch.nn.Module, memory: torch.memory_format) -> Run:
        batch = images.contiguous(memory_format=memory)
        return lambda: len(torch_pgd(module, batch, labels)) * NUM_STEPS

    runs = {"jaxadv": make_attack(model, weights, split, attack), **torch_runs(name, make_run)}

    import torchattacks

    attack_fn = torchattacks.PGD(_torch_model(name), eps=EPS, alpha=STEP_SIZE, steps=NUM_STEPS)
    runs["PyTorch, torchattacks"] = lambda: len(attack_fn(images, labels)) * NUM_STEPS
    runs["foolbox on JAX"] = _foolbox_run(model, weights, split)
    return runs


def _foolbox_run(model: linen.Module, weights: PyTree, split: HostBatch) -> Run:
    import eagerpy
    import foolbox

    weights = jax.device_put(jax.device_get(weights), jax.devices()[0])
    logits_fn = jax.jit(lambda images: model.apply(weights, images))
    foolbox_model = foolbox.JAXModel(logits_fn, bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(steps=NUM_STEPS, abs_stepsize=STEP_SIZE)
    images = eagerpy.astensor(jax.numpy.asarray(split.images / np.float32(255)))
    labels = eagerpy.astensor(jax.numpy.asarray(split.labels))

    def run() -> int:
        # `attack(...)` would also check which examples are misclassified.
        adversarial = attack.run(
            foolbox_model, images, foolbox.Misclassification(labels), epsilon=EPS
        )
        adversarial.raw.block_until_ready()
        return len(split.labels) * NUM_STEPS

    return run


def step_runs(name: str, batch_size: int) -> dict[str, Run]:
    """Return runs of a step of adversarial training; they count images."""
    setup = TrainingSetup(
        model=make_model(name, 10, axis_name=AXIS),
        optimizer=optax.adamw(LEARNING_RATE),
        num_classes=10,
        augment=make_augment("none"),
        attack=partial(pgd, norm="linf", loss="cross_entropy", random_start=True),
        num_attacked=batch_size // jax.device_count(),
        loss=TrainingLoss(mixed_cross_entropy, needs_clean=False),
        schedule=lambda step: LEARNING_RATE,
        precision="float32",
        seed=0,
    )
    _, split, _ = make_problem(make_model(name, 10), batch_size)
    step = pmap_batches(make_train_step(setup), num_replicated=3, num_batches=2, donate_first=True)
    state, data = init_state(setup, (32, 32, 3)), make_resident(split)
    variables = jax.device_get(state.variables)
    state = replicate(state)
    no_synthetic = HostBatch(split.images[:0], split.labels[:0])
    budget = Budget(eps=EPS, step_size=STEP_SIZE, num_steps=NUM_STEPS)
    images, labels = _to_torch(split)

    def run_jaxadv() -> int:
        nonlocal state
        # On a CPU the call returns when the step is done.
        state, _ = step(state, data, budget, np.arange(batch_size), no_synthetic)
        return batch_size

    def make_run(module: torch.nn.Module, memory: torch.memory_format) -> Run:
        batch = images.contiguous(memory_format=memory)
        optimizer = torch.optim.AdamW(module.parameters(), LEARNING_RATE)

        def run() -> int:
            module.eval()
            adversarial = torch_pgd(module, batch, labels)
            module.train()
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(module(adversarial), labels).backward()
            optimizer.step()
            return batch_size

        return run

    return {"jaxadv": run_jaxadv, **torch_runs(name, make_run, variables)}


def forward_runs(name: str, batch_size: int) -> dict[str, Run]:
    """Return runs of forward passes over a batch; they count images."""
    _, split, forward_passes = make_problem(make_model(name, 10), batch_size, NUM_STEPS)
    images, _ = _to_torch(split)

    def make_run(module: torch.nn.Module, memory: torch.memory_format) -> Run:
        batch = images.contiguous(memory_format=memory)

        def run() -> int:
            with torch.no_grad():
                for _ in range(NUM_STEPS):
                    module(batch)
            return NUM_STEPS * batch_size

        return run

    return {"jaxadv": forward_passes, **torch_runs(name, make_run)}


TASKS: dict[str, Callable[[str, int], dict[str, Run]]] = {
    "attack": attack_runs,
    "training step": step_runs,
    "forward": forward_runs,
}


def torch_pgd(
    module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    num_steps: int = NUM_STEPS,
    random_start: bool = True,
) -> torch.Tensor:
    """Run L-inf PGD in optimised PyTorch, which computes no gradients of the weights."""
    low, high = (images - EPS).clamp_(0, 1), (images + EPS).clamp_(0, 1)
    adversarial = images.clone()  # which the steps change in place
    if random_start:
        noise = torch.empty_like(images).uniform_(-EPS, EPS)
        adversarial = torch.maximum(torch.minimum(images + noise, high), low)
    for _ in range(num_steps):
        adversarial.requires_grad_(True)
        loss = functional.cross_entropy(module(adversarial), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, adversarial)
        stepped = adversarial.detach().add_(gradient.sign_(), alpha=STEP_SIZE)
        adversarial = torch.maximum(torch.minimum(stepped, high), low)
    return adversarial


def torch_runs(
    name: str,
    make_run: Callable[[torch.nn.Module, torch.memory_format], Run],
    variables: Mapping | None = None,
) -> dict[str, Run]:
    """Return an eager run of PyTorch for each memory format, and a compiled one.

    Args:
      name: of the model.
      make_run: returns a run of a PyTorch model on images in a memory format.
      variables: of the Flax model; None: freshly initialised.
    """
    runs = {
        f"PyTorch, {layout}": make_run(
            _torch_model(name, variables).to(memory_format=memory), memory
        )
        for layout, memory in FORMATS.items()
    }
    memory = FORMATS["channels-last"]
    # Models share code objects, and Dynamo limits the recompilations of each: clear earlier ones.
    torch._dynamo.reset()
    module = _torch_model(name, variables).to(memory_format=memory)
    compiled = torch.compile(module, dynamic=False)
    return {**runs, "PyTorch, channels-last, compiled": make_run(compiled, memory)}


def _torch_model(name: str, variables: Mapping | None = None) -> torch.nn.Module:
    model = make_model(name, 10)
    images = np.zeros((1, 32, 32, 3), np.float32)
    return to_torch(model, variables or jax.jit(model.init)(jax.random.key(0), images))


def _to_torch(split: HostBatch) -> tuple[torch.Tensor, torch.Tensor]:
    images = np.asarray(split.images).transpose(0, 3, 1, 2) / np.float32(255)
    return torch.from_numpy(images).contiguous(), torch.from_numpy(np.asarray(split.labels)).long()


def _compare(runs: dict[str, Run]) -> dict:
    rates = measure_interleaved(runs)
    torch_rates = {name: values for name, values in rates.items() if name.startswith("PyTorch")}
    best = max(torch_rates, key=lambda name: np.median(torch_rates[name]))
    ratios = np.divide(rates["jaxadv"], rates[best])
    return {
        "rates": rates,
        "best_of_torch": best,
        "ratio": {
            "median": float(np.median(ratios)),
            "least": float(ratios.min()),
            "most": float(ratios.max()),
        },
    }


def _print(name: str, task: str, result: dict) -> None:
    ratio = result["ratio"]
    print(
        f"\n{name}, {task}: {ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f}) "
        f"times the speed of {result['best_of_torch']}"
    )
    for variant, rates in result["rates"].items():
        print(
            f"  {variant:35} {np.median(rates):10,.0f} per s "
            f"({min(rates):,.0f} to {max(rates):,.0f})",
            flush=True,
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    main()
