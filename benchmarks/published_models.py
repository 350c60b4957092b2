"""Published MNIST models under jaxadv's attack suites, beside AutoAttack in PyTorch.

    pip install -e ".[benchmarks]"
    python benchmarks/published_models.py mnist.npz fast_fgsm.pth --out results/models

With `--num-examples 10000`, jaxadv evaluates the whole test split.

The models are `fast_fgsm.pth` and `fast_pgd.pth` of Wong et al. (2020), trained at L-inf eps 0.3
and published in their repository, locuslab/fast_adversarial. The data is a file with the arrays
`test_images` and `test_labels` of MNIST.

jaxadv reads the file with `jaxadv.load_pretrained`. It runs AutoAttack and PGD-40 on these
images, and its suite "standard" on the first ones. The reference runs on the first ones too:
`pyautoattack`, which packages the original implementation, and PGD-40 in PyTorch, on a network that
PyTorch loads from the same file. AutoAttack's attacks run in order, each on the images that the
earlier ones left robust.
`NAME.json` has the accuracies, `NAME_autoattack.json` and `NAME_standard.json` the evaluations.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from autoattack import ATTACKS, REFERENCES, is_correct, run_reference, to_tensor
from torch import nn
from torch_architectures import make_torch

import jaxadv
from jaxadv.evaluation.result import EvaluationResult
from jaxadv.runs.workdir import provenance

ARCHITECTURE, SHAPE = "mnist_cnn", (28, 28, 1)
EPS, STEP_SIZE, NUM_STEPS = 0.3, 0.02, 40
BATCH = 500
PGD = {"attack": "pgd", "step_size": STEP_SIZE, "num_steps": NUM_STEPS, "random_start": True}


def main() -> None:
    """Evaluate a model with both implementations, print a table and write the JSON files."""
    options = _options()
    jaxadv.set_up_cpu()
    with np.load(options.data) as data:
        images = data["test_images"][: options.num_examples, ..., None]
        labels = data["test_labels"][: options.num_examples].astype(np.int32)
    began = time.monotonic()
    num_compared = min(options.num_compared, len(labels))
    first = images[:num_compared], labels[:num_compared]
    classifier = jaxadv.load_pretrained(ARCHITECTURE, options.weights)
    standard = _evaluate(options, classifier, *first, "standard", "standard")
    suite = {"pgd40": PGD, "autoattack": {"attack": "autoattack"}}
    autoattack = _evaluate(options, classifier, images, labels, "autoattack", suite)
    reference = _run_reference(classifier.module, options.weights, *first)
    result = {
        "weights": options.weights.name,
        "eps": EPS,
        "all_images": _accuracies(autoattack, len(labels)),
        "first_images": {
            "n": num_compared,
            "jaxadv": _accuracies(autoattack, num_compared),
            "standard": {name: one.accuracy for name, one in standard.attacks.items()},
            "reference": reference["accuracies"],
        },
        "seconds": {
            "jaxadv": {one.name: one.seconds for one in autoattack.attacks.values()},
            "reference": reference["seconds"],
        },
        "provenance": provenance(time.monotonic() - began),
    }
    (options.out / f"{options.weights.stem}.json").write_text(json.dumps(result, indent=2) + "\n")
    _print(result)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="NPZ file of MNIST")
    parser.add_argument("weights", type=Path, help="fast_fgsm.pth or fast_pgd.pth")
    parser.add_argument("--num-examples", type=int, default=1000, help="first test images")
    parser.add_argument("--num-compared", type=int, default=1000, help="of these, for PyTorch")
    parser.add_argument("--cache", type=Path, help="folder to resume from; by default none")
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON files")
    return parser.parse_args()


def _evaluate(
    options: argparse.Namespace,
    classifier: jaxadv.Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    name: str,
    attacks: str | dict,
) -> EvaluationResult:
    """Run a suite of jaxadv and write its evaluation."""
    name = f"{options.weights.stem}_{name}"
    result = jaxadv.evaluate(
        classifier,
        images,
        labels,
        attacks=attacks,
        eps=EPS,
        dataset="MNIST",
        cache=options.cache and options.cache / name,
    )
    print(result, flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.json").write_text(json.dumps(result.to_json(), indent=2) + "\n")
    return result


def _accuracies(result: EvaluationResult, n: int) -> dict[str, float]:
    """Return the accuracies on the first n images: clean, PGD, after each attack of AutoAttack."""
    examples = result.examples
    pgd, autoattack = (examples.attacks[f"{name}/{EPS}"] for name in ("pgd40", "autoattack"))
    correct = (examples.predictions == examples.labels)[:n]
    broken_by = autoattack.broken_by[:n]
    after = {
        name: float((correct & ((broken_by == -1) | (broken_by > index))).mean())
        for index, name in enumerate(ATTACKS, start=1)  # 0: misclassified without an attack
    }
    return {"clean": float(correct.mean()), "pgd40": float(pgd.robust[:n].mean()), **after}


def _run_reference(module, weights: Path, images: np.ndarray, labels: np.ndarray) -> dict:
    """Return the same accuracies of the implementations in PyTorch, and their seconds."""
    model = make_torch(module, SHAPE)
    model.load_state_dict(torch.load(weights, map_location="cpu"))
    floats = images.astype(np.float32) / 255
    attacks = REFERENCES["pyautoattack"](model, "linf", EPS)
    measured, _ = run_reference(attacks, model, floats, labels)
    began = time.monotonic()
    robust = _pgd(model, to_tensor(floats), torch.from_numpy(labels).long())
    measured["accuracies"]["pgd40"] = robust.float().mean().item()
    measured["seconds"]["pgd40"] = time.monotonic() - began
    return measured


def _pgd(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Run PGD from a random start; return which images are robust."""
    torch.manual_seed(0)
    robust = []
    for clean, classes in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        moved = (clean + torch.empty_like(clean).uniform_(-EPS, EPS)).clamp(0, 1)
        for _ in range(NUM_STEPS):
            moved.requires_grad_(True)
            loss = nn.functional.cross_entropy(model(moved), classes, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, moved)
            moved = moved.detach() + STEP_SIZE * gradient.sign()
            moved = torch.min(torch.max(moved, clean - EPS), clean + EPS).clamp(0, 1)
        robust.append(is_correct(model, clean, classes) & is_correct(model, moved, classes))
    return torch.cat(robust)


def _print(result: dict) -> None:
    first = result["first_images"]
    print(
        f"{result['weights']}: accuracy on all images; on the first {first['n']}: jaxadv, PyTorch"
    )
    for name, accuracy in result["all_images"].items():
        print(f"{name:8} {accuracy:8.2%} {first['jaxadv'][name]:8.2%} "
              f"{first['reference'][name]:8.2%}", flush=True)  # fmt: skip


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
