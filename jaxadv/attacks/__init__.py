"""Adversarial attacks on any JAX function `(key, images) -> logits`."""

from jaxadv.attacks.apgd import APGD, apgd
from jaxadv.attacks.autoattack import AUTOATTACK, autoattack
from jaxadv.attacks.black_box import BlackBox
from jaxadv.attacks.bpda import bpda
from jaxadv.attacks.cw import CW, cw
from jaxadv.attacks.ddn import DDN, ddn
from jaxadv.attacks.deepfool import DEEPFOOL, deepfool
from jaxadv.attacks.ensemble import AutoAttackResult
from jaxadv.attacks.fab import FAB, fab
from jaxadv.attacks.fast_convolutions import plain_convolutions
from jaxadv.attacks.fmn import FMN, fmn
from jaxadv.attacks.for_inputs import for_inputs
from jaxadv.attacks.hop_skip_jump import HOP_SKIP_JUMP, hop_skip_jump
from jaxadv.attacks.host_model import HostModel
from jaxadv.attacks.mi_fgsm import MI_FGSM, mean_logits, mi_fgsm
from jaxadv.attacks.nes import NES, nes
from jaxadv.attacks.nes_label_only import NES_LABEL_ONLY, nes_label_only
from jaxadv.attacks.pgd import FGSM, PGD, fgsm, n_fgsm, pgd
from jaxadv.attacks.random_search import RANDOM_SEARCH, random_search
from jaxadv.attacks.rays import RAYS, rays
from jaxadv.attacks.result import AttackResult
from jaxadv.attacks.sparse_rs import SPARSE_RS, sparse_rs
from jaxadv.attacks.spec import AttackSpec
from jaxadv.attacks.square import SQUARE, square
from jaxadv.attacks.universal import universal_perturbation

# The attacks of a suite, by the name that configs use.
ATTACKS: dict[str, AttackSpec] = {
    "fgsm": FGSM,
    "pgd": PGD,
    "mi_fgsm": MI_FGSM,
    "apgd": APGD,
    "fab": FAB,
    "fmn": FMN,
    "ddn": DDN,
    "cw": CW,
    "deepfool": DEEPFOOL,
    "nes": NES,
    "nes_label_only": NES_LABEL_ONLY,
    "hop_skip_jump": HOP_SKIP_JUMP,
    "rays": RAYS,
    "square": SQUARE,
    "sparse_rs": SPARSE_RS,
    "random_search": RANDOM_SEARCH,
    "autoattack": AUTOATTACK,
}

__all__ = [
    "ATTACKS", "AttackResult", "AttackSpec", "AutoAttackResult", "BlackBox", "HostModel", "apgd",
    "autoattack", "bpda", "cw", "ddn", "deepfool", "fab", "fgsm", "fmn", "for_inputs",
    "hop_skip_jump", "mean_logits", "mi_fgsm", "n_fgsm", "nes", "nes_label_only", "pgd",
    "plain_convolutions", "random_search", "rays", "sparse_rs", "square",
    "universal_perturbation",
]  # fmt: skip
