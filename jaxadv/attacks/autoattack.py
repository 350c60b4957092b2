"""AutoAttack: an ensemble of four attacks of different kinds (Croce & Hein, 2020)."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree
from tqdm import tqdm

from jaxadv.attacks.apgd import APGD
from jaxadv.attacks.batching import (
    Examples,
    Model,
    ResumeCache,
    count_classes,
    in_batches,
    map_batches,
    search_size,
    trace_in_batches,
)
from jaxadv.attacks.checks import check_arguments, check_classes, check_inputs
from jaxadv.attacks.ensemble import CLEAN, AutoAttackResult, Stage, run_ensemble
from jaxadv.attacks.fab import FAB
from jaxadv.attacks.spec import AttackSpec
from jaxadv.attacks.square import SQUARE
from jaxadv.core.devices import platform, whole_batch
from jaxadv.core.images import is_concrete
from jaxadv.core.logits import are_probabilities, finite_logits, outputs_differ
from jaxadv.core.losses import make_objective
from jaxadv.core.types import Images, Labels, Logits, LogitsFn, PRNGKey

_NUM_TARGETS = 9
_NUM_NOISE_SAMPLES = 20  # of the version "rand"


def _stages(num_targets: int) -> dict[str, dict[str, Stage]]:
    """Return the attacks of each version, in their order."""
    apgd_ce = Stage(APGD, {"loss": "cross_entropy"})
    apgd_t = Stage(APGD, {"loss": "dlr", "num_targets": num_targets})
    fab_t = Stage(FAB, {"num_targets": num_targets})
    square = Stage(SQUARE, {"num_queries": 5000})
    noise = {"num_noise_samples": _NUM_NOISE_SAMPLES}
    return {
        "standard": {"apgd_ce": apgd_ce, "apgd_t": apgd_t, "fab_t": fab_t, "square": square},
        "plus": {
            "apgd_ce": Stage(APGD, {"loss": "cross_entropy", "num_restarts": 5}),
            "apgd_dlr": Stage(APGD, {"loss": "dlr", "num_restarts": 5}),
            "fab": Stage(FAB, {"num_targets": 0, "num_restarts": 5}),
            "square": square,
            "apgd_t": apgd_t,
            "fab_t": fab_t,
        },
        "rand": {
            "apgd_ce": Stage(APGD, {"loss": "cross_entropy", **noise}),
            "apgd_dlr": Stage(APGD, {"loss": "dlr", **noise}),
        },
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
    ledger: ResumeCache | None = None,
) -> AutoAttackResult:
    """Run AutoAttack: several attacks, each on the examples that the previous ones left robust.

    The attacks run over all devices. An example counts as fooled, and leaves, when a second success
    check with new noise confirms the success; otherwise the attack continues on it.

    | version | attacks |
    |---|---|
    | "standard" | APGD-CE; APGD-T and FAB-T with 9 target classes; Square with 5000 queries |
    | "plus" | APGD-CE, APGD-DLR and FAB with 5 restarts; Square; APGD-T; FAB-T |
    | "rand", for models with noise | APGD-CE and APGD-DLR, each gradient averaged over 20 samples |

    APGD and FAB take 100 steps. The result of an example depends on the key and its number alone,
    not on its batch, provided that its logits do not depend on the batch. With fewer than 10
    classes all other classes are targets.

    Differences from the reference implementation, fra31/auto-attack: the first checkpoint of APGD
    compares with the loss at the start, not with 0. With several noise samples, the loss of an
    iterate is their mean, not that of the last sample. Square samples its squares for each example,
    not for the batch.

    Args:
      key: randomness of the attacks and of the model's noise.
      logits_fn: `(key, images) -> logits`; a deterministic function ignores the key.
      images: clean images in [0, 1], shape (n, height, width, channels). Half precision is cast
        to float32, and so is the result.
      labels: true classes, shape (n,).
      eps: radius of the ball in units of the pixel range.
      norm: "linf" or "l2".
      version: "standard", "plus" or "rand".
      example_ids: distinct numbers of the examples, by default their positions.
      batch_size: over all devices together. For a model in JAX on a CPU at most a sixteenth
        of it is attacked at a time, which leaves few idle rows and still fills the CPU.
      progress: whether to show a progress bar over queries.
      ledger: resume cache: a mapping where finished parts are saved. A call that was interrupted
        resumes from it, to the same result. The arguments must be the same.

    Returns:
      An `AutoAttackResult`; `(result.broken_by == -1).mean()` is the robust accuracy.

    Raises:
      ValueError: a shape, a range or a name is invalid, or the call is inside `jit` or `grad`.

    >>> logits_fn = lambda key, x: x.sum((1, 2)) @ jnp.array([[1.0, -1.0, 0.0]])
    >>> x, y = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    >>> result = autoattack(jax.random.key(0), logits_fn, x, y, eps=0.1, batch_size=16)
    >>> result.broken_by, result.attacks[1:]
    (array([-1]), ('apgd_ce', 'apgd_t', 'fab_t', 'square'))
    """
    check_arguments({"eps": eps, "norm": norm, "version": version, "batch_size": batch_size})
    inputs = check_inputs(key, images, labels, None, example_ids)
    if not all(map(is_concrete, jax.tree.leaves(inputs))):
        raise ValueError("autoattack cannot run inside of jit or grad: call it outside")
    if platform() != "cpu":  # where searches take whole batches
        batch_size = whole_batch(batch_size, len(labels))
    model = trace_in_batches(logits_fn, inputs.key, inputs.images.shape[1:], inputs.images.dtype)
    examples = Examples(*map(np.asarray, (inputs.images, inputs.labels, inputs.example_ids)))
    num_classes = count_classes(model, examples, batch_size)
    check_classes("labels", inputs.labels, num_classes)
    total = len(examples.labels) * _max_queries(version, num_classes)
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
            cache=ledger,
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
    cache: ResumeCache | None = None,
    prefix: str = "",
) -> AutoAttackResult:
    """Run the attacks of a version, and raise its flags; see `autoattack` and `run_ensemble`."""
    attack_key, probe_key = jax.random.split(key)
    result = run_ensemble(
        attack_key,
        model,
        examples,
        _version_stages(version, num_classes),
        eps=eps,
        norm=norm,
        num_noise_samples=_NUM_NOISE_SAMPLES if version == "rand" else 1,
        attack_all=attack_all,
        batch_size=batch_size,
        bar=bar,
        cache=cache,
        prefix=prefix,
    )
    correct = examples.rows(np.flatnonzero(result.broken_by != CLEAN))
    step = _probe_step(model.make_logits_fn, model.on_host)
    size = search_size(batch_size, on_host=model.on_host)
    probed = in_batches(step, model, size, probe_key, correct)
    flags = raise_flags(
        probed,
        num_classes,
        version,
        result.accuracies(),
        np.isinf(result.margins),
        result.nonfinite,
    )
    return result._replace(flags=flags)


def _version_stages(version: str, num_classes: int) -> dict[str, Stage]:
    return _stages(min(_NUM_TARGETS, num_classes - 1))[version]


def _max_queries(version: str, num_classes: int = _NUM_TARGETS + 1) -> int:
    """Return the queries of a version on an example that is robust under all its attacks."""
    return sum(stage.max_queries for stage in _version_stages(version, num_classes).values())


AUTOATTACK = AttackSpec(
    attack_fn=autoattack,
    run=autoattack,
    traced=(),
    uses_gradients=True,
    max_queries=lambda arguments: _max_queries(arguments.get("version", "standard")),
    returns_clean=True,
    is_ensemble=True,
)


@cache
def _probe_step(make_logits_fn: Callable, on_host: bool) -> Callable:
    def step(
        context: PyTree, key: PRNGKey, images: Images, labels: Labels, ids: Int[Array, "share"]
    ) -> Probed:
        return probe(key, make_logits_fn(context, ids), images, labels)

    return map_batches(step, on_host, num_replicated=2, num_batches=3)


_NUM_PROBES = 5
_SQUARE_GAIN = 0.002  # largest loss of accuracy under Square, after attacks with gradients


class Probed(NamedTuple):
    """Properties of a model, from a few forward passes and a gradient; one row per example.

    Attributes:
      varies: whether forward passes over the same image differ.
      is_distribution: whether the outputs are probabilities, that is, in [0, 1] with sum 1.
      zero_gradient: whether the gradient of the DLR loss is zero at the image.
      nonfinite_gradient: whether that gradient is NaN or infinite.
      depends_on_batch: whether the outputs change with the other images of the batch.
    """

    varies: Bool[Array, "batch"]
    is_distribution: Bool[Array, "batch"]
    zero_gradient: Bool[Array, "batch"]
    nonfinite_gradient: Bool[Array, "batch"]
    depends_on_batch: Bool[Array, "batch"]


def probe(key: PRNGKey, logits_fn: LogitsFn, images: Images, labels: Labels) -> Probed:
    """Probe a model with five forward passes and one gradient on clean images."""
    keys = jax.random.split(key, _NUM_PROBES)
    outputs = jax.lax.map(lambda key: finite_logits(logits_fn(key, images)), keys)
    objective = make_objective("dlr", labels, None)
    gradient = jax.grad(lambda images: objective(logits_fn(keys[0], images)).sum())(images)
    return Probed(
        varies=outputs_differ(outputs),
        is_distribution=are_probabilities(outputs[0]),
        zero_gradient=(gradient == 0).all(axis=(1, 2, 3)),
        nonfinite_gradient=~jnp.isfinite(gradient).all(axis=(1, 2, 3)),
        depends_on_batch=outputs_differ(
            jnp.stack([outputs[0], _in_another_batch(keys[0], logits_fn, images)])
        ),
    )


def _in_another_batch(key: PRNGKey, logits_fn: LogitsFn, images: Images) -> Logits:
    """Return the logits of each image in a batch whose other half is replaced by grey images."""
    even = jnp.arange(len(images)) % 2 == 0

    def with_grey(rows: Bool[Array, "batch"]) -> Logits:
        return finite_logits(logits_fn(key, jnp.where(rows[:, None, None, None], images, 0.5)))

    return jnp.where(even[:, None], with_grey(even), with_grey(~even))


def raise_flags(
    probed: Probed,
    num_classes: int,
    version: str,
    accuracies: Mapping[str, float],
    nonfinite_logits: Bool[np.ndarray, "n"],
    nonfinite_gradients: Int[np.ndarray, "n"],
) -> dict[str, str]:
    """Return the flags raised for a model, each with a sentence that says why.

    Args:
      probed: of all examples that the model classifies correctly, in numpy arrays.
      num_classes: of the model.
      version: of AutoAttack.
      accuracies: after each attack, in their order.
      nonfinite_logits: for each example whether the logits of its final image are NaN or infinite.
      nonfinite_gradients: for each example how many gradients of the attacks were NaN or infinite.
    """
    flags = {}
    if nonfinite_logits.any():
        flags["nonfinite_logits"] = (
            f"The logits of {_count(nonfinite_logits)} images are NaN or infinite, clean or "
            "attacked. They count as misclassified. Find where the model overflows."
        )
    if (nonfinite_gradients > 0).any() or probed.nonfinite_gradient.any():
        flags["nonfinite_gradient"] = (
            f"{int(nonfinite_gradients.sum()):,} gradients of {_count(nonfinite_gradients > 0)} "
            "images were NaN or infinite and counted as zero, so gradient attacks make no progress "
            "there. Find the operation (a root or a division at 0), and make it smooth."
        )
    if probed.depends_on_batch.any():
        flags["depends_on_batch"] = (
            f"The logits of {_count(probed.depends_on_batch)} images depend on the rest of "
            "their batch, so accuracies depend on it too. Call the model in evaluation mode, with "
            "the running statistics of batch norm."
        )
    if probed.varies.any() and version != "rand":
        flags["randomised"] = (
            f"Forward passes over the same image differ on {_count(probed.varies)} images: the "
            'model is random. Use version "rand".'
        )
    if len(probed.is_distribution) and probed.is_distribution.all():
        flags["softmax"] = (
            "The outputs are probabilities, not logits. Their gradients vanish where the model is "
            "confident. Attack the logits."
        )
    if probed.zero_gradient.any():
        flags["zero_gradient"] = (
            f"The gradient of the DLR loss is zero on {_count(probed.zero_gradient)} images: "
            "gradient attacks make no progress there. Attack a smooth approximation of the "
            "operation that hides the gradient (`jaxadv.attacks.bpda`)."
        )
    if num_classes < 4:
        flags["few_classes"] = (
            f"With {num_classes} classes there is no {'targeted ' if num_classes == 3 else ''}DLR "
            "loss. The margin loss replaces it, whose scale depends on the model."
        )
    names = list(accuracies)
    place = names.index("square") if "square" in names else 0
    if place > 1:
        gain = accuracies[names[place - 1]] - accuracies["square"]
        if gain > _SQUARE_GAIN:
            flags["square"] = (
                f"Square, a black-box attack, fools a further {gain:.1%} of the images after the "
                "attacks with gradients: the gradients mislead. Use more of its queries, and an "
                "adaptive attack for this model."
            )
    return flags


def _count(rows: Any) -> str:
    return f"{int(rows.sum())} of {len(rows)}"
