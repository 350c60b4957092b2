"""Results of an evaluation as objects, and their form in `evaluation.json`."""

import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Self, get_args, get_origin, get_type_hints

LEADERBOARD_EPS = 8 / 255  # of the L-inf leaderboards


class Record:
    """A dataclass that is written to JSON and read again.

    Reading ignores unknown keys and takes the default for missing ones, so that files of other
    versions load. Writing leaves out None where it is the default.
    """

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return the record with the content of a JSON object."""
        kinds = _kinds(cls)
        return cls(
            **{key: _parse(kinds[key], value) for key, value in content.items() if key in kinds}
        )

    def to_json(self) -> dict[str, Any]:
        """Return the content of the JSON object."""
        values = {one.name: (getattr(self, one.name), one.default) for one in fields(self)}  # type: ignore[arg-type]
        return {
            name: _to_json(value)
            for name, (value, default) in values.items()
            if value is not None or default is MISSING
        }


def _kinds(record: type) -> dict[str, Any]:
    return get_type_hints(record)


def _parse(kind: Any, value: Any) -> Any:
    """Return a value of JSON as the type of a field: records, and tuples and dicts of them."""
    if get_origin(kind) is types.UnionType:  # X | None
        return None if value is None else _parse(get_args(kind)[0], value)
    if kind is float and isinstance(value, int):
        return float(value)
    if get_origin(kind) is tuple:
        return tuple(_parse(get_args(kind)[0], item) for item in value)
    if get_origin(kind) is dict:
        return {key: _parse(get_args(kind)[1], item) for key, item in value.items()}
    return kind.from_json(value) if isinstance(kind, type) and issubclass(kind, Record) else value


def _to_json(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    return [_to_json(item) for item in value] if isinstance(value, tuple | list) else value


@dataclass(frozen=True, kw_only=True)
class Accuracy(Record):
    """Share of correctly classified examples.

    Attributes:
      accuracy: the share.
      ci95: its 95 % Wilson interval.
      n: number of examples.
    """

    accuracy: float
    ci95: tuple[float, float]
    n: int


@dataclass(frozen=True, kw_only=True)
class SinglePass(Record):
    """Accuracy of single forward passes of a model with noise: mean and standard deviation."""

    mean: float
    std: float


@dataclass(frozen=True, kw_only=True)
class NoisyAccuracy(Accuracy):
    """Accuracy of the mean softmax over the forward passes of a model.

    Attributes:
      single_pass: accuracy of single forward passes; None for one forward pass.
      majority: accuracy of the majority vote; None for one forward pass.
    """

    single_pass: SinglePass | None = None
    majority: Accuracy | None = None


@dataclass(frozen=True, kw_only=True)
class CleanResult(NoisyAccuracy):
    """Accuracy on the clean images.

    Attributes:
      varying: images whose margin differs between forward passes; None in old records.
      nonfinite_logits: images with NaN or infinite logits.
    """

    varying: int | None = None
    nonfinite_logits: int = 0


@dataclass(frozen=True, kw_only=True)
class AccuracyAtBudget(Accuracy):
    """Accuracy under a black-box attack with this many queries per example."""

    queries: int


@dataclass(frozen=True, kw_only=True)
class QueryCost(Record):
    """What the queries of a black-box attack achieved.

    Attributes:
      success_rate: share of the correctly classified examples that the attack fools; None if there
        are none.
      mean_queries: queries of a success, on average; None without successes.
      median_queries: their median; None without successes.
      over_queries: accuracy at growing query budgets.
    """

    success_rate: float | None
    mean_queries: float | None
    median_queries: float | None
    over_queries: tuple[AccuracyAtBudget, ...]


@dataclass(frozen=True, kw_only=True)
class StageResult(Record):
    """One attack of AutoAttack.

    Attributes:
      name: of the attack.
      broken: examples that it fools first.
      unconfirmed: successes that a second success check did not confirm.
      seconds: duration.
    """

    name: str
    broken: int
    unconfirmed: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RoundedResult(Accuracy):
    """Accuracy on the adversarial images rounded to bytes.

    Attributes:
      lost: examples that rounding makes correct again.
    """

    lost: int


@dataclass(frozen=True, kw_only=True)
class AttackEntry(NoisyAccuracy):
    """Accuracy under one attack at one radius, with the attack's arguments.

    Attributes:
      name: of the attack in the config; the attack at several radii has the same name.
      attack: name of the function in `jaxadv.attacks`.
      norm: "linf", "l2", "l1" or "l0".
      eps: radius in units of the pixel range.
      noise: noise of the model during attack and scoring: "on", "off", "fixed" or "training".
      arguments: all other arguments of the attack.
      queries: most gradients, or forward passes of a black-box attack, per example.
      attacked: number of examples attacked; None in old records.
      unmoved: attacked examples whose image did not change.
      nonfinite_logits: examples with NaN or infinite logits under attack.
      seconds: duration of the attack and its scoring.
      nonfinite_gradients: gradients that were NaN or infinite and counted as zero.
      nonfinite_gradient_images: images with such gradients.
      query_cost: of a black-box attack; else None.
      stages: attacks of AutoAttack, in order; else None.
      flags: AutoAttack's diagnostics, a sentence for each name; else None.
      uint8: accuracy on the exported bytes; None if not exported.
    """

    name: str
    attack: str
    norm: str
    eps: float
    noise: str = "on"
    arguments: dict[str, Any] = field(default_factory=dict)
    queries: int
    attacked: int | None = None
    unmoved: int
    nonfinite_logits: int = 0
    seconds: float
    nonfinite_gradients: int = 0
    nonfinite_gradient_images: int = 0
    query_cost: QueryCost | None = None
    stages: tuple[StageResult, ...] | None = None
    flags: dict[str, str] | None = None
    uint8: RoundedResult | None = None

    @property
    def key(self) -> str:
        """Return the key of the entry in the files: "pgd40/0.03"."""
        return attack_key(self.name, self.eps)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return the entry of an attack; the keys that are no results are its arguments."""
        kinds = {*_kinds(cls), *_kinds(QueryCost)}
        arguments = {key: value for key, value in content.items() if key not in kinds}
        cost = content if "over_queries" in content else None
        return super().from_json({**content, "arguments": arguments, "query_cost": cost})

    def to_json(self) -> dict[str, Any]:
        """Return the entry in one level: arguments, results, query cost."""
        entry = super().to_json()
        del entry["name"]
        first = {key: entry.pop(key) for key in ("attack", "noise", "eps", "norm")}
        arguments, cost = entry.pop("arguments"), entry.pop("query_cost", {})
        return {**first, **arguments, **entry, **cost}


@dataclass(frozen=True, kw_only=True)
class WorstCase(Accuracy):
    """Share of examples that all attacks of a norm, at this radius or below, leave correct.

    Attributes:
      norm: of the attacks.
      eps: largest radius.
      attacks: keys of the entries, such as "pgd40/0.03".
    """

    norm: str
    eps: float
    attacks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CertifiedAccuracy(Accuracy):
    """Share of examples that are certified at an L2 radius."""

    radius: float


@dataclass(frozen=True, kw_only=True)
class CertifiedResult(Record):
    """Certified accuracy by randomised smoothing; see `jaxadv.evaluation.smoothing`.

    Attributes:
      sigma: standard deviation of the noise on the images.
      num_selection: noise samples that select the class.
      num_estimation: noise samples that estimate its probability.
      failure: probability that a certificate is wrong.
      n: number of examples.
      abstained: examples without a certified class.
      radii: certified accuracy over L2 radii.
      seconds: duration.
      rounding_allowance: largest reduction of a radius for float32 rounding; None in old records.
      nonfinite_passes: forward passes with NaN or infinite logits.
      nonfinite_examples: examples with such forward passes.
    """

    sigma: float
    num_selection: int
    num_estimation: int
    failure: float
    n: int
    abstained: int
    radii: tuple[CertifiedAccuracy, ...]
    seconds: float
    rounding_allowance: float | None = None
    nonfinite_passes: int = 0
    nonfinite_examples: int = 0


@dataclass(frozen=True, kw_only=True)
class CheckpointSource(Record):
    """Checkpoint that was evaluated: workdir, "best" or "last", epoch and checksum."""

    workdir: str | None = None
    which: str
    epoch: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SuiteResult(Record):
    """Results of an attack suite on a split.

    Attributes:
      stochastic: whether the model has a random defence.
      num_passes: forward passes per prediction.
      largest_class: share of the most frequent class.
      clean: accuracy on the clean images.
      clean_noise: clean accuracy with the noise "off", "fixed" or as in "training".
      attacks: an entry for each attack and radius, in the order of the suite.
      worst_case: for each norm and radius, over all attacks.
      aggregated_score: sum over radii of the accuracies, by the attack's name.
      warnings: gradient-masking diagnostics, a sentence each.
      certified: of randomised smoothing; None if not requested.
    """

    stochastic: bool = False
    num_passes: int = 1
    largest_class: float | None = None
    clean: CleanResult
    clean_noise: dict[str, NoisyAccuracy] = field(default_factory=dict)
    attacks: tuple[AttackEntry, ...]
    worst_case: tuple[WorstCase, ...]
    aggregated_score: dict[str, float]
    warnings: tuple[str, ...] = ()
    certified: CertifiedResult | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return the results in the parsed content of `evaluation.json`."""
        attacks = [
            {**entry, "name": key.rsplit("/", 1)[0]} for key, entry in content["attacks"].items()
        ]
        worst_case = list(content["worst_case"].values())
        return super().from_json({**content, "attacks": attacks, "worst_case": worst_case})

    def to_json(self) -> dict[str, Any]:
        """Return the content of `evaluation.json`."""
        attacks = {entry.key: entry.to_json() for entry in self.attacks}
        worst_case = {attack_key(one.norm, one.eps): one.to_json() for one in self.worst_case}
        return super().to_json() | {"attacks": attacks, "worst_case": worst_case}

    def by_name(self) -> dict[str, list[AttackEntry]]:
        """Return the entries of each attack by ascending radius."""
        groups: dict[str, list[AttackEntry]] = {}
        for entry in self.attacks:
            groups.setdefault(entry.name, []).append(entry)
        return {name: sorted(group, key=lambda one: one.eps) for name, group in groups.items()}

    def worst_case_by_norm(self) -> dict[str, list[WorstCase]]:
        """Return the worst cases of each norm by ascending radius."""
        groups: dict[str, list[WorstCase]] = {}
        for one in self.worst_case:
            groups.setdefault(one.norm, []).append(one)
        return {norm: sorted(group, key=lambda one: one.eps) for norm, group in groups.items()}


@dataclass(frozen=True, kw_only=True)
class Evaluation(SuiteResult):
    """Evaluation of a classifier: the content of `evaluation.json`.

    Attributes:
      checkpoint: that was evaluated; None for a model from outside of this project.
      model: its name.
      num_parameters: of the model; None if unknown.
      dataset: name of the data set; may be empty.
      n: number of examples.
      provenance: command, commit, device, date and duration.
      split: "test" or "held_out" of the data set, or "given" for images of the caller.
    """

    checkpoint: CheckpointSource | None = None
    model: str
    num_parameters: int | None = None
    dataset: str
    n: int
    split: str = "test"
    provenance: dict[str, Any]

    @property
    def source(self) -> CheckpointSource:
        """Return the checkpoint; raise a ValueError for a model from outside of this project."""
        if self.checkpoint is None:
            raise ValueError("the evaluation is not that of a checkpoint")
        return self.checkpoint

    def headline(self, eps: float = LEADERBOARD_EPS) -> WorstCase | None:
        """Return the worst case at the radius nearest to `eps`; None without attacks."""
        return min(self.worst_case, key=lambda one: abs(one.eps - eps), default=None)

    def to_json(self) -> dict[str, Any]:
        """Return the content of `evaluation.json`, beginning with what was evaluated."""
        content = super().to_json()
        names = ("checkpoint", "model", "num_parameters", "dataset", "split", "n")
        return {**{name: content.pop(name) for name in names if name in content}, **content}


def attack_key(name: str, eps: float) -> str:
    """Return the name of an attack at a radius in the files: "pgd40/0.03"."""
    return f"{name}/{eps:.4g}"
