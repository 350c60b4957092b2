"""Speed beside PyTorch and foolbox: the same model, weights, batch and attack, in turn.

    pip install -e ".[benchmarks]" && pip install --no-deps torchattacks
    python benchmarks/peers.py net bignet biggernet wrn_13_4 vit_3_128 --out results/performance

Three tasks: PGD with 10 steps and a random start; a step of adversarial training (that attack on
the whole batch, then AdamW); the forward pass. PyTorch runs each eagerly with NCHW and with
channels-last images, and compiled with these, the attack also as torchattacks writes it; foolbox
attacks the JAX model, on the first device. All of a task run in turn, five times over, after one
turn that compiles. A ratio is that of the rates of one turn, to the side of PyTorch with the best
median; above 1 is faster here.
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
from flax import linen
from torch.nn import functional
from torch_models import to_torch
from turns import Run, make_attack, make_problem, take_turns

from jaxadv.attacks import pgd
from jaxadv.curriculum import Budget
from jaxadv.data.augment import make_augment
from jaxadv.models import make_model
from jaxadv.parallel import AXIS, pmap_batches, replicate, set_up_cpu
from jaxadv.provenance import provenance
from jaxadv.recipe import Recipe
from jaxadv.train_step import init_state, make_train_step
from jaxadv.types import Batch

EPS, STEP_SIZE, NUM_STEPS = 8 / 255, 2 / 255, 10
LEARNING_RATE = 1e-3
BATCHES = {"net": 256, "bignet": 256, "biggernet": 128}
LARGE_BATCH = 32  # of all others
FORMATS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}


def main() -> None:
    """Prints a table for each model, and writes a JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    parser.add_argument("--out", type=Path, help="folder of the JSON")
    options = parser.parse_args()
    set_up_cpu()
    if jax.default_backend() != "cpu":
        raise SystemExit("PyTorch is measured on the CPU: hide the accelerator, JAX_PLATFORMS=cpu")
    for name in options.models:
        began = time.monotonic()
        batch_size = BATCHES.get(name, LARGE_BATCH)
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
            path = options.out / f"peers_{name}.json"
            path.write_text(json.dumps(record, indent=2) + "\n")


def attack_runs(name: str, batch_size: int) -> dict[str, Run]:
    """Returns PGD-10 on a batch by every side; the rate is in gradients."""
    model = make_model(name, 10)
    weights, split, _ = make_problem(model, batch_size)
    attack = {"attack": "pgd", "eps": (EPS,), "step_size": STEP_SIZE, "num_steps": NUM_STEPS}
    images, labels = _to_torch(split)
    count = batch_size * NUM_STEPS

    def of_torch(module: torch.nn.Module, memory: torch.memory_format) -> Run:
        batch = images.contiguous(memory_format=memory)
        return lambda: len(torch_pgd(module, batch, labels)) * NUM_STEPS

    runs = {"jaxadv": make_attack(model, weights, split, attack), **_torch_runs(name, of_torch)}

    import torchattacks

    peer = torchattacks.PGD(_module(name), eps=EPS, alpha=STEP_SIZE, steps=NUM_STEPS)
    runs["PyTorch, torchattacks"] = lambda: len(peer(images, labels)) * NUM_STEPS
    runs["foolbox on JAX"] = _foolbox(model, weights, split, count)
    return runs


def _foolbox(model: linen.Module, weights, split: Batch, count: int) -> Run:
    import eagerpy
    import foolbox

    weights = jax.device_put(jax.device_get(weights), jax.devices()[0])
    victim = foolbox.JAXModel(jax.jit(lambda images: model.apply(weights, images)), bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(steps=NUM_STEPS, abs_stepsize=STEP_SIZE)
    images = eagerpy.astensor(jax.numpy.asarray(split.images / np.float32(255)))
    labels = eagerpy.astensor(jax.numpy.asarray(split.labels))

    def run() -> int:
        # Not called as a whole, which also looks whether each example is fooled.
        attack.run(
            victim, images, foolbox.Misclassification(labels), epsilon=EPS
        ).raw.block_until_ready()
        return count

    return run


def step_runs(name: str, batch_size: int) -> dict[str, Run]:
    """Returns a step of adversarial training by every side; the rate is in images."""
    recipe = Recipe(
        model=make_model(name, 10, axis_name=AXIS),
        optimizer=optax.adamw(LEARNING_RATE),
        augment=make_augment("none"),
        num_attacked=batch_size // jax.device_count(),
        num_synthetic=0,
        label_smoothing=0.0,
        attack=partial(pgd, norm="linf", loss="cross_entropy", random_start=True),
        trades_beta=None,
        precision="float32",
        ema_decay=0.0,
        seed=0,
    )
    _, split, _ = make_problem(make_model(name, 10), batch_size)
    step = pmap_batches(make_train_step(recipe), num_replicated=3, num_batches=2, donate_first=True)
    state, data = init_state(recipe, (32, 32, 3)), replicate(split)
    variables = jax.device_get(state.variables)
    state = replicate(state)
    nothing = Batch(split.images[:0], split.labels[:0])
    budget = Budget(eps=EPS, step_size=STEP_SIZE, num_steps=NUM_STEPS)
    images, labels = _to_torch(split)

    def of_jaxadv() -> int:
        nonlocal state
        state, _ = step(state, data, budget, np.arange(batch_size), nothing)
        return batch_size  # on a CPU the step is done when its call returns

    def of_torch(module: torch.nn.Module, memory: torch.memory_format) -> Run:
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

    return {"jaxadv": of_jaxadv, **_torch_runs(name, of_torch, variables)}


def forward_runs(name: str, batch_size: int) -> dict[str, Run]:
    """Returns passes over a batch by every side; the rate is in images."""
    _, split, passes = make_problem(make_model(name, 10), batch_size, NUM_STEPS)
    images, _ = _to_torch(split)

    def of_torch(module: torch.nn.Module, memory: torch.memory_format) -> Run:
        batch = images.contiguous(memory_format=memory)

        def run() -> int:
            with torch.no_grad():
                for _ in range(NUM_STEPS):
                    module(batch)
            return NUM_STEPS * batch_size

        return run

    return {"jaxadv": passes, **_torch_runs(name, of_torch)}


TASKS: dict[str, Callable[[str, int], dict[str, Run]]] = {
    "attack": attack_runs,
    "training step": step_runs,
    "forward": forward_runs,
}


def torch_pgd(module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns adversarial images, as a careful practitioner writes PGD: no gradient of weights."""
    low, high = (images - EPS).clamp_(0, 1), (images + EPS).clamp_(0, 1)
    noise = torch.empty_like(images).uniform_(-EPS, EPS)
    adversarial = torch.maximum(torch.minimum(images + noise, high), low)
    for _ in range(NUM_STEPS):
        adversarial.requires_grad_(True)
        loss = functional.cross_entropy(module(adversarial), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, adversarial)
        stepped = adversarial.detach().add_(gradient.sign_(), alpha=STEP_SIZE)
        adversarial = torch.maximum(torch.minimum(stepped, high), low)
    return adversarial


def _torch_runs(name: str, make: Callable, variables: Mapping | None = None) -> dict[str, Run]:
    """Returns a run of PyTorch for each layout, and one that is compiled."""
    runs = {
        f"PyTorch, {layout}": make(_module(name, variables).to(memory_format=memory), memory)
        for layout, memory in FORMATS.items()
    }
    memory = FORMATS["channels-last"]
    # Models share their code, whose compilations are counted: none of an earlier one may be left.
    torch._dynamo.reset()
    compiled = torch.compile(_module(name, variables).to(memory_format=memory), dynamic=False)
    return {**runs, "PyTorch, channels-last, compiled": make(compiled, memory)}


def _module(name: str, variables: Mapping | None = None) -> torch.nn.Module:
    model = make_model(name, 10)
    images = np.zeros((1, 32, 32, 3), np.float32)
    return to_torch(model, variables or jax.jit(model.init)(jax.random.key(0), images))


def _to_torch(split: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    images = np.asarray(split.images).transpose(0, 3, 1, 2) / np.float32(255)
    return torch.from_numpy(images).contiguous(), torch.from_numpy(np.asarray(split.labels)).long()


def _compare(runs: dict[str, Run]) -> dict:
    rates = take_turns(runs)
    of_torch = {name: values for name, values in rates.items() if name.startswith("PyTorch")}
    best = max(of_torch, key=lambda name: np.median(of_torch[name]))
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
        f"of {result['best_of_torch']}"
    )
    for side, rates in result["rates"].items():
        print(
            f"  {side:35} {np.median(rates):10,.0f} per s ({min(rates):,.0f} to {max(rates):,.0f})",
            flush=True,
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    main()
