"""Gradient-masking diagnostics: does robustness come from the model, or from a weak attack?

The checks are those of Carlini et al. (2019), "On evaluating adversarial robustness", section 5,
and Athalye et al. (2018), "Obfuscated gradients", section 3.1.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from jaxadv.attacks import ATTACKS
from jaxadv.attacks.threat import GREY_IMAGE_EPS
from jaxadv.core.results import AttackEntry, CertifiedResult, SuiteResult

Attacks = Sequence[AttackEntry]

_NEAR = 4  # largest ratio of two counts that are compared
_COUNTS = {
    "num_noise_samples": "noise samples",
    "num_steps": "steps",
    "num_restarts": "restarts",
    "num_queries": "queries",
}


def gradient_masking_warnings(results: SuiteResult) -> list[str]:
    """Return a warning for each check that fails: what was compared, and what to do.

    Accuracies differ when their 95 % intervals do not overlap.
    """
    attacks = results.attacks
    return [
        *_nonfinite_logits(results),
        *_not_better_than_guessing(results),
        *_single_step_beats_iterated(attacks),
        *_black_box_beats_gradients(attacks),
        *_larger_eps_is_weaker(attacks),
        *_survives_unbounded_perturbation(results),
        *_not_converged(attacks),
        *_images_unmoved(attacks),
        *_nonfinite_gradients(attacks),
        *_search_stops_by_chance(results),
        *_noise_not_averaged(results),
        *_undeclared_noise(results),
        *_autoattack_flags(attacks),
    ]


def certificate_warnings(certified: CertifiedResult) -> list[str]:
    """Return a warning if forward passes of a certification had NaN or infinite logits."""
    if not certified.nonfinite_passes:
        return []
    return [
        f"certification: {certified.nonfinite_passes} forward passes, on "
        f"{certified.nonfinite_examples} of {certified.n} images, have NaN or infinite logits. "
        "They count for no class and lower the certified radii. Find where the model overflows."
    ]


def is_better_than_guessing(results: SuiteResult) -> bool:
    """Return whether clean accuracy is significantly above that of the most frequent class."""
    return results.clean.ci95[0] > (results.largest_class or 0.0)


def _nonfinite_logits(results: SuiteResult) -> list[str]:
    clean = results.clean.nonfinite_logits
    counts = {"clean": clean, **{one.key: one.nonfinite_logits for one in results.attacks}}
    worst = max(counts, key=lambda name: counts[name])
    if not counts[worst]:
        return []
    attacked = f", and of {counts[worst]} images under {worst}" if counts[worst] > clean else ""
    return [
        f"The logits of {clean} of {results.clean.n} clean images are NaN or infinite{attacked}. "
        "They count as misclassified. Find where the model overflows."
    ]


def _not_better_than_guessing(results: SuiteResult) -> list[str]:
    if is_better_than_guessing(results):
        return []
    return [
        f"The clean accuracy, {results.clean.accuracy:.1%}, is not significantly above that of "
        f"guessing the most frequent class, {results.largest_class or 0:.1%}. Robust accuracies of "
        "such a model mean nothing. Check that the training loss fell, or evaluate more images."
    ]


def _single_step_beats_iterated(attacks: Attacks) -> list[str]:
    return [
        f"{single.key} fools more images than {iterated.key}: one gradient should not beat "
        f"{iterated.queries}. Try other step sizes, losses and random starts."
        for single in attacks
        for iterated in attacks
        if _same_threat(single, iterated)
        and _uses_gradients(single)
        and _uses_gradients(iterated)
        and single.queries == 1 < iterated.queries
        and _significantly_lower(single, iterated)
    ]


def _black_box_beats_gradients(attacks: Attacks) -> list[str]:
    warnings = []
    for black_box in attacks:
        if _uses_gradients(black_box):
            continue
        rivals = [one for one in attacks if _same_threat(black_box, one) and _uses_gradients(one)]
        best = min(rivals, key=lambda one: one.accuracy, default=None)
        if best and _significantly_lower(black_box, best):
            warnings.append(
                f"{black_box.key}, a black-box attack, fools more images than {best.key}, the best "
                "attack with gradients in the same ball: the gradients mislead. Attack a smooth "
                "approximation of the operation that hides them (`jaxadv.attacks.bpda`), and trust "
                "the lower accuracy."
            )
    return warnings


def _larger_eps_is_weaker(attacks: Attacks) -> list[str]:
    return [
        f"{large.key} fools fewer images than {small.key}, although its ball is larger. Try a step "
        "size in proportion to eps, and more steps."
        for small in attacks
        for large in attacks
        if small.name == large.name and small.eps < large.eps and _significantly_lower(small, large)
    ]


def _survives_unbounded_perturbation(results: SuiteResult) -> list[str]:
    largest_class = results.largest_class or 0.0
    return [
        f"{one.key} leaves an accuracy of {one.accuracy:.1%}, although every image can become grey "
        f"at this radius, where a working attack leaves at most {largest_class:.1%}, the most "
        "frequent class. Try larger steps, more steps, and the margin loss."
        for one in results.attacks
        if one.norm == "linf"
        and one.eps >= GREY_IMAGE_EPS
        and _uses_gradients(one)
        and one.ci95[0] > largest_class
    ]


def _not_converged(attacks: Attacks) -> list[str]:
    """Compare attacks that differ in one count alone: the largest count and the one before it.

    Counts far apart show that more helps, but not that the larger one is still too small.
    """
    warnings = []
    for count, words in _COUNTS.items():
        groups: dict[tuple, list[AttackEntry]] = {}
        for one in attacks:
            if one.arguments.get(count) is not None:
                groups.setdefault(_settings_besides(count, one), []).append(one)
        for group in groups.values():
            group.sort(key=lambda one: one.arguments[count])
            for fewer, more in list(pairwise(group))[-1:]:
                ratio = more.arguments[count] / max(fewer.arguments[count], 1)
                if 1 < ratio <= _NEAR and _significantly_lower(more, fewer):
                    warnings.append(
                        f"{more.key} fools more images than {fewer.key}, with "
                        f"{more.arguments[count]} {words} instead of {fewer.arguments[count]}: the "
                        f"attack has not converged. Increase the {words} until the accuracy no "
                        "longer falls."
                    )
    return warnings


def _images_unmoved(attacks: Attacks) -> list[str]:
    return [
        f"{one.key} did not move {one.unmoved} of {one.n} images: their gradient is zero. Try the "
        "margin loss, or a random start; if the model rounds or quantises its input, "
        "`jaxadv.attacks.bpda`."
        for one in attacks
        if one.eps > 0
        and one.unmoved > 0
        and _uses_gradients(one)
        and not ATTACKS[one.attack].returns_clean
    ] + [
        f"{one.key} moved none of the {one.attacked} attacked images: its budget allows no step, "
        "or the model answers all its queries alike. Try more queries, and another loss."
        for one in attacks
        if one.eps > 0
        and not _uses_gradients(one)
        and one.unmoved == (one.attacked or 0) > 0
        and not ATTACKS[one.attack].returns_clean
    ]


def _nonfinite_gradients(attacks: Attacks) -> list[str]:
    return [
        f"{one.key} computed {one.nonfinite_gradients} gradients that are NaN or infinite, of "
        f"{one.nonfinite_gradient_images} images. They count as zero, which weakens the attack. "
        "Find the operation (a root or a division at 0), and make it smooth."
        for one in attacks
        if one.nonfinite_gradients and one.flags is None  # AutoAttack has a flag for it
    ]


def _search_stops_by_chance(results: SuiteResult) -> list[str]:
    return [
        f"{one.key} stops at the first noisy forward pass that is misclassified. The next one may "
        "be correct again, so the attack overestimates robustness. Set num_noise_samples to at "
        "least 10."
        for one in results.attacks
        if results.stochastic
        and one.noise == "on"
        and not _uses_gradients(one)
        and one.arguments.get("early_stop", True)
        and one.arguments["num_noise_samples"] == 1
    ]


def _noise_not_averaged(results: SuiteResult) -> list[str]:
    attacks = [one for one in results.attacks if one.noise == "on" and _uses_gradients(one)]
    averaged = any(
        one.arguments.get("version") == "rand" or _num_noise_samples(one.arguments) > 1
        for one in attacks
    )
    if not results.stochastic or not attacks or averaged:
        return []
    return [
        "No attack averaged its gradients over the model's noise: each used one noise sample per "
        "step, which overestimates robustness. Add attacks with num_noise_samples of 5 and more, "
        "until the accuracy no longer falls."
    ]


def _num_noise_samples(arguments: Mapping[str, Any]) -> int:
    """Return the noise samples of an attack, or the most of the attacks of an AutoAttack."""
    members = arguments.get("attacks") or {}
    samples = [one.get("num_noise_samples", 1) for one in (arguments, *members.values())]
    return max(samples)


def _undeclared_noise(results: SuiteResult) -> list[str]:
    if results.stochastic or not results.clean.varying:
        return []
    return [
        f"Two forward passes over the clean images differ on {results.clean.varying} of "
        f"{results.clean.n}, although the model declares no random defence. Declare it, so that "
        "attacks and scores average over its noise."
    ]


def _autoattack_flags(attacks: Attacks) -> list[str]:
    return [f"{one.key}: {flag}" for one in attacks for flag in (one.flags or {}).values()]


def _same_threat(one: AttackEntry, other: AttackEntry) -> bool:
    return (one.norm, one.eps, one.noise) == (other.norm, other.eps, other.noise)


def _uses_gradients(one: AttackEntry) -> bool:
    return ATTACKS[one.attack].uses_gradients


def _significantly_lower(one: AttackEntry, other: AttackEntry) -> bool:
    return one.ci95[1] < other.ci95[0]


def _settings_besides(count: str, one: AttackEntry) -> tuple:
    """Return what identifies an attack, without one of its arguments."""
    arguments = sorted((name, value) for name, value in one.arguments.items() if name != count)
    return (one.attack, one.noise, one.norm, one.eps, *arguments)
