"""AutoAttack: attacks of different kinds, each on what the ones before left (Croce & Hein 2020)."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, PyTree
from tqdm import tqdm

from jaxadv.attacks.apgd import apgd
from jaxadv.attacks.arguments import check_arguments, known
from jaxadv.attacks.batches import (
    Examples,
    Ledger,
    Model,
    count_classes,
    in_batches,
    search_size,
    traced_for_searches,
)
from jaxadv.attacks.budgets import num_queries, segment
from jaxadv.attacks.cascade import CLEAN, AutoAttacked, Stage, cascade
from jaxadv.attacks.fab import fab
from jaxadv.attacks.flags import Probed, probe, raise_flags
from jaxadv.attacks.inputs import check_classes, check_inputs
from jaxadv.attacks.square import square
from jaxadv.parallel import pmap_batches
from jaxadv.types import Images, Labels, LogitsFn, PRNGKey

_NUM_TARGETS = 9
_FUNCTIONS: dict[str, Callable] = {"apgd": apgd, "fab": fab, "square": square}
_CE = {"attack": "apgd", "loss": "cross_entropy"}
_DLR = {"attack": "apgd", "loss": "dlr"}
_APGD_T = {**_DLR, "num_targets": _NUM_TARGETS}
_FAB_T = {"attack": "fab", "num_targets": _NUM_TARGETS}
_SQUARE = {"attack": "square", "num_queries": 5000}
_DRAWS = {"num_noise_samples": 20}
VERSIONS: dict[str, dict[str, dict[str, Any]]] = {
    "standard": {"apgd_ce": _CE, "apgd_t": _APGD_T, "fab_t": _FAB_T, "square": _SQUARE},
    "plus": {
        "apgd_ce": {**_CE, "num_restarts": 5},
        "apgd_dlr": {**_DLR, "num_restarts": 5},
        "fab": {"attack": "fab", "num_targets": 0, "num_restarts": 5},
        "square": _SQUARE,
        "apgd_t": _APGD_T,
        "fab_t": _FAB_T,
    },
    "rand": {"apgd_ce": {**_CE, **_DRAWS}, "apgd_dlr": {**_DLR, **_DRAWS}},
}


def autoattack(
    key: PRNGKey,
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    *,
    eps: float,
    norm: str = "linf",
    version: str = "standard",
    example_ids: Int[Array, "batch"] | None = None,
    batch_size: int = 512,
    progress: bool = False,
    ledger: Ledger | None = None,
) -> AutoAttacked:
    """Returns for each example a misclassified image, if one of the attacks finds it in the ball.

    Each attack runs on the examples that the ones before left standing, over all devices. An
    example leaves when it is broken and a second look, under noise of its own, confirms it; else
    the attack goes on.

    | version | attacks |
    |---|---|
    | "standard" | APGD-CE; APGD-T and FAB-T, towards 9 classes; Square with 5000 queries |
    | "plus" | APGD-CE, APGD-DLR and FAB with 5 restarts; Square; APGD-T; FAB-T |
    | "rand", for models with noise | APGD-CE and APGD-DLR, each gradient the mean of 20 draws |

    APGD and FAB take 100 steps. What an example meets follows from the key and its number alone,
    not from its batch, if the logits of an image do not either. Where the reference implementation,
    fra31/auto-attack, has a quirk this does not: APGD's first checkpoint compares with the loss at
    the start and not with 0; gradients over several draws are judged by the mean of their losses
    and not by the last; Square draws squares for each example and not for a batch. With fewer than
    10 classes all others are targets.

    Args:
      key: randomness of the attacks and of the model's noise.
      logits_fn: `(key, images) -> logits`; a deterministic function ignores the key.
      images: clean images in [0, 1], shape (n, height, width, channels). Half precision is cast
        to single, and so is the result.
      labels: true classes, shape (n,).
      eps: radius of the ball in units of the pixel range.
      norm: "linf" or "l2".
      version: "standard", "plus" or "rand".
      example_ids: distinct numbers of the examples, by default their positions.
      batch_size: over all devices together; a sixteenth of it is attacked at a time, which keeps
        idle rows few and a CPU busy.
      progress: whether to show a bar over queries.
      ledger: where finished parts are kept. A call that was killed goes on from it, to the same
        result; it must be of the same arguments.

    Raises:
      ValueError: a shape, a range or a name that is not as above.
    """
    check_arguments({"eps": eps, "norm": norm, "version": version, "batch_size": batch_size})
    inputs = check_inputs(key, images, labels, None, example_ids)
    if not all(map(known, jax.tree.leaves(inputs))):
        raise ValueError("autoattack cannot run inside of jit or grad: it compiles its own parts")
    model = traced_for_searches(
        logits_fn, inputs.key, inputs.images.shape[1:], inputs.images.dtype, batch_size
    )
    examples = Examples(*map(np.asarray, (inputs.images, inputs.labels, inputs.example_ids)))
    num_classes = count_classes(model, examples, batch_size)
    check_classes("labels", inputs.labels, num_classes)
    total = len(examples.labels) * most_queries(version, num_classes)
    with tqdm(total=total, unit="query", unit_scale=True, disable=not progress) as bar:
        return run_version(
            inputs.key,
            model,
            examples,
            num_classes,
            eps=eps,
            norm=norm,
            version=version,
            batch_size=batch_size,
            bar=bar,
            ledger=ledger,
        )


def run_version(
    key: PRNGKey,
    model: Model,
    examples: Examples,
    num_classes: int,
    *,
    eps: float,
    norm: str,
    version: str,
    attack_all: bool = False,
    batch_size: int,
    bar: tqdm | None = None,
    ledger: Ledger | None = None,
    prefix: str = "",
) -> AutoAttacked:
    """Returns what the attacks of a version find, with its flags; see `autoattack`, `cascade`."""
    attack_key, probe_key = jax.random.split(key)
    found = cascade(
        attack_key,
        model,
        examples,
        _plan(version, num_classes),
        eps=eps,
        norm=norm,
        num_draws=_DRAWS["num_noise_samples"] if version == "rand" else 1,
        attack_all=attack_all,
        batch_size=batch_size,
        bar=bar,
        ledger=ledger,
        prefix=prefix,
    )
    correct = examples.rows(np.flatnonzero(found.broken_by != CLEAN))
    step, size = _probe_step(model.make_logits_fn), search_size(batch_size)
    probed = in_batches(step, model, size, probe_key, correct)
    flags = raise_flags(
        probed, num_classes, version, found.accuracies(), np.isinf(found.margins), found.nonfinite
    )
    return found._replace(flags=flags)


def most_queries(version: str, num_classes: int = _NUM_TARGETS + 1) -> int:
    """Returns the queries that a version takes for an example that nothing breaks."""
    return sum(stage.budget for stage in _plan(version, num_classes).values())


def _plan(version: str, num_classes: int) -> dict[str, Stage]:
    plan = {}
    for name, settings in VERSIONS[version].items():
        arguments = dict(settings)
        attack = arguments.pop("attack")
        if "num_targets" in arguments:
            arguments["num_targets"] = min(arguments["num_targets"], num_classes - 1)
        budget = num_queries(attack, arguments)
        arguments.pop("num_queries", None)
        plan[name] = Stage(_FUNCTIONS[attack], arguments, budget, segment(attack, arguments))
    return plan


@cache
def _probe_step(make_logits_fn: Callable) -> Callable:
    def step(
        context: PyTree, key: PRNGKey, images: Images, labels: Labels, ids: Int[Array, "share"]
    ) -> Probed:
        return probe(key, make_logits_fn(context, ids), images, labels)

    return pmap_batches(step, num_replicated=2, num_batches=3, sharded_output=True)
