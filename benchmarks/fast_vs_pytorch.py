"""Time `configs/fast.py` beside the study's training in PyTorch, on the same cores.

    pip install -e ".[benchmarks]" && pip install --no-deps torchattacks
    PYTHONPATH=.:benchmarks python benchmarks/fast_vs_pytorch.py --out results/fast

Two whole recipes are compared, each with its model, attack and optimizer; results/fast.md says how
robust they are. `configs/fast.py` is trained on CIFAR-10, and timed with compilation, validation
and checkpoints, without reading the data. Of the study's training, `configs/study_curriculum.py`,
PyTorch runs some steps on random images: with the least, a middle and the greatest number of PGD
steps. The time of the whole training is interpolated from them, without validation and
compilation. Of the ways to run PyTorch that `vs_pytorch.py` has, the fastest counts. The radius,
which does not change the time, is 8/255.
"""

import argparse
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import torch
from common import Run, measure_interleaved
from ml_collections import ConfigDict
from torch.nn import functional
from vs_pytorch import torch_pgd, torch_runs

from jaxadv.config import check, set_defaults
from jaxadv.configs import fast, study_curriculum
from jaxadv.core.devices import set_up_cpu
from jaxadv.core.files import write_json
from jaxadv.data import Dataset
from jaxadv.runs.workdir import load_dataset, provenance, source_version
from jaxadv.training.curriculum import linear_budget
from jaxadv.training.train import train

STEPS_PER_RUN = 20


def main() -> None:
    """Time both trainings, print the ratio, and write `fast_vs_pytorch.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the result")
    options = parser.parse_args()
    began = time.monotonic()
    set_up_cpu()
    if jax.default_backend() != "cpu":
        raise SystemExit("PyTorch is measured on the CPU: set JAX_PLATFORMS=cpu")
    source_version()
    config, study = fast.get_config(), study_curriculum.get_config()
    set_defaults(config)
    check(config, num_devices=1)
    dataset = load_dataset(config.data)
    seconds = time_training(config, dataset)
    by_form = study_seconds(study, len(dataset.train.labels))
    best = min(by_form, key=lambda form: by_form[form])
    print(
        f"configs/fast.py: {seconds:.0f} s. The study in PyTorch ({best}): {by_form[best]:.0f} s, "
        f"{by_form[best] / seconds:.1f} times as long."
    )
    record = {
        "fast_seconds": seconds,
        "fast_num_epochs": config.train.num_epochs,
        "study_seconds_in_pytorch": by_form,
        "ratio": by_form[best] / seconds,
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "provenance": provenance(time.monotonic() - began),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "fast_vs_pytorch.json", record)


def time_training(config: ConfigDict, dataset: Dataset) -> float:
    """Return the seconds of a training, compilation included."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        train(config, dataset, Path(folder))
        return time.monotonic() - began


def study_seconds(config: ConfigDict, num_images: int) -> dict[str, float]:
    """Return the seconds of all steps of the study's training, for each form of PyTorch."""
    num_epochs, batch_size = config.train.num_epochs, config.train.batch_size
    schedule = [
        linear_budget(config.attack, epoch, num_epochs).num_steps for epoch in range(num_epochs)
    ]
    measured = (min(schedule), (min(schedule) + max(schedule)) // 2, max(schedule))
    images = torch.rand(batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(batch_size) % 10
    runs: dict[tuple[str, int], Run] = {}
    for num_steps in measured:

        def make_run(module, memory, num_steps=num_steps):
            return _training_steps(module, images, labels, config, memory, num_steps)

        for form, run in torch_runs(config.model.name, make_run).items():
            runs[form, num_steps] = run
    seconds = {key: 1 / np.median(rates) for key, rates in measure_interleaved(runs).items()}
    steps_per_epoch = num_images // batch_size

    def total(form: str) -> float:
        of_a_step = [seconds[form, num_steps] for num_steps in measured]
        return steps_per_epoch * float(np.interp(schedule, measured, of_a_step).sum())

    return {form: total(form) for form, _ in runs}


def _training_steps(
    module: torch.nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    config: ConfigDict,
    memory: torch.memory_format,
    num_steps: int,
) -> Run:
    """Return a run of the study's training steps: a share of the batch is attacked."""
    optimizer = torch.optim.AdamW(
        module.parameters(),
        config.optimizer.learning_rate,
        weight_decay=config.optimizer.weight_decay,
    )
    batch = images.contiguous(memory_format=memory)
    num_attacked = round(config.attack.fraction * len(images))

    def run() -> int:
        for _ in range(STEPS_PER_RUN):
            module.eval()
            adversarial = torch_pgd(
                module,
                batch[:num_attacked],
                labels[:num_attacked],
                num_steps=num_steps,
                random_start=config.attack.random_start,
            )
            module.train()
            optimizer.zero_grad(set_to_none=True)
            mixed = torch.cat([adversarial, batch[num_attacked:]])
            functional.cross_entropy(module(mixed), labels).backward()
            optimizer.step()
        return STEPS_PER_RUN

    return run


if __name__ == "__main__":
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    main()
