"""Queries per second of black-box attacks, beside the plain forward pass of as many images.

    python benchmarks/queries.py net bignet

All of one model run in turn, five times over; printed is the median with its range, and the median
of the ratios within each turn. The model is untrained and no example is ever fooled.
"""

import sys

from turns import compare, make_attack, make_problem

from jaxadv.models import make_model
from jaxadv.parallel import set_up_cpu

BATCH = 512
# So small a radius that no image crosses the boundary.
NOTHING = {"eps": (1e-6,), "num_queries": 105}
ATTACKS = {
    "NES": {"attack": "nes", "step_size": 1e-7, **NOTHING},
    "SPSA": {"attack": "nes", "step_size": 1e-7, "directions": "rademacher", **NOTHING},
    "Square": {"attack": "square", **NOTHING},
    "Square, L2": {"attack": "square", "norm": "l2", **NOTHING},
    "random search": {"attack": "random_search", **NOTHING},
}


def main() -> None:
    """Prints a table for each model named on the command line."""
    set_up_cpu()
    for name in sys.argv[1:] or ["net"]:
        model = make_model(name, 10)
        weights, split, passes = make_problem(model, BATCH)
        attacks = {
            attack: make_attack(model, weights, split, config) for attack, config in ATTACKS.items()
        }
        compare(name, {"forward pass": passes, **attacks})


if __name__ == "__main__":
    main()
