"""Throughput of attacks: gradients per second of noisy PGD, queries per second of black boxes.

    python benchmarks/throughput.py eot bignet
    python benchmarks/throughput.py queries net bignet

- `eot`: PGD on models with random defences. Each attack computes 20 gradients: 20 steps with one
  noise sample each, or 1 step that averages over 20 noise samples, computed one or four at a time.
- `queries`: black-box attacks, relative to forward passes over as many images. The radius is so
  small that no attack succeeds, so that every attack spends its whole budget.

The models are untrained, and 512 random images are attacked in one batch. The runs of a table are
interleaved: each of five repetitions executes every run once, after a warm-up that compiles. A line
has the median and the range of the rate, and the median ratio to the first run of the same
repetition.
"""

import argparse

from common import Run, compare, make_attack, make_problem
from flax import linen as nn

from jaxadv.core.devices import set_up_cpu
from jaxadv.models import make_model
from jaxadv.models.defences import PNI, RSE

BATCH_SIZE = 512
DEFENCES = {"PNI": PNI(), "RSE": RSE()}
PGD = {"attack": "pgd", "eps": (0.03,), "step_size": 0.01}
EOT_ATTACKS = {
    "20 steps, 1 sample": {**PGD, "num_steps": 20},
    "1 step, 20 samples": {**PGD, "num_steps": 1, "num_noise_samples": 20},
    "1 step, 20 samples by fours": {
        **PGD, "num_steps": 1, "num_noise_samples": 20, "noise_chunk_size": 4
    },
}  # fmt: skip
BUDGET = {"eps": (1e-6,), "num_queries": 105}
BLACK_BOX_ATTACKS = {
    "NES": {"attack": "nes", "step_size": 1e-7, **BUDGET},
    "SPSA": {"attack": "nes", "step_size": 1e-7, "directions": "rademacher", **BUDGET},
    "Square": {"attack": "square", **BUDGET},
    "Square, L2": {"attack": "square", "norm": "l2", **BUDGET},
    "random search": {"attack": "random_search", **BUDGET},
}


def main() -> None:
    """Run a measurement on each model, and print a table for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measurement", choices=MEASUREMENTS)
    parser.add_argument("models", nargs="*", default=["bignet"], help="by default bignet")
    options = parser.parse_args()
    set_up_cpu()
    for name in options.models:
        MEASUREMENTS[options.measurement](name)


def measure_eot(name: str) -> None:
    """Compare one and several noise samples per step of PGD, for each random defence."""
    for defence_name, defence in DEFENCES.items():
        model = make_model(name, 10, defence=defence)
        runs, _ = _attack_runs(model, EOT_ATTACKS)
        compare(f"{name}, {defence_name}", runs)


def measure_queries(name: str) -> None:
    """Compare black-box attacks with forward passes over as many images."""
    runs, forward_passes = _attack_runs(make_model(name, 10), BLACK_BOX_ATTACKS)
    compare(name, {"forward pass": forward_passes, **runs})


def _attack_runs(model: nn.Module, attacks: dict[str, dict]) -> tuple[dict[str, Run], Run]:
    weights, split, forward_passes = make_problem(model, BATCH_SIZE)
    runs = {name: make_attack(model, weights, split, attack) for name, attack in attacks.items()}
    return runs, forward_passes


MEASUREMENTS = {"eot": measure_eot, "queries": measure_queries}

if __name__ == "__main__":
    main()
