"""The study's randomness table: BigNet, plain or with a random defence, adversarially trained.

    python run.py --config configs/experiments/randomness.py:rse

The argument is none, pni, pni_frozen (as the study had it), rse, dropout or input_noise. Standard
adversarial training for 10 epochs, half of each batch attacked at eps .03 with step .008, then
attacks that average over the noise; the plain model meets as many gradients.

Mean of three seeds, PGD-10 at eps .03 with one noise sample, then 20: plain 25.6 % (25.3 % under
PGD-200), PNI 26.4 and 26.1 %, RSE 32.5 and 24.9 %; 16 to 45 min on 2 cores of an Intel Xeon or an
AMD EPYC, shared. dropout, input_noise: not run. See results/study/index.md, and
results/randomness.md for more attacks.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import batteries, slides, standard
from configs.experiments import arms, shown

ARMS: dict[str, dict[str, Any]] = {
    "none": {},
    "pni": {"model.defence.name": "pni"},
    "pni_frozen": {"model.defence.name": "pni", "model.defence.pni.frozen_sigma": True},
    "rse": {"model.defence.name": "rse"},
    "dropout": {"model.defence.name": "dropout", "model.dropout": 0.3},
    "input_noise": {"model.defence.name": "input_noise"},
}

PAGE = shown.experiment(
    "Randomness",
    "BigNet after standard adversarial training at eps .03, step .008, plain or with a "
    "random defence. With 200 gradients the attack on a random model averages over 20 "
    "draws of its noise in each of 10 steps; the plain model meets PGD-200. With one noise "
    "sample ours, judged right, is PGD-10 in steps of .008, as trained, and 40 steps of .01 as "
    "there. A random model answers by the mean of 50 passes; judged as there, where the study has "
    "“several”, of 2. Noise off shows another model, the one without its noise.",
    figures=("bars",),
    arms={
        "plain": "bignet_standard",
        "PNI": "bignet_pni",
        "PNI, frozen": "bignet_pni_frozen",
        "RSE": "bignet_rse",
    },
    study=slides.RANDOMNESS,
    columns={"clean": ("clean", "noise:clean"), **shown.NOISE, "noise off": ("noise_off/0.03",)},
    as_there={"clean": ("study:clean",), "one noise sample": ("study:pgd40/0.03",)},
    claims=[
        shown.alike(
            "The study's own figures do not tell RSE from the plain model",
            ("RSE", "slides one noise sample"),
            ("plain", "slides one noise sample"),
            by="flaw 4",
        ),
        shown.more(
            "RSE is more robust, under one noise sample",
            ("RSE", "one noise sample"),
            ("plain", "one noise sample"),
        ),
        shown.more(
            "RSE is more robust, under averaged gradients",
            ("RSE", "200 gradients"),
            ("plain", "200 gradients"),
            by="the study, without flaw 3",
        ),
        shown.more(
            "PNI is more robust, under averaged gradients",
            ("PNI", "200 gradients"),
            ("plain", "200 gradients"),
            by="the study, without flaw 3",
        ),
        shown.more(
            "PNI, frozen as there, is more robust, under averaged gradients",
            ("PNI, frozen", "200 gradients"),
            ("plain", "200 gradients"),
            by="the study, without flaw 3",
        ),
        shown.more("RSE costs clean accuracy", ("plain", "clean"), ("RSE", "clean")),
        shown.more(
            "The sound PNI is better than the frozen one of the study",
            ("PNI", "200 gradients"),
            ("PNI, frozen", "200 gradients"),
            by="flaw 2",
        ),
    ],
)


def get_config(arm: str = "none") -> ConfigDict:
    """Returns the config for BigNet with that defence on CIFAR-10."""
    config = arms.get_config(ARMS, arm, standard.get_config)
    if arm == "none":
        config.evaluation.attacks = batteries.plain()
    return config
