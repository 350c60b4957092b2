"""Compare training recipes at equal time, on held-out images.

    PYTHONPATH=. python benchmarks/recipes.py --minutes 2 --out results/recipes
    PYTHONPATH=. python benchmarks/recipes.py --minutes 15 --only base,awp --out results/recipes

`base` is `configs/fast.py`, and each other recipe replaces or adds an ingredient. All trainings
take the same wall time: compilation, steps and the validation after each epoch. Two epochs are
timed first, to find how many fit. The best checkpoint is evaluated on the first 1,000 held-out
images of CIFAR-10, under PGD-40 at eps 0.03 and under the APGD attacks of AutoAttack at 8/255. The
test split is not used. One seed each.

A recipe that is in the results already is not repeated.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from jaxadv.config import check, set_defaults
from jaxadv.configs import curriculum, fast
from jaxadv.core.devices import set_up_cpu
from jaxadv.core.files import write_json
from jaxadv.data import Dataset
from jaxadv.evaluation.checkpoint import evaluate_checkpoint
from jaxadv.runs.workdir import load_dataset, provenance, source_version
from jaxadv.training.train import train

Changes = Mapping[str, Any]
NUM_EXAMPLES = 1000
# Of AutoAttack's four attacks, those that fooled the images of results/fast.md.
_APGD = {
    "attack": "autoattack",
    "eps": (8 / 255,),
    "version": "custom",
    "attacks": {
        "apgd_ce": {"attack": "apgd"},
        "apgd_t": {"attack": "apgd", "loss": "dlr", "num_targets": 9},
    },
}
PGD40 = {
    "attack": "pgd", "eps": (0.03,), "step_size": 0.01, "num_steps": 40, "random_start": False,
}  # fmt: skip

_TWO_STEPS = {
    "attack.name": "pgd",
    "attack.step_size": 0.02,
    "attack.num_steps_start": 2,
    "attack.num_steps_end": 2,
}
_KL = {**_TWO_STEPS, "attack.loss": "kl"}
_ADAMW = {"optimizer.name": "adamw", "optimizer.learning_rate": 2e-3}
_SGD = {
    "optimizer.name": "sgd",
    "optimizer.nesterov": True,
    "optimizer.weight_decay": 5e-4,
    "optimizer.learning_rate": 0.05,
}
RECIPES: dict[str, Changes] = {
    "base": {},
    "adamw": _ADAMW,
    "adamw at the learning rate of muon": {**_ADAMW, "optimizer.learning_rate": 8e-3},
    "sgd": _SGD,
    "bignet": {"model.name": "bignet"},
    "bignet with adamw": {"model.name": "bignet", **_ADAMW},
    "the attacks of curriculum.py": {
        f"attack.{key}": value for key, value in curriculum.get_config().attack.items()
    },
    "no average": {"train.ema_decay": 0.0},
    "no flip": {"data.augmentation": "none"},
    "half the learning rate": {"optimizer.learning_rate": 4e-3},
    "twice the learning rate": {"optimizer.learning_rate": 16e-3},
    "linear schedule": {"optimizer.schedule": "linear"},
    "batch of 64": {"train.batch_size": 64},
    "batch of 256": {"train.batch_size": 256},
    "flip and crop": {"data.augmentation": "flip_crop"},
    "cutmix": {"train.cutmix": 0.5},
    "label smoothing": {"train.label_smoothing": 0.1},
    "ramp of eps": {"attack.eps_start": 0.01},
    "larger eps": {
        "attack.eps_start": 0.03, "attack.eps_end": 0.03, "attack.step_size": 0.03,
    },
    "two steps": _TWO_STEPS,
    "trades": {**_KL, "train.loss": "trades"},
    "mart": {**_TWO_STEPS, "train.loss": "mart"},
    "ikl": {**_KL, "train.loss": "ikl"},
    "awp": {"train.awp_gamma": 0.005},
    "gradient alignment": {"train.gradient_alignment": 0.2},
}  # fmt: skip


def main() -> None:
    """Train and evaluate the recipes, and write `<minutes>min.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, required=True, help="time of each training")
    parser.add_argument("--only", default="", help="names, separated by commas; by default all")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    options = parser.parse_args()
    set_up_cpu()
    source_version()
    names = options.only.split(",") if options.only else list(RECIPES)
    path = options.out / f"{options.minutes:g}min.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    dataset = load_dataset(make_config({}).data)
    for name in names:
        if name in results:
            continue
        print(f"\n{name}", flush=True)
        config = make_config(RECIPES[name])
        results[name] = measure(config, dataset, 60 * options.minutes)
        results[name]["changes"] = dict(RECIPES[name])
        write_json(path, results)
    show(results)


def make_config(changes: Changes) -> ConfigDict:
    """Return the checked config of a recipe, evaluated on held-out images."""
    config = fast.get_config()
    config.update_from_flattened_dict(changes)
    config.evaluation.split = "held_out"
    config.evaluation.num_examples = NUM_EXAMPLES
    config.evaluation.attacks = ConfigDict({"pgd40": PGD40, "apgd": _APGD})
    set_defaults(config)
    check(config, num_devices=1)
    return config


def measure(config: ConfigDict, dataset: Dataset, seconds: float) -> dict[str, Any]:
    """Train for a wall time, evaluate, and return the accuracies."""
    began = time.monotonic()
    config.train.num_epochs = epochs_within(seconds, *time_epochs(config, dataset))
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder)
        trained = time.monotonic()
        train(config, dataset, workdir)
        training_seconds = time.monotonic() - trained
        evaluate_checkpoint(
            config, dataset, config.evaluation, source=workdir, which="best", workdir=workdir
        )
        evaluation = json.loads((workdir / "evaluation.json").read_text(encoding="utf-8"))
    accuracies = {key: entry["accuracy"] for key, entry in evaluation["attacks"].items()}
    return {
        "num_epochs": config.train.num_epochs,
        "training_seconds": training_seconds,
        "clean": evaluation["clean"]["accuracy"],
        **accuracies,
        "num_parameters": evaluation["num_parameters"],
        "provenance": provenance(time.monotonic() - began),
    }


def time_epochs(config: ConfigDict, dataset: Dataset) -> tuple[float, float]:
    """Return the seconds of the first epoch, which compiles, and of a later one."""
    trial = config.copy_and_resolve_references()
    trial.train.num_epochs = 2
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        train(trial, dataset, Path(folder))
        seconds = time.monotonic() - began
        ends = [(Path(folder) / "checkpoints" / epoch).stat().st_mtime for epoch in ("1", "2")]
    later = ends[1] - ends[0]
    return seconds - later, later


def epochs_within(seconds: float, first: float, later: float) -> int:
    """Return how many epochs end within a time.

    >>> epochs_within(180, first=20, later=8)
    21

    Args:
      seconds: the time.
      first: seconds of the first epoch, which compiles.
      later: seconds of each later one.
    """
    return max(1 + math.floor((seconds - first) / later), 1)


def show(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the results as a table."""
    accuracies = ["clean", "pgd40/0.03", f"apgd/{8 / 255:.4g}"]
    table = Table("recipe", "epochs", "seconds", *accuracies)
    for name, result in results.items():
        shares = (result.get(key) for key in accuracies)
        cells = ("" if share is None else f"{share:.1%}" for share in shares)
        seconds = f"{result['training_seconds']:.0f}"
        table.add_row(name, str(result["num_epochs"]), seconds, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
