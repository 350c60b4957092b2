"""AutoAttack against its implementations in PyTorch, on the same weights, images and machine.

    pip install -e ".[benchmarks]" && pip install --no-deps torchattacks
    python benchmarks/autoattack.py runs/standard --num-examples 1000 --out results/autoattack

For each norm the script prints the accuracy after each attack, its seconds, and the number of
examples that only one implementation fools. Each attack runs on the examples that the previous ones
left robust. Everything runs once, without a warm-up, so the seconds of jaxadv include compilation.

References: `pyautoattack` packages the original implementation, fra31/auto-attack. `torchattacks`
takes 10 steps by default; here it takes 100, as AutoAttack does. Both attack batches of 250 images.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch
from torch_models import to_torch

from jaxadv.attacks import autoattack
from jaxadv.core.devices import set_up_cpu
from jaxadv.models.classifier import make_logits_fn
from jaxadv.runs.workdir import load_dataset, provenance, read, restore_classifier

EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}
TORCH_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
ATTACKS = {"apgd_ce": "apgd-ce", "apgd_t": "apgd-t", "fab_t": "fab-t", "square": "square"}
BATCH = 250
STEPS = 100

Attack = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def main() -> None:
    """Compare the implementations on a checkpoint, print a table per norm, write JSON files."""
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
    torch_model = to_torch(model, variables)
    difference = _check_same_logits(model, variables, torch_model, images[:64])
    for norm in options.norms:
        began = time.monotonic()
        results, robust = {}, {}
        eps = options.eps or EPS[norm]
        results["jaxadv"], robust["jaxadv"] = _run_jaxadv(
            model, variables, images, labels, norm, eps
        )
        for name in options.references:
            if (name, norm) == ("torchattacks", "l1"):
                continue  # it has no L1
            attacks = REFERENCES[name](torch_model, norm, eps)
            results[name], robust[name] = run_reference(attacks, torch_model, images, labels)
        result = {
            "checkpoint": str(options.run),
            "model": trained.model.name,
            "norm": norm,
            "eps": eps,
            "n": len(labels),
            "largest_difference_of_logits": difference,
            "implementations": results,
            "disagreement": _disagreement(robust),
            "provenance": provenance(time.monotonic() - began),
        }
        _print(result)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            path = options.out / f"{options.name or options.run.name}_{norm}.json"
            path.write_text(json.dumps(result, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="workdir of a training run")
    parser.add_argument(
        "--num-examples", type=int, default=1000, help="first images of the test split"
    )
    parser.add_argument("--norms", nargs="*", default=list(EPS), choices=EPS, help="by default all")
    parser.add_argument(
        "--references",
        nargs="*",
        default=list(REFERENCES),
        choices=REFERENCES,
        help="implementations in PyTorch, by default all",
    )
    parser.add_argument("--eps", type=float, help="radius; by default 8/255, 0.5 or 12")
    parser.add_argument("--data-dir", help="TFDS directory; by default that of the run")
    parser.add_argument("--out", type=Path, help="folder of NAME_NORM.json; by default none")
    parser.add_argument("--name", help="NAME of the JSON files; by default that of the workdir")
    return parser.parse_args()


def _check_same_logits(model, variables, torch_model, images) -> float:
    """Return the largest difference between the logits of the Flax and the PyTorch model."""
    flax_logits = np.asarray(model.apply(variables, images))
    with torch.no_grad():
        torch_logits = torch_model(to_tensor(images)).numpy()
    difference = float(np.abs(flax_logits - torch_logits).max())
    assert difference < 1e-3, f"the logits of the two models differ by {difference}"
    return difference


def _run_jaxadv(model, variables, images, labels, norm, eps) -> tuple[dict, np.ndarray]:
    """Return accuracies, seconds and costs of AutoAttack, and which examples are robust."""

    def logits_fn(key, images):
        return make_logits_fn(model, variables, np.arange(len(images)))(key, images)

    began = time.monotonic()
    result = autoattack(jax.random.key(0), logits_fn, images, labels, eps=eps, norm=norm)
    seconds = {"total": time.monotonic() - began, **result.seconds}
    measured = {
        "accuracies": result.accuracies(),
        "seconds": seconds,
        "queries": int(result.queries.sum()),
        "gradients": int(result.gradients.sum()),
        "unconfirmed": result.unconfirmed,
    }
    return measured, result.broken_by == -1


def _pyautoattack(torch_model: torch.nn.Module, norm: str, eps: float) -> dict[str, Attack]:
    from pyautoattack import AutoAttack

    suite = AutoAttack(torch_model, norm=TORCH_NORMS[norm], eps=eps, seed=0)
    suite.verbose = False

    def single(name: str) -> Attack:
        def run(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            suite.attacks_to_run = [ATTACKS[name]]
            return suite.run_standard_evaluation(images, labels, batch_size=BATCH)[0]

        return run

    return {name: single(name) for name in ATTACKS}


def _torchattacks(torch_model: torch.nn.Module, norm: str, eps: float) -> dict[str, Attack]:
    import torchattacks

    suite = torchattacks.AutoAttack(torch_model, norm=TORCH_NORMS[norm], eps=eps, seed=0)

    def in_batches(attack: Attack) -> Attack:
        def run(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            batches = zip(images.split(BATCH), labels.split(BATCH), strict=True)
            return torch.cat([attack(*batch) for batch in batches])

        return run

    attacks = suite._autoattack.attacks
    for attack in attacks[:-1]:
        attack.steps = STEPS
    return {name: in_batches(attack) for name, attack in zip(ATTACKS, attacks, strict=True)}


REFERENCES = {"pyautoattack": _pyautoattack, "torchattacks": _torchattacks}


def run_reference(
    attacks: dict[str, Attack], torch_model, images, labels
) -> tuple[dict, np.ndarray]:
    """Run each attack on the examples that the previous ones left robust.

    Args:
      attacks: of an entry of `REFERENCES`.
      torch_model: the model.
      images: floats in [0, 1], channels last.
      labels: their classes.

    Returns:
      Accuracies after each attack and its seconds, and which examples are robust.
    """
    images, labels = to_tensor(images), torch.from_numpy(labels).long()
    began = time.monotonic()
    robust = is_correct(torch_model, images, labels)
    accuracies, seconds = {"clean": robust.float().mean().item()}, {}
    for name, attack in attacks.items():
        attack_began, rows = time.monotonic(), torch.nonzero(robust)[:, 0]
        if len(rows):
            adversarial = attack(images[rows], labels[rows])
            robust[rows] = is_correct(torch_model, adversarial, labels[rows])
        seconds[name] = time.monotonic() - attack_began
        accuracies[name] = robust.float().mean().item()
    seconds = {"total": time.monotonic() - began, **seconds}
    return {"accuracies": accuracies, "seconds": seconds}, robust.numpy()


def is_correct(torch_model, images, labels) -> torch.Tensor:
    """Return whether each image is classified correctly."""
    with torch.no_grad():
        batches = zip(images.split(BATCH), labels.split(BATCH), strict=True)
        return torch.cat([torch_model(batch).argmax(1) == classes for batch, classes in batches])


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """Return images as PyTorch takes them, with the channels first."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _disagreement(robust: dict[str, np.ndarray]) -> dict[str, dict[str, int]]:
    """Return for each reference how many examples only one of the two implementations fools."""
    jaxadv = robust["jaxadv"]
    return {
        name: {
            "fooled_by_jaxadv_only": int((~jaxadv & reference).sum()),
            "fooled_by_reference_only": int((jaxadv & ~reference).sum()),
        }
        for name, reference in robust.items()
        if name != "jaxadv"
    }


def _print(result: dict) -> None:
    results = result["implementations"]
    print(f"\n{result['checkpoint']}, {result['norm']} eps {result['eps']:.4g}, n = {result['n']}")
    for stage in ("clean", *ATTACKS, "total"):
        cells = []
        for name, measured in results.items():
            accuracy = measured["accuracies"].get(stage)
            seconds = measured["seconds"].get(stage)
            baseline = results["jaxadv"]["seconds"].get(stage)
            ratio = seconds / baseline if seconds and baseline and baseline > 0.1 else None
            cells.append(
                f"{name} "
                + (f"{accuracy:6.1%} " if accuracy is not None else " " * 7)
                + (f"{seconds:7.1f} s" if seconds is not None else " " * 9)
                + (f" x{ratio:5.2f}" if ratio and name != "jaxadv" else "")
            )
        print(f"{stage:8} " + " | ".join(cells), flush=True)
    for name, counts in result["disagreement"].items():
        print(
            f"examples fooled by jaxadv only: {counts['fooled_by_jaxadv_only']}, "
            f"by {name} only: {counts['fooled_by_reference_only']}",
            flush=True,
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
