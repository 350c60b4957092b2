"""Attack suites: the attacks of an evaluation, with their arguments.

A suite is a mapping from names to attacks. Each attack is a mapping with the name of a function in
`jaxadv.attacks` under "attack", the radius or radii under "eps", and the function's arguments.
`SUITES` has the suites that `jaxadv.evaluate` knows by name. The suites of the command line are in
`configs/attack_suites.py`.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from ml_collections import ConfigDict

from jaxadv.attacks import ATTACKS, AttackSpec
from jaxadv.attacks.checks import NUMBERS, RADIUS
from jaxadv.attacks.threat import GREY_IMAGE_EPS
from jaxadv.core.results import attack_key
from jaxadv.core.types import UserError
from jaxadv.models.classifier import NOISES

Suite = Mapping[str, Mapping[str, Any]]

_CONFIG_KEY = "config.evaluation.attacks"


@dataclass(frozen=True)
class ConfiguredAttack:
    """One attack of a suite at one radius.

    Attributes:
      name: of the attack in the suite; it is the same at all radii.
      attack: name of the function in `jaxadv.attacks`.
      eps: radius in units of the pixel range.
      noise: noise of the model during attack and scoring, one of `NOISES`.
      arguments: the other arguments of the function, complete.
    """

    name: str
    attack: str
    eps: float
    noise: str = "on"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Return the name of the attack at this radius in the files: "pgd40/0.03"."""
        return attack_key(self.name, self.eps)

    @property
    def spec(self) -> AttackSpec:
        """Return the specification of the attack's function."""
        return ATTACKS[self.attack]

    @property
    def max_queries(self) -> int:
        """Return the most gradients, or forward passes of a black-box attack, per example."""
        return self.spec.max_queries(self.arguments)


def expand_suite(attacks: Any, prefix: str = _CONFIG_KEY) -> list[ConfiguredAttack]:
    """Return every attack of a suite at each of its radii.

    Args:
      attacks: a suite, as a mapping or a `ConfigDict`.
      prefix: what the messages of errors call the suite.

    Raises:
      UserError: an attack is unknown, lacks an argument, has an unknown one or an invalid radius,
        or has two radii with the same key.
    """
    expanded: dict[str, ConfiguredAttack] = {}
    for name, attack in attacks.items():
        attack = attack.to_dict() if isinstance(attack, ConfigDict) else dict(attack)
        arguments = _complete_arguments(f"{prefix}.{name}", attack)
        function, noise = attack["attack"], attack.get("noise", "on")
        radii: dict[str, float] = {}
        for eps in check_radii(f"{prefix}.{name}.eps", attack["eps"], arguments["norm"]):
            configured = ConfiguredAttack(name, function, float(eps), noise, arguments)
            if configured.key in radii:
                raise UserError(
                    f"{prefix}.{name}.eps has {radii[configured.key]!r} and {eps!r}, which are "
                    f"both {configured.key} in the results: keep one of them"
                )
            radii[configured.key], expanded[configured.key] = eps, configured
    return list(expanded.values())


def _complete_arguments(key: str, attack: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of an attack except its radius, with defaults filled in."""
    for name in ("attack", "eps"):
        if name not in attack:
            raise UserError(f"{key} lacks {name}")
    for name, options in (("attack", ATTACKS), ("noise", NOISES)):
        if name in attack and attack[name] not in options:
            raise UserError(
                f"{key}.{name} is {attack[name]!r}: it must be one of {', '.join(options)}"
            )
    defaults = ATTACKS[attack["attack"]].defaults
    given = {name: value for name, value in attack.items() if name not in ("attack", "noise")}
    for name in given:
        if name not in defaults:
            near = get_close_matches(name, defaults, n=1, cutoff=0.0)[0]
            raise UserError(
                f"{key}.{name} is not an argument of {attack['attack']}: did you mean {near}?"
            )
    arguments = {**defaults, **given}
    missing = [name for name, value in arguments.items() if value is inspect.Parameter.empty]
    if missing:
        raise UserError(f"{key} lacks {', '.join(missing)}")
    del arguments["eps"]
    return arguments


def check_radii(key: str, eps: Any, norm: str) -> Sequence[int | float]:
    """Return the radii of an attack.

    Raises:
      UserError: they are no tuple of numbers, one is out of range, or one is larger than the range
        of pixel values.
    """
    if not isinstance(eps, tuple | list) or not eps:
        raise UserError(f"{key} is {eps!r}: it must be a tuple of radii, such as (8 / 255,)")
    for radius in eps:
        is_number = isinstance(radius, int | float) and not isinstance(radius, bool)
        if not is_number:
            raise UserError(f"{key} is {radius!r}: it must be a number, such as 8 / 255")
        if not RADIUS.is_valid(radius):
            raise UserError(f"{key} is {radius!r}: it must be {RADIUS.words}")
        if norm == "linf" and radius > 1:
            raise UserError(
                f"{key} is {radius!r}, more than the range of pixel values: write {radius:g}/255 "
                "if that is meant"
            )
    return eps


def check_suite(
    attacks: Iterable[ConfiguredAttack], num_classes: int | None, prefix: str = _CONFIG_KEY
) -> None:
    """Check the arguments of all attacks of a suite.

    Args:
      attacks: the suite.
      num_classes: of the model; None: unknown, and what depends on it is not checked.
      prefix: what the messages of errors call the suite.

    Raises:
      UserError: names the invalid argument, after the prefix.
    """
    for attack in attacks:
        arguments = {"eps": attack.eps, **attack.arguments}
        check_attack(f"{prefix}.{attack.name}", attack.attack, arguments, num_classes)


def check_attack(
    key: str, attack: str, arguments: Mapping[str, Any], num_classes: int | None
) -> None:
    """Check the arguments of an attack; see `check_suite`.

    Raises:
      UserError: names the invalid argument, after `key`.
    """
    for name, value in arguments.items():
        if isinstance(value, tuple | list) and name in NUMBERS:
            raise UserError(f"{key}.{name} is {value!r}: it must be a number")
    try:
        ATTACKS[attack].check(dict(arguments), num_classes)
    except ValueError as error:
        raise UserError(f"{key}.{error}") from None


def standard(eps: float, norm: str, stochastic: bool) -> Suite:
    """Return white-box attacks with the checks of the gradient-masking diagnostics.

    FGSM, PGD-40 and PGD-20 with 5 restarts on the margin loss take steps of eps/4. Random search
    and, in L-inf, PGD at eps 0.5, where every image can become grey, detect gradient masking. For a
    stochastic model, PGD averages its gradients over 20 noise samples.
    """
    ball: dict[str, Any] = {"eps": (eps,), "norm": norm}
    gradients = {"num_noise_samples": 20} if stochastic else {}
    pgd = {"attack": "pgd", **ball, "step_size": eps / 4, **gradients}
    suite: dict[str, Mapping[str, Any]] = {
        "fgsm": {"attack": "fgsm", **ball, **gradients},
        "pgd40": {**pgd, "num_steps": 40},
        "pgd20_restarts": {**pgd, "num_steps": 20, "loss": "margin", "num_restarts": 5},
        "random_search": {
            "attack": "random_search", **ball, "num_queries": 100, **_checks(stochastic),
        },
    }  # fmt: skip
    if norm == "linf" and eps < GREY_IMAGE_EPS:
        grey = {"eps": (GREY_IMAGE_EPS,), "step_size": 0.05, "num_steps": 20}
        suite["pgd_unbounded"] = {**pgd, **grey}
    return suite


def autoattack(eps: float, norm: str, stochastic: bool) -> Suite:
    """Return AutoAttack and PGD-40; for a stochastic model AutoAttack's version "rand"."""
    version = "rand" if stochastic else "standard"
    return {
        "pgd40": standard(eps, norm, stochastic)["pgd40"],
        "autoattack": {
            "attack": "autoattack", "eps": (eps,), "norm": norm, "version": version,
        },
    }  # fmt: skip


def black_box(eps: float, norm: str, stochastic: bool) -> Suite:
    """Return the attacks that need outputs alone: Square, NES and random search.

    Square and NES have a budget of 5000 queries per image, random search 1000.
    """
    ball = {"eps": (eps,), "norm": norm, "num_queries": 5000, **_checks(stochastic)}
    return {
        "square": {"attack": "square", **ball},
        "nes": {"attack": "nes", **ball, "step_size": eps / 5},
        "random_search": {"attack": "random_search", **ball, "num_queries": 1000},
    }


def _checks(stochastic: bool) -> dict[str, int]:
    """Return the noise samples of a success check: one noisy success may be chance."""
    return {"num_noise_samples": 10 if stochastic else 1}


# Each is `(eps, norm, stochastic) -> suite`.
SUITES: dict[str, Callable[[float, str, bool], Suite]] = {
    "standard": standard,
    "autoattack": autoattack,
    "black_box": black_box,
}


def named_suite(
    name: str, radii: Sequence[int | float], norm: str, stochastic: bool
) -> list[ConfiguredAttack]:
    """Return the attacks of a suite of `SUITES` at each radius.

    Raises:
      UserError: the name is unknown, or two radii have the same key in the results.
    """
    if name not in SUITES:
        raise UserError(f"attacks is {name!r}: use one of {', '.join(SUITES)}, or a mapping")
    if len({attack_key(name, eps) for eps in radii}) < len(radii):
        raise UserError(f"eps is {tuple(radii)}: two radii have the same first four digits")
    suites = [expand_suite(SUITES[name](eps, norm, stochastic), name) for eps in radii]
    # The attack at a fixed radius is in the suites of all radii.
    return list({attack.key: attack for suite in suites for attack in suite}.values())
