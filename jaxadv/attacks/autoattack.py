"""AutoAttack: an ensemble of four attacks of different kinds (Croce & Hein, 2020)."""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, PyTree
from tqdm import tqdm

from jaxadv.attacks.apgd import APGD
from jaxadv.attacks.autoattack_flags import Probed, probe, raise_flags
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
from jaxadv.attacks.checks import Arguments, check_arguments, check_classes, check_inputs
from jaxadv.attacks.ensemble import CLEAN, AutoAttackResult, Stage, run_ensemble
from jaxadv.attacks.fab import FAB
from jaxadv.attacks.hop_skip_jump import HOP_SKIP_JUMP
from jaxadv.attacks.nes import NES
from jaxadv.attacks.nes_label_only import NES_LABEL_ONLY
from jaxadv.attacks.random_search import RANDOM_SEARCH
from jaxadv.attacks.rays import RAYS
from jaxadv.attacks.sparse_rs import SPARSE_RS
from jaxadv.attacks.spec import AttackSpec
from jaxadv.attacks.square import SQUARE
from jaxadv.attacks.threat import NORMS, THREATS
from jaxadv.core.devices import platform, whole_batch
from jaxadv.core.images import is_concrete
from jaxadv.core.progress import progress_bar
from jaxadv.core.types import Images, Labels, LogitsFn, PRNGKey

_LEAST_SIDE = 3  # of the squares of Square in L2 and L1
_NUM_TARGETS = 9
_NUM_TARGETS_L1 = 5  # of APGD
_NUM_NOISE_SAMPLES = 20  # of the version "rand"


def _stages(norm: str, num_targets: int) -> dict[str, dict[str, Stage]]:
    """Return the attacks of each version, in their order."""
    apgd_ce = Stage(APGD, {"loss": "cross_entropy"})
    apgd_t = apgd_all_targets = Stage(APGD, {"loss": "dlr", "num_targets": num_targets})
    if norm == "l1":
        apgd_ce = Stage(APGD, {"loss": "cross_entropy", "num_restarts": 5})
        apgd_t = Stage(APGD, {"loss": "dlr", "num_targets": min(num_targets, _NUM_TARGETS_L1)})
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
            "apgd_t": apgd_all_targets,
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
    attacks: Mapping[str, Mapping[str, Any]] | None = None,
    individual: bool = False,
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
    | "custom" | `attacks` |

    APGD and FAB take 100 steps. With fewer classes all other classes are targets. In L1, APGD-CE of
    the version "standard" has 5 restarts, and APGD-T 5 target classes (Croce & Hein, 2021). A
    success check averages over as many noise samples as the attacks of the version do.

    The result of an example depends on the key and its number alone, not on its batch, provided
    that its logits do not depend on the batch.

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
      norm: "linf", "l2" or "l1"; in the version "custom" also "l0".
      version: "standard", "plus", "rand" or "custom".
      attacks: attacks of the version "custom" by name, in their order. Each is a mapping with
        "attack", the name of an attack that resumes, and with arguments of that function, such as
        `num_steps`: "apgd", "fab", "square", "nes", "nes_label_only", "hop_skip_jump", "rays",
        "sparse_rs" or "random_search".
      individual: attack all examples with each attack, also those that earlier attacks fooled.
        `result.individual_accuracies()` has the robust accuracy under each attack alone.
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

    >>> import jax.numpy as jnp
    >>> logits_fn = lambda key, x: x.sum((1, 2)) @ jnp.array([[1.0, -1.0, 0.0]])
    >>> x, y = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    >>> result = autoattack(jax.random.key(0), logits_fn, x, y, eps=0.1, batch_size=16)
    >>> result.broken_by, result.attacks[1:]
    (array([-1]), ('apgd_ce', 'apgd_t', 'fab_t', 'square'))
    """
    arguments = {
        "eps": eps, "norm": norm, "version": version, "attacks": attacks, "individual": individual,
        "batch_size": batch_size,
    }  # fmt: skip
    check_autoattack(arguments)
    inputs = check_inputs(key, images, labels, None, example_ids)
    if not all(map(is_concrete, jax.tree.leaves(inputs))):
        raise ValueError("autoattack cannot run inside of jit or grad: call it outside")
    if platform() != "cpu":  # where searches take whole batches
        batch_size = whole_batch(batch_size, len(labels))
    model = trace_in_batches(logits_fn, inputs.key, inputs.images.shape[1:], inputs.images.dtype)
    examples = Examples(*map(np.asarray, (inputs.images, inputs.labels, inputs.example_ids)))
    num_classes = count_classes(model, examples, batch_size)
    check_classes("labels", inputs.labels, num_classes)
    check_autoattack(arguments, num_classes)
    total = len(examples.labels) * max_queries(arguments, num_classes)
    with progress_bar(total=total, unit="query", unit_scale=True, disable=not progress) as bar:
        return run_version(
            inputs.key,
            model,
            examples,
            num_classes,
            eps=eps,
            norm=norm,
            version=version,
            attacks=attacks,
            individual=individual,
            batch_size=batch_size,
            bar=bar,
            cache=ledger,
        )


def check_autoattack(arguments: Arguments, num_classes: int | None = None) -> None:
    """Raise a ValueError that names the first invalid argument of `autoattack`."""
    version, attacks = arguments.get("version", "standard"), arguments.get("attacks")
    norms = tuple(THREATS) if version == "custom" else NORMS
    check_arguments(arguments, norms=norms, arrays=())
    if version != "custom":
        if attacks:
            raise ValueError(
                f'attacks are given, but version is "{version}": set version to "custom"'
            )
        return
    if not isinstance(attacks, Mapping) or not attacks:
        raise ValueError(
            'attacks is empty: the version "custom" needs attacks by name, such as '
            '{"square": {"attack": "square", "num_queries": 1000}}'
        )
    if "clean" in attacks:
        raise ValueError('attacks has the name "clean", which is that of the accuracy before them')
    for name, attack in attacks.items():
        _check_member(f"attacks.{name}", attack, arguments, num_classes)


def _check_member(key: str, attack: Any, arguments: Arguments, num_classes: int | None) -> None:
    if not isinstance(attack, Mapping) or attack.get("attack") not in _MEMBERS:
        raise ValueError(f"{key}.attack must be one of {', '.join(_MEMBERS)}")
    spec = _MEMBERS[attack["attack"]]
    given = {name: value for name, value in attack.items() if name != "attack"}
    allowed = {name: value for name, value in spec.defaults.items() if name not in ("eps", "norm")}
    for name in given:
        if name not in allowed:
            raise ValueError(
                f"{key}.{name} is no argument here: use one of {', '.join(sorted(allowed))}"
            )
    for name, default in allowed.items():
        if default is inspect.Parameter.empty and name not in given:
            raise ValueError(f"{key} lacks {name}")
    ball = {name: arguments[name] for name in ("eps", "norm") if name in arguments}
    try:
        spec.check({**allowed, **given, **ball}, num_classes)
    except ValueError as error:
        raise ValueError(f"{key}.{error}") from None


def run_version(
    key: PRNGKey,
    model: Model,
    examples: Examples,
    num_classes: int,
    *,
    eps: float,
    norm: str,
    version: str = "standard",
    attacks: Mapping[str, Mapping[str, Any]] | None = None,
    individual: bool = False,
    attack_all: bool = False,
    batch_size: int,
    bar: tqdm | None = None,
    cache: ResumeCache | None = None,
    prefix: str = "",
) -> AutoAttackResult:
    """Run the attacks of a version, and raise its flags; see `autoattack` and `run_ensemble`."""
    attack_key, probe_key = jax.random.split(key)
    stages = _version_stages(version, norm, num_classes, attacks)
    num_noise_samples = max(
        (stage.arguments.get("num_noise_samples", 1) for stage in stages.values()), default=1
    )
    result = run_ensemble(
        attack_key,
        model,
        examples,
        stages,
        eps=eps,
        norm=norm,
        num_noise_samples=num_noise_samples,
        attack_all=attack_all,
        individual=individual,
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
        num_noise_samples > 1,
        result.accuracies(),
        np.isinf(result.margins),
        result.nonfinite,
        _square_after_gradients(stages),
        norm != "linf"
        and min(examples.images.shape[1:3]) < _LEAST_SIDE
        and any(stage.spec is SQUARE for stage in stages.values()),
    )
    return result._replace(flags=flags)


def _square_after_gradients(stages: Mapping[str, Stage]) -> str | None:
    """Return the name of the first Square attack, if an attack with gradients precedes it."""
    names = list(stages)
    for number, name in enumerate(names):
        if stages[name].spec is SQUARE:
            before = names[:number]
            return name if any(stages[one].spec.uses_gradients for one in before) else None
    return None


def _version_stages(
    version: str,
    norm: str,
    num_classes: int,
    attacks: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Stage]:
    if version == "custom":
        stages = {name: _member_stage(attack) for name, attack in (attacks or {}).items()}
    else:
        stages = _stages(norm, min(_NUM_TARGETS, num_classes - 1))[version]
    return {
        name: stage._replace(arguments={"norm": norm, **stage.arguments})
        for name, stage in stages.items()
    }


def _member_stage(attack: Mapping[str, Any]) -> Stage:
    spec = _MEMBERS[attack["attack"]]
    return Stage(spec, {name: value for name, value in attack.items() if name != "attack"})


def max_queries(arguments: Arguments, num_classes: int = _NUM_TARGETS + 1) -> int:
    """Return the queries on an example that is robust under all attacks."""
    version, norm = arguments.get("version", "standard"), arguments.get("norm", "linf")
    stages = _version_stages(version, norm, num_classes, arguments.get("attacks"))
    return sum(stage.max_queries for stage in stages.values())


# The attacks that may belong to the version "custom": those that resume.
_MEMBERS: dict[str, AttackSpec] = {
    "apgd": APGD,
    "fab": FAB,
    "square": SQUARE,
    "sparse_rs": SPARSE_RS,
    "nes": NES,
    "nes_label_only": NES_LABEL_ONLY,
    "hop_skip_jump": HOP_SKIP_JUMP,
    "rays": RAYS,
    "random_search": RANDOM_SEARCH,
}
AUTOATTACK = AttackSpec(
    attack_fn=autoattack,
    run=autoattack,
    traced=(),
    uses_gradients=True,
    max_queries=max_queries,
    returns_clean=True,
    is_ensemble=True,
    check=check_autoattack,
)


@cache
def _probe_step(make_logits_fn: Callable, on_host: bool) -> Callable:
    def step(
        context: PyTree, key: PRNGKey, images: Images, labels: Labels, ids: Int[Array, "share"]
    ) -> Probed:
        return probe(key, make_logits_fn(context, ids), images, labels)

    return map_batches(step, on_host, num_replicated=2, num_batches=3)
