"""AutoAttack beside its implementations in PyTorch: the same weights, images and machine.

    pip install -e ".[benchmarks]" && pip install --no-deps torchattacks
    python benchmarks/autoattack.py runs/standard --num-examples 1000 --out results/autoattack

Each attack runs on what the ones before left; printed are the accuracy after each, what it took in
seconds (here compilation included), and on how many examples the verdicts of the whole differ.
`pyautoattack` is the reference, fra31/auto-attack, packaged. `torchattacks` takes 10 steps where
AutoAttack takes 100: here it takes 100 as well. Their batches hold 250 images.
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

from jaxadv import config
from jaxadv.attacks import autoattack
from jaxadv.classifier import make_logits_fn
from jaxadv.evaluate import load_dataset, restore_classifier
from jaxadv.parallel import set_up_cpu
from jaxadv.provenance import provenance

EPS = {"linf": 8 / 255, "l2": 0.5}
PEER_NORMS = {"linf": "Linf", "l2": "L2"}
ATTACKS = {"apgd_ce": "apgd-ce", "apgd_t": "apgd-t", "fab_t": "fab-t", "square": "square"}
BATCH = 250
STEPS = 100

Attack = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def main() -> None:
    """Runs all on one checkpoint, prints a table for each norm and writes a JSON."""
    options = _options()
    set_up_cpu()
    trained = config.read(options.run)
    if options.data_dir:
        trained.data.data_dir = options.data_dir
    dataset = load_dataset(trained.data)
    model, restored = restore_classifier(trained, dataset, options.run, "best")
    variables = restored.items["weights"]
    images = np.asarray(dataset.test.images[: options.num_examples], np.float32) / 255
    labels = np.asarray(dataset.test.labels[: options.num_examples])
    peer = to_torch(model, variables)
    difference = _check_same(model, variables, peer, images[:64])
    for norm in options.norms:
        began = time.monotonic()
        sides = {"jaxadv": _run_jaxadv(model, variables, images, labels, norm)}
        for name in options.peers:
            sides[name] = _run_peer(PEERS[name](peer, norm), peer, images, labels)
        result = {
            "checkpoint": str(options.run),
            "model": trained.model.name,
            "norm": norm,
            "eps": EPS[norm],
            "n": len(labels),
            "largest_difference_of_logits": difference,
            "sides": {name: side for name, (side, _) in sides.items()},
            "disagreement": _disagreement(
                {name: standing for name, (_, standing) in sides.items()}
            ),
            "provenance": provenance(time.monotonic() - began),
        }
        _print(result)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            path = options.out / f"{options.name or options.run.name}_{norm}.json"
            path.write_text(json.dumps(result, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="workdir of a training run")
    parser.add_argument("--num-examples", type=int, default=1000)
    parser.add_argument("--norms", nargs="*", default=["linf", "l2"], choices=EPS)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--data-dir", help="TFDS directory, by default that of the run")
    parser.add_argument("--out", type=Path, help="folder of the JSON")
    parser.add_argument("--name", help="of the JSON, by default that of the workdir")
    return parser.parse_args()


def _check_same(model, variables, peer, images) -> float:
    """Returns the largest difference of the logits of the two frameworks."""
    ours = np.asarray(model.apply(variables, images))
    with torch.no_grad():
        theirs = peer(_to_torch(images)).numpy()
    difference = float(np.abs(ours - theirs).max())
    assert difference < 1e-3, f"the two models differ by {difference}"
    return difference


def _run_jaxadv(model, variables, images, labels, norm):
    def logits_fn(key, images):
        return make_logits_fn(model, variables, np.arange(len(images)))(key, images)

    began = time.monotonic()
    key = jax.random.key(0)
    found = autoattack(key, logits_fn, images, labels, eps=EPS[norm], norm=norm)
    seconds = {"whole": time.monotonic() - began, **found.seconds}
    accuracies = found.accuracies()
    return {
        "accuracies": accuracies,
        "seconds": seconds,
        "queries": int(found.queries.sum()),
        "gradients": int(found.gradients.sum()),
        "unconfirmed": found.unconfirmed,
    }, found.broken_by == -1


def _pyautoattack(peer: torch.nn.Module, norm: str) -> dict[str, Attack]:
    from pyautoattack import AutoAttack

    whole = AutoAttack(peer, norm=PEER_NORMS[norm], eps=EPS[norm], seed=0)
    whole.verbose = False

    def one(name: str) -> Attack:
        def run(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            whole.attacks_to_run = [ATTACKS[name]]
            return whole.run_standard_evaluation(images, labels, batch_size=BATCH)[0]

        return run

    return {name: one(name) for name in ATTACKS}


def _torchattacks(peer: torch.nn.Module, norm: str) -> dict[str, Attack]:
    import torchattacks

    whole = torchattacks.AutoAttack(peer, norm=PEER_NORMS[norm], eps=EPS[norm], seed=0)

    def one(attack: Attack) -> Attack:
        def run(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            parts = zip(images.split(BATCH), labels.split(BATCH), strict=True)
            return torch.cat([attack(*part) for part in parts])

        return run

    attacks = whole._autoattack.attacks
    for attack in attacks[:-1]:
        attack.steps = STEPS
    return {name: one(attack) for name, attack in zip(ATTACKS, attacks, strict=True)}


PEERS = {"pyautoattack": _pyautoattack, "torchattacks": _torchattacks}


def _run_peer(attacks: dict[str, Attack], peer, images, labels):
    """Runs the attacks one after another, each on what is left, and times each."""
    images, labels = _to_torch(images), torch.from_numpy(labels).long()
    began = time.monotonic()
    standing = _correct(peer, images, labels)
    accuracies, seconds = {"clean": standing.float().mean().item()}, {}
    for name, attack in attacks.items():
        since, rows = time.monotonic(), torch.nonzero(standing)[:, 0]
        if len(rows):
            standing[rows] = _correct(peer, attack(images[rows], labels[rows]), labels[rows])
        seconds[name] = time.monotonic() - since
        accuracies[name] = standing.float().mean().item()
    seconds = {"whole": time.monotonic() - began, **seconds}
    return {"accuracies": accuracies, "seconds": seconds}, standing.numpy()


def _correct(peer, images, labels) -> torch.Tensor:
    with torch.no_grad():
        parts = zip(images.split(BATCH), labels.split(BATCH), strict=True)
        return torch.cat([peer(batch).argmax(1) == classes for batch, classes in parts])


def _to_torch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _disagreement(standing: dict[str, np.ndarray]) -> dict[str, dict[str, int]]:
    """Returns for each peer how many examples only one of the two sides breaks."""
    ours = standing["jaxadv"]
    return {
        name: {
            "broken_here_alone": int((~ours & theirs).sum()),
            "broken_there_alone": int((ours & ~theirs).sum()),
        }
        for name, theirs in standing.items()
        if name != "jaxadv"
    }


def _print(result: dict) -> None:
    sides, disagreement = result["sides"], result["disagreement"]
    print(f"\n{result['checkpoint']}, {result['norm']} eps {result['eps']:.4g}, n = {result['n']}")
    for stage in ("clean", *ATTACKS, "whole"):
        cells = []
        for name, side in sides.items():
            accuracy = side["accuracies"].get(stage)
            seconds = side["seconds"].get(stage)
            own = sides["jaxadv"]["seconds"].get(stage)
            ratio = seconds / own if seconds and own and own > 0.1 else None
            cells.append(
                f"{name} "
                + (f"{accuracy:7.2%} " if accuracy is not None else " " * 8)
                + (f"{seconds:7.1f} s" if seconds is not None else " " * 9)
                + (f" x{ratio:5.2f}" if ratio and name != "jaxadv" else "")
            )
        print(f"{stage:8} " + " | ".join(cells), flush=True)
    print(f"verdicts that differ: {disagreement}", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
