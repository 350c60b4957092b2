"""Gradients per second of PGD under a model's noise: one draw in each step, or many averaged.

    python benchmarks/eot.py bignet

The attacks take 20 gradients each, as 20 steps with one draw or as 1 step with 20, one at a time or
four. All of one defence run in turn, five times over; printed is the median with its range, and the
median of the ratios within each turn. The model is untrained.
"""

import sys

from turns import compare, make_attack, make_problem

from jaxadv.models import make_model
from jaxadv.models.defences import PNI, RSE
from jaxadv.parallel import set_up_cpu

BATCH = 512
DEFENCES = {"PNI": PNI(), "RSE": RSE()}
PGD = {"attack": "pgd", "eps": (0.03,), "step_size": 0.01}
ATTACKS = {
    "20 steps": {**PGD, "num_steps": 20},
    "1 step, 20 draws": {**PGD, "num_steps": 1, "num_noise_samples": 20},
    "the same in fours": {
        **PGD, "num_steps": 1, "num_noise_samples": 20, "noise_chunk_size": 4
    },
}  # fmt: skip


def main() -> None:
    """Prints a table for each model named on the command line."""
    set_up_cpu()
    for name in sys.argv[1:] or ["bignet"]:
        for title, defence in DEFENCES.items():
            model = make_model(name, 10, defence=defence)
            weights, split, _ = make_problem(model, BATCH)
            compare(
                f"{name}, {title}",
                {
                    attack: make_attack(model, weights, split, config)
                    for attack, config in ATTACKS.items()
                },
            )


if __name__ == "__main__":
    main()
