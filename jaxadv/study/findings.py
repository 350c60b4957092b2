"""The findings at the top of the study's page: one sentence each, with its figures.

A sentence is written for certain verdicts. If the records give others, the page shows the claims
with their verdicts in its place.
"""

from collections.abc import Mapping
from typing import NamedTuple

from jaxadv.study import claims
from jaxadv.study.evidence import sentence, values, verdict_in_words
from jaxadv.study.specification import Claim
from jaxadv.study.verdicts import (
    CONTRADICTED,
    INCONCLUSIVE,
    NOT_RUN,
    SUPPORTED,
    Verdict,
)


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
        "At equal cost, a ramp to eps 0.1 makes net more robust than a fixed eps of 0.03: "
        "{0[change]} under {0[attack]}.",
        ((claims.LONG_RAMP, SUPPORTED),),
    ),
    Finding(
        "RSE is no defence: its gain of {0[size]} under attack with one noise sample per step is "
        "at most {1[at_most]} when the attack averages its gradients (EOT).",
        ((claims.RSE_ONE_SAMPLE, SUPPORTED), (claims.RSE, INCONCLUSIVE)),
    ),
    Finding(
        "PNI shows no gain under EOT: {0[change]}, at most {0[at_most]}.",
        ((claims.PNI, INCONCLUSIVE),),
    ),
    Finding(
        "AdamW trains a more robust net than SGD at the same learning rate, which was not tuned: "
        "{0[change]} under {0[attack]}.",
        ((claims.ADAMW, SUPPORTED),),
    ),
    Finding(
        "GELU raises clean accuracy after natural training by {0[size]} on BigNet and {1[size]} on "
        "BiggerNet. The slides say 5 to 7 points.",
        ((claims.GELU_BIGNET, SUPPORTED), (claims.GELU_BIGGERNET, SUPPORTED)),
    ),
    Finding(
        "A horizontal flip makes BiggerNet more robust in 10 epochs: {0[change]} under "
        "{0[attack]}. The study took 60 epochs.",
        ((claims.FLIP, SUPPORTED),),
    ),
    Finding(
        "Synthetic images {gan} do harm: replacing half of each batch costs net {0[size]} under "
        "{0[attack]}.",
        ((claims.HALF_SYNTHETIC, CONTRADICTED),),
    ),
    Finding(
        "configs/curriculum.py, this project's training, gains {1[size]} of clean accuracy over "
        "the study's curriculum. It gains at most {0[at_most]} of robust accuracy under "
        "{0[attack]}, at 1.5 times the gradients.",
        ((claims.BEST_TRAINING, INCONCLUSIVE), (claims.BEST_CLEAN, SUPPORTED)),
    ),
)


def in_words(finding: Finding, verdicts: Mapping[Claim, Verdict], gan: str) -> str:
    """Return the sentence of a finding; for other verdicts than its own, the claims with theirs.

    Args:
      finding: the finding.
      verdicts: by claim.
      gan: description of the GAN.
    """
    found = [verdicts[claim] for claim, _ in finding.claims]
    if is_as_written(finding, verdicts):
        return finding.text.format(*(values(one.decisive) for one in found), gan=gan)
    return " ".join(
        f"{claim.text.format(gan=gan)}: {_with_evidence(claim, verdict)}."
        for (claim, _), verdict in zip(finding.claims, found, strict=True)
    )


def is_as_written(finding: Finding, verdicts: Mapping[Claim, Verdict]) -> bool:
    """Return whether the verdicts are those that the sentence of a finding states."""
    return all(verdicts[claim].decisive.word == word for claim, word in finding.claims)


def _with_evidence(claim: Claim, verdict: Verdict) -> str:
    words = verdict_in_words(verdict)
    if verdict.decisive.word == NOT_RUN:
        return words
    return f"{words} ({sentence(claim, verdict.decisive)})"
