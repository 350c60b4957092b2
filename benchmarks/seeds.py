"""Train a config with several seeds, and evaluate each training on the test split.

    PYTHONPATH=. python benchmarks/seeds.py fast --seeds 0 1 2 --out results/fast

Each best checkpoint is attacked by PGD-40 at eps 0.03 (step size 0.01, no random start) on the
whole test split, and by PGD-40 and AutoAttack at 8/255 on its first 1,000 images. The results, the
config and the metrics go to the folder `<config>_<epochs>_epochs_seed_<seed>`; a training whose
folder exists is not repeated. `training_seconds` is the wall time with compilation, validation and
checkpoints, without reading the data.
"""

import argparse
import importlib
import json
import shutil
import tempfile
import time
from pathlib import Path

from ml_collections import ConfigDict

from benchmarks.recipes import PGD40
from jaxadv.config import check, set_defaults
from jaxadv.configs import attack_suites
from jaxadv.core.devices import set_up_cpu
from jaxadv.core.files import write_json
from jaxadv.data import Dataset
from jaxadv.evaluation.checkpoint import evaluate_checkpoint
from jaxadv.runs.workdir import load_dataset, provenance, source_version
from jaxadv.training.train import train

NUM_AUTOATTACK = 1000


def main() -> None:
    """Train and evaluate with each number of epochs and each seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="name of a file in configs/, such as fast")
    parser.add_argument("--epochs", type=int, nargs="*", default=[], help="by default its own")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    options = parser.parse_args()
    set_up_cpu()
    source_version()
    get_config = importlib.import_module(f"jaxadv.configs.{options.config}").get_config
    dataset = load_dataset(get_config().data)
    for num_epochs in options.epochs or [get_config().train.num_epochs]:
        for seed in options.seeds:
            folder = options.out / f"{options.config}_{num_epochs}_epochs_seed_{seed}"
            if folder.exists():
                continue
            config = get_config()
            config.seed, config.train.num_epochs = seed, num_epochs
            set_defaults(config)
            check(config, num_devices=1)
            measure(config, dataset, folder)


def measure(config: ConfigDict, dataset: Dataset, folder: Path) -> None:
    """Train, evaluate on the test split, and write the results to a folder."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        workdir = Path(temporary)
        train(config, dataset, workdir)
        record = {"training_seconds": time.monotonic() - began}
        suites = {
            "pgd40": (ConfigDict({"pgd40": PGD40}), None),
            "autoattack": (attack_suites.autoattack(), NUM_AUTOATTACK),
        }
        for name, (attacks, num_examples) in suites.items():
            config.evaluation.attacks, config.evaluation.num_examples = attacks, num_examples
            results = workdir / name
            results.mkdir()
            evaluate_checkpoint(
                config, dataset, config.evaluation, source=workdir, which="best", workdir=results
            )
            text = (results / "evaluation.json").read_text(encoding="utf-8")
            record[name] = json.loads(text)
            record[name]["checkpoint"]["workdir"] = folder.name  # not the temporary one
        record["provenance"] = provenance(time.monotonic() - began)
        finished = workdir / "finished"
        finished.mkdir()
        write_json(finished / "result.json", record)
        for name in ("config.json", "metrics.jsonl"):
            shutil.copy(workdir / name, finished)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(finished, folder)


if __name__ == "__main__":
    main()
