"""Signs that what survives an attack is not the model's strength: gradients hide, or it guesses."""

import inspect
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

from jaxadv.attacks import ATTACKS, GRADIENT_FREE

Attacks = dict[str, dict[str, Any]]

ANY_IMAGE = 0.5  # an L-inf ball of this radius around any image holds the grey one
_NEAR = 4
_HAND_IN_CLEAN = ("fab", "autoattack")  # where they find nothing
_COUNTS = {
    "num_noise_samples": "noise samples",
    "num_steps": "steps",
    "num_restarts": "restarts",
    "num_queries": "queries",
}


def signs_of_masking(evaluation: dict[str, Any]) -> list[str]:
    """Returns a sentence for each sign: what was compared, and what to do.

    The checks are those of Carlini et al. 2019 ("On evaluating adversarial robustness",
    section 5) and Athalye et al. 2018 ("Obfuscated gradients", section 3.1). Accuracies are
    compared beyond chance: their 95 % intervals do not overlap.

    Args:
      evaluation: with the keys `stochastic`, `largest_class`, `clean` and `attacks` of
        evaluation.json.
    """
    attacks = evaluation["attacks"]
    checks: list[Callable[[Attacks], list[str]]] = [
        _single_step_wins,
        _gradient_free_wins,
        _larger_eps_helps,
        partial(_survives_any_perturbation, largest_class=evaluation["largest_class"]),
        _more_keeps_helping,
        _nothing_moves,
        _nonfinite_gradients,
    ]
    signs = (
        _nonfinite_logits(evaluation)
        + _guesses(evaluation)
        + [sign for check in checks for sign in check(attacks)]
    )
    signs += _noise_ends_the_search(evaluation) + _noise_not_averaged(evaluation)
    return signs + _undeclared_noise(evaluation) + _flags(attacks)


def _nonfinite_logits(evaluation: dict[str, Any]) -> list[str]:
    counts = {  # records of before have no such key
        name: entry.get("nonfinite_logits", 0)
        for name, entry in {"clean": evaluation["clean"], **evaluation["attacks"]}.items()
    }
    worst = max(counts, key=lambda name: counts[name])
    if not counts[worst]:
        return []
    attacked = f", and under {worst} of {counts[worst]}" if counts[worst] > counts["clean"] else ""
    return [
        f"The logits of {counts['clean']} of {evaluation['clean']['n']} clean images are NaN or "
        f"infinite{attacked}. They count as misclassified. Find where the model overflows."
    ]


def _nonfinite_gradients(attacks: Attacks) -> list[str]:
    return [
        f"{name} met {attack['nonfinite_gradients']} gradients that are NaN or infinite, of "
        f"{attack['nonfinite_gradient_images']} images: they count as zero, so that it is weaker "
        "than it seems. Find the operation (a root or a division at 0), and make it smooth."
        for name, attack in attacks.items()
        if attack.get("nonfinite_gradients") and attack["attack"] != "autoattack"  # has its flag
    ]


def certificate_warnings(certified: dict[str, Any]) -> list[str]:
    """Returns a sentence where passes of a certification had logits that are not finite.

    Args:
      certified: the entry of evaluation.json.
    """
    if not certified["nonfinite_passes"]:
        return []
    return [
        f"certification: {certified['nonfinite_passes']} forward passes, on "
        f"{certified['nonfinite_examples']} of {certified['n']} images, have NaN or infinite "
        "logits. They count for no class and lower the certified radii. Find where the model "
        "overflows."
    ]


def has_learned(evaluation: dict[str, Any]) -> bool:
    """Returns whether a model is better on clean images than a guess is, beyond chance.

    Args:
      evaluation: with the keys `largest_class` and `clean` of evaluation.json.
    """
    return bool(evaluation["clean"]["ci95"][0] > evaluation["largest_class"])


def _guesses(evaluation: dict[str, Any]) -> list[str]:
    if has_learned(evaluation):
        return []
    return [
        f"The clean accuracy, {evaluation['clean']['accuracy']:.1%}, cannot be told from that of "
        f"guessing the largest class, {evaluation['largest_class']:.1%}: what survives an attack "
        "says nothing of robustness. See whether the training loss fell, or take more images."
    ]


def _single_step_wins(attacks: Attacks) -> list[str]:
    return [
        f"{name} breaks more images than {other}: one gradient should not beat "
        f"{iterated['queries']}. Try other step sizes, losses and random starts."
        for name, single in attacks.items()
        for other, iterated in attacks.items()
        if _same_ball(single, iterated)
        and _follows_gradient(single)
        and _follows_gradient(iterated)
        and single["queries"] == 1 < iterated["queries"]
        and _below(single, iterated)
    ]


def _gradient_free_wins(attacks: Attacks) -> list[str]:
    signs = []
    for name, free in attacks.items():
        if _follows_gradient(free):
            continue
        rivals = {
            other: attack
            for other, attack in attacks.items()
            if _same_ball(free, attack) and _follows_gradient(attack)
        }
        if rivals:
            best = min(rivals, key=lambda other: rivals[other]["accuracy"])
            if _below(free, rivals[best]):
                signs.append(
                    f"{name}, which sees no gradient, breaks more images than {best}, the best "
                    "that does in the same ball: the gradients mislead. Attack a smooth stand-in "
                    "for the part that hides them (BPDA), and believe the lower figure."
                )
    return signs


def _larger_eps_helps(attacks: Attacks) -> list[str]:
    return [
        f"{other} breaks fewer images than {name}: a larger ball holds the smaller. "
        "Try a step size in proportion to eps, and more steps."
        for name, small in attacks.items()
        for other, large in attacks.items()
        if name.rsplit("/", 1)[0] == other.rsplit("/", 1)[0]
        and small["eps"] < large["eps"]
        and _below(small, large)
    ]


def _survives_any_perturbation(attacks: Attacks, largest_class: float) -> list[str]:
    return [
        f"{name} leaves {attack['accuracy']:.1%}, though at this radius any image can be made "
        f"grey: of a working attack at most the largest class survives, {largest_class:.1%}. Try "
        "larger steps, more of them, and the margin loss."
        for name, attack in attacks.items()
        if attack["norm"] == "linf"
        and attack["eps"] >= ANY_IMAGE
        and _follows_gradient(attack)
        and attack["ci95"][0] > largest_class
    ]


def _more_keeps_helping(attacks: Attacks) -> list[str]:
    """Compares the largest count with the one before it, among attacks that are else the same.

    Counts far apart tell that more helps, but not that the larger one is still too small.
    """
    signs = []
    for count, words in _COUNTS.items():
        groups: dict[tuple, list[str]] = {}
        for name, attack in attacks.items():
            if attack.get(count) is not None:
                groups.setdefault(_settings(attack, besides=count), []).append(name)
        for names in groups.values():
            names.sort(key=lambda name: attacks[name][count])
            for fewer, more in list(pairwise(names))[-1:]:
                ratio = attacks[more][count] / max(attacks[fewer][count], 1)
                if 1 < ratio <= _NEAR and _below(attacks[more], attacks[fewer]):
                    signs.append(
                        f"{more} breaks more images than {fewer}, with {attacks[more][count]} "
                        f"{words} in place of {attacks[fewer][count]}: the attack has not "
                        f"converged. Take more {words} until the accuracy stays."
                    )
    return signs


def _nothing_moves(attacks: Attacks) -> list[str]:
    return [
        f"{name} left {attack['unmoved']} of {attack['n']} images as they were: their gradient is "
        "zero. Try the margin loss, or a random start."
        for name, attack in attacks.items()
        if attack["eps"] > 0
        and attack["unmoved"] > 0
        and _follows_gradient(attack)
        and attack["attack"] not in _HAND_IN_CLEAN
    ] + [
        f"{name} moved none of the {attack['attacked']} images it was given: its budget holds no "
        "step, or all its queries are answered alike. Try more queries, and another loss."
        for name, attack in attacks.items()
        if attack["eps"] > 0
        and not _follows_gradient(attack)
        and attack["unmoved"] == attack.get("attacked", 0) > 0
    ]


def _noise_ends_the_search(evaluation: dict[str, Any]) -> list[str]:
    return [
        f"{name} ends with the first noisy pass that sees a success, which the next one may not "
        "see again: it is weaker than it seems. Set num_noise_samples, from 10 on."
        for name, attack in evaluation["attacks"].items()
        if evaluation["stochastic"]
        and attack["noise"] == "on"
        and not _follows_gradient(attack)
        and attack.get("early_stop", True)
        and attack["num_noise_samples"] == 1
    ]


def _noise_not_averaged(evaluation: dict[str, Any]) -> list[str]:
    gradient = [
        attack
        for attack in evaluation["attacks"].values()
        if attack["noise"] == "on" and _follows_gradient(attack)
    ]
    averaged = any(
        attack.get("num_noise_samples", 1) > 1 or attack.get("version") == "rand"
        for attack in gradient
    )
    if not evaluation["stochastic"] or not gradient or averaged:
        return []
    return [
        "No attack averaged its gradients over the model's noise: each saw one draw in each step. "
        "Add attacks with num_noise_samples from 5 on until the accuracy stays."
    ]


def _undeclared_noise(evaluation: dict[str, Any]) -> list[str]:
    varying = evaluation["clean"]["varying"]
    if evaluation["stochastic"] or not varying:
        return []
    return [
        f"Two passes over the clean images differ on {varying} of {evaluation['clean']['n']}, "
        "though the model names no random defence. Declare it, so that it is attacked and scored "
        "over many passes."
    ]


def _flags(attacks: Attacks) -> list[str]:
    """Returns what AutoAttack itself says of a model that it is not made for."""
    return [
        f"{name}: {sentence}"
        for name, attack in attacks.items()
        for sentence in attack.get("flags", {}).values()
    ]


def _same_ball(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[key] == other[key] for key in ("norm", "eps", "noise"))


def _follows_gradient(attack: dict[str, Any]) -> bool:
    return attack["attack"] not in GRADIENT_FREE


def _below(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one["ci95"][1] < other["ci95"][0]


def _settings(attack: dict[str, Any], besides: str) -> tuple:
    """Returns the arguments of an attack, without one of them and without what was measured."""
    arguments = inspect.signature(ATTACKS[attack["attack"]]).parameters
    names = ("attack", "noise", *arguments)
    return tuple(attack.get(name) for name in names if name != besides)
