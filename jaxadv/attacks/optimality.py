"""The optimality of attacks, as in AttackBench (Cinà et al., 2025)."""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float


def local_optimality(
    distances: Mapping[str, Float[np.ndarray, "n"]],
) -> dict[str, float | None]:
    """Return the optimality of each attack on one model, from 0 to 1.

    The area under the curve of accuracy over distance measures what an attack leaves. The
    empirically optimal attack takes the nearest image that any attack found for each example. The
    optimality of an attack is 1 if its curve is that of the optimal attack, and 0 if it fools no
    example. Both areas end where the optimal attack leaves no example.

    Compare attacks at equal numbers of gradients. An attack added to the comparison can lower the
    optimality of the others.

    Args:
      distances: of each attack, to the nearest misclassified image of each example that it found;
        infinite without one, and 0 for examples that are misclassified without a perturbation.

    Returns:
      The optimality by name of the attack; None if no attack fooled a correctly classified example.

    Raises:
      ValueError: the attacks have different numbers of examples.

    >>> near, far = np.array([0.0, 0.25, 0.75]), np.array([0.0, 0.5, np.inf])
    >>> local_optimality({"near": near, "far": far})
    {'near': 1.0, 'far': 0.5}
    """
    lengths = {name: len(one) for name, one in distances.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the attacks have different numbers of examples: {lengths}")
    best = np.min(list(distances.values()), axis=0)
    is_fooled = (best > 0) & np.isfinite(best)
    if not is_fooled.any():
        return dict.fromkeys(distances)
    end = best[is_fooled].max()
    fooled = {name: one[is_fooled] for name, one in distances.items()}
    # The area above a curve of accuracy is the sum of what its distances leave up to the end.
    of_best = float((end - best[is_fooled]).sum())
    if of_best == 0:  # all distances are equal
        return {name: float((one <= end).mean()) for name, one in fooled.items()}
    return {
        name: float((end - np.minimum(one, end)).sum()) / of_best for name, one in fooled.items()
    }


def global_optimality(models: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """Return the mean of the local optimality of each attack over several models.

    >>> global_optimality([{"fmn": 1.0, "ddn": 0.9}, {"fmn": 0.8, "ddn": 1.0}])
    {'fmn': 0.9, 'ddn': 0.95}

    Args:
      models: results of `local_optimality` with the same attacks; models where it is None are left
        out.

    Raises:
      ValueError: the models have different attacks.
    """
    names = [tuple(sorted(model)) for model in models]
    if len(set(names)) > 1:
        raise ValueError(f"the models have different attacks: {sorted(set(names))}")
    known = [model for model in models if None not in model.values()]
    if not known:
        return {}
    return {name: statistics.mean(float(model[name] or 0) for model in known) for name in known[0]}
