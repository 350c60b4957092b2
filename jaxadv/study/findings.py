"""The findings at the top of the study's page: one sentence each, with its figures.

A sentence is written for certain verdicts. If the records give others, the page shows the claims
with their verdicts in its place.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxadv.study import claims
from jaxadv.study.evidence import qualifiers, sentence, values, verdict_in_words
from jaxadv.study.specification import Claim
from jaxadv.study.verdicts import CONTRADICTED, INCONCLUSIVE, NOT_RUN, SUPPORTED, Verdict


class Assessed(NamedTuple):
    """A claim with its verdict.

    Attributes:
      number: of the claim on the page.
      claim: the claim.
      text: of the claim, with the description of the GAN.
      experiment: name of its experiment.
      verdict: on the claim.
      corrected: p value of each attack after Holm's correction.
    """

    number: int
    claim: Claim
    text: str
    experiment: str
    verdict: Verdict
    corrected: Mapping[str, float] = {}


class Finding(NamedTuple):
    """A sentence on one or several claims.

    Attributes:
      text: the sentence. `{0[size]}` is a value of the first claim, under AutoAttack if that was
        run; see `jaxadv.study.evidence.values`. `{gan}` describes the GAN.
      claims: the claims, each with the verdict that the sentence states.
    """

    text: str
    claims: tuple[tuple[Claim, str], ...]


FINDINGS = (
    Finding(
        "The study's curriculum makes BigNet more robust than training at a fixed eps of 0.03: "
        "{0[first]} instead of {0[second]} under {0[attack]}, a gain of {0[size]}. It costs "
        "{1[size]} of clean accuracy and twice the gradients.",
        ((claims.CURRICULUM, SUPPORTED), (claims.CURRICULUM_CLEAN, SUPPORTED)),
    ),
    Finding(
        "At equal cost, a ramp to eps 0.1 makes the model net more robust than a fixed eps of "
        "0.03: {0[change]} under {0[attack]}. A ramp to 0.03 has no significant gain: {1[change]}. "
        "So the larger eps may help, and not the ramp.",
        ((claims.LONG_RAMP, SUPPORTED), (claims.SHORT_RAMP, INCONCLUSIVE)),
    ),
    Finding(
        "In our trainings RSE gains {0[size]} if the attack takes one noise sample per step, as in "
        "the study. If it averages its gradients over noise samples (EOT), no gain is left: "
        "{1[change]}.",
        ((claims.RSE_ONE_SAMPLE, SUPPORTED), (claims.RSE, INCONCLUSIVE)),
    ),
    Finding(
        "PNI has no significant gain under EOT: {0[change]}.",
        ((claims.PNI, INCONCLUSIVE),),
    ),
    Finding(
        "At learning rate 0.001, which was not tuned for either, AdamW trains the model net to a "
        "higher robust accuracy than SGD: {0[change]} under {0[attack]}.",
        ((claims.ADAMW, SUPPORTED),),
    ),
    Finding(
        "GELU has no significant effect on clean accuracy after natural training: {0[change]} on "
        "BigNet and {1[change]} on BiggerNet. The slides say 5 to 7 points, from one "
        "training. The intervals are wide, because trainings differ by several points.",
        ((claims.GELU_BIGNET, INCONCLUSIVE), (claims.GELU_BIGGERNET, INCONCLUSIVE)),
    ),
    Finding(
        "A horizontal flip has no significant effect on the robustness of BiggerNet in 10 epochs: "
        "{0[change]} under {0[attack]}. Nor is it significantly better than flip, crop and jitter: "
        "{1[change]}. The study took 60 epochs.",
        ((claims.FLIP, INCONCLUSIVE), (claims.FLIP_OVER_JITTER, INCONCLUSIVE)),
    ),
    Finding(
        "Synthetic images {gan} do harm: replacing half of each batch costs the model net "
        "{0[size]} under {0[attack]}.",
        ((claims.HALF_SYNTHETIC, CONTRADICTED),),
    ),
    Finding(
        "configs/curriculum.py, this project's training, gains {1[size]} of clean accuracy over "
        "the study's curriculum, at 1.5 times the gradients. Robust accuracy is not significantly "
        "different under {0[attack]}: {0[change]}. It is lower under {2[attack]}: "
        "{2[change]}.",
        (
            (claims.BEST_TRAINING, INCONCLUSIVE),
            (claims.BEST_CLEAN, SUPPORTED),
            (claims.BEST_AT_LARGER_EPS, CONTRADICTED),
        ),
    ),
)


def in_words(finding: Finding, assessed: Mapping[Claim, Assessed], gan: str) -> str:
    """Return the sentence of a finding; for other verdicts than its own, the claims with theirs.

    The numbers of the claims follow, each with what weakens its verdict.

    Args:
      finding: the finding.
      assessed: by claim.
      gan: description of the GAN.
    """
    found = [assessed[claim] for claim, _ in finding.claims]
    if is_as_written(finding, [one.verdict for one in found]):
        text = finding.text.format(*(values(one.verdict.decisive) for one in found), gan=gan)
        return f"{text} ({'; '.join(map(_reference, found))})"
    return " ".join(map(_with_verdict, found))


def is_as_written(finding: Finding, verdicts: Sequence[Verdict]) -> bool:
    """Return whether the verdicts on its claims are those that the sentence of a finding states."""
    return all(
        verdict.decisive.word == word and verdict.decisive.difference is not None
        for (_, word), verdict in zip(finding.claims, verdicts, strict=True)
    )


def _reference(one: Assessed) -> str:
    weaknesses = qualifiers(one.verdict, one.corrected)
    return f"claim {one.number}" + (f": {', '.join(weaknesses)}" if weaknesses else "")


def _with_verdict(one: Assessed) -> str:
    decisive = one.verdict.decisive
    if decisive.word == NOT_RUN:
        return f"Not run: {one.text} (claim {one.number})."
    evidence = f"{decisive.attack}: {sentence(one.claim, decisive)}"
    return f"{one.text}: {verdict_in_words(one.verdict)}; {evidence} (claim {one.number})."
