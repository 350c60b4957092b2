"""Suites of attacks for `config.evaluation.attacks`.

Each function returns one suite. A suite maps the name of each attack to the function in
`jaxadv.attacks` ("attack") and its arguments. Evaluation runs each attack at every radius of its
tuple `eps`. `python run.py --config configs/evaluate.py:<suite>` runs a suite on a checkpoint.
"""

from ml_collections import ConfigDict

RADII = (0.01, 0.02, 0.03, 0.04, 0.05, 0.1)  # of the study


def standard() -> ConfigDict:
    """Return the attacks of the final evaluation of a training.

    `pgd40` is the study's PGD-40, without a random start. The last two attacks detect gradient
    masking: a gradient-free attack must not succeed more often than the others, and at eps 0.5
    every image can become grey.
    """
    pgd = {"attack": "pgd", "step_size": 0.01}
    return ConfigDict(
        {
            "fgsm": {"attack": "fgsm", "eps": RADII},
            "pgd40": {**pgd, "eps": RADII, "num_steps": 40, "random_start": False},
            "pgd20_restarts": {
                **pgd,
                "eps": (0.03,),
                "num_steps": 20,
                "loss": "margin",
                "num_restarts": 5,
            },
            "random_search": {"attack": "random_search", "eps": (0.1,), "num_queries": 100},
            "pgd_unbounded": {"attack": "pgd", "eps": (0.5,), "step_size": 0.05, "num_steps": 20},
        }
    )


_PGD10 = {"attack": "pgd", "eps": (0.03,), "step_size": 0.008, "num_steps": 10}
_RANDOM_SEARCH = {"attack": "random_search", "eps": (0.03,), "num_queries": 100}
_MASKING_CHECKS = {
    "fgsm": {"attack": "fgsm", "eps": (0.03,)},
    "random_search": _RANDOM_SEARCH,
    "pgd_unbounded": {**_PGD10, "eps": (0.5,), "step_size": 0.1},
}


def noise() -> ConfigDict:
    """Return the attacks for models with a random defence, at eps 0.03 with step size 0.008.

    `pgd10` takes one noise sample per step, `eot20` averages 20. `noise_off` is `pgd10` on the
    model without its noise, `noise_fixed` on the model with one fixed noise sample. Random search
    averages 10 forward passes per query, because a success in one forward pass may be chance.
    """
    return ConfigDict(
        {
            "pgd10": _PGD10,
            "eot20": {**_PGD10, "num_noise_samples": 20},
            "noise_off": {**_PGD10, "noise": "off"},
            "noise_fixed": {**_PGD10, "noise": "fixed"},
            **_MASKING_CHECKS,
            "random_search": {**_RANDOM_SEARCH, "num_noise_samples": 10},
        }
    )


def plain() -> ConfigDict:
    """Return the counterpart of `noise` for deterministic models.

    `pgd200` takes as many gradients as `eot20`.
    """
    return ConfigDict({"pgd10": _PGD10, "pgd200": {**_PGD10, "num_steps": 200}, **_MASKING_CHECKS})


def corrected(defence: str) -> ConfigDict:
    """Return the attacks of the study's corrected protocol, which `configs/experiments/` uses.

    Deterministic models are attacked by PGD-40 with a random start at the six radii. Models with a
    random defence are attacked by `pgd10`, `eot20` and `noise_off` of `noise`.

    Args:
      defence: `config.model.defence.name`.
    """
    if defence in ("pni", "rse", "dropout", "input_noise"):
        attacks = noise()
        return ConfigDict({name: attacks[name] for name in ("pgd10", "eot20", "noise_off")})
    return ConfigDict(
        {"pgd40": {"attack": "pgd", "eps": RADII, "step_size": 0.01, "num_steps": 40}}
    )


def eot() -> ConfigDict:
    """Return PGD-10 with gradients averaged over 1 to 50 noise samples (EOT).

    The gradient is that of the mean loss; `eot20_softmax` takes that of the mean softmax.
    `pgd200` takes one noise sample in each of 200 steps.
    """
    averaged = {f"eot{n}": {**_PGD10, "num_noise_samples": n} for n in (1, 5, 10, 20, 50)}
    return ConfigDict(
        {
            **averaged,
            "eot20_softmax": {**averaged["eot20"], "noise_average": "softmax"},
            "pgd200": {**_PGD10, "num_steps": 200},
        }
    )


def autoattack() -> ConfigDict:
    """Return AutoAttack and PGD-40 in the L-inf ball of the leaderboards, eps 8/255."""
    ball = {"eps": (8 / 255,)}
    return ConfigDict(
        {
            "pgd40": {"attack": "pgd", **ball, "step_size": 0.01, "num_steps": 40},
            "autoattack": {"attack": "autoattack", **ball},
        }
    )


def autoattack_l2() -> ConfigDict:
    """Return AutoAttack and PGD-40 in the L2 ball of the leaderboards, eps 0.5."""
    ball = {"eps": (0.5,), "norm": "l2"}
    return ConfigDict(
        {
            "pgd40": {"attack": "pgd", **ball, "step_size": 0.1, "num_steps": 40},
            "autoattack": {"attack": "autoattack", **ball},
        }
    )


def rand() -> ConfigDict:
    """Return AutoAttack's version for random defences: gradients averaged over 20 noise samples."""
    return ConfigDict(
        {"autoattack": {"attack": "autoattack", "eps": (8 / 255,), "version": "rand"}}
    )


def distance() -> ConfigDict:
    """Return targeted FAB, which minimises the distance, in L-inf and in L2.

    It targets the three most likely other classes and does not stop at the first success. The
    accuracy at `eps` is one point of the distribution of distances.
    """
    fab = {"attack": "fab", "num_targets": 3, "early_stop": False}
    return ConfigDict(
        {
            "fab": {**fab, "eps": (8 / 255,)},
            "fab_l2": {**fab, "eps": (0.5,), "norm": "l2"},
        }
    )


_BLACK_BOX = {"eps": (0.1,), "num_queries": 10_000}
_NES = {"attack": "nes", "step_size": 0.02}


def blackbox() -> ConfigDict:
    """Return black-box attacks with 10,000 queries at the study's eps 0.1, and PGD-40.

    `nes` is the study's NES with early stopping. `nes_ilyas` has the loss, momentum, step size
    decay, number of samples and initial step size of Ilyas et al. (2018). `spsa` has random signs
    as directions and the margin as loss. For a random defence set `num_noise_samples`. Random
    search has 1,000 queries, because it gains little after the first ones.
    """
    return ConfigDict(
        {
            "pgd40": {"attack": "pgd", "eps": (0.1,), "step_size": 0.02, "num_steps": 40},
            "nes": {**_NES, **_BLACK_BOX},
            "nes_ilyas": {
                **_NES,
                **_BLACK_BOX,
                "step_size": 0.01,
                "samples_per_gradient": 50,
                "loss": "cross_entropy",
                "momentum": 0.9,
                "plateau_length": 5,
            },
            "spsa": {**_NES, **_BLACK_BOX, "directions": "rademacher", "loss": "margin"},
            "square": {"attack": "square", **_BLACK_BOX},
            "random_search": {"attack": "random_search", "eps": (0.1,), "num_queries": 1000},
        }
    )


def study_nes() -> ConfigDict:
    """Return the study's NES at each of its query budgets, and PGD with as many steps.

    It checks for success only after the last step. The study did not count that query, so that its
    budget of L queries is L + 1 here.
    """
    budgets = (500, 1000, 2000, 3000, 4000)
    pgd = {"attack": "pgd", "eps": (0.1,), "step_size": 0.02, "random_start": False}
    return ConfigDict(
        {
            **{
                f"nes{budget}": {
                    **_NES, "eps": (0.1,), "num_queries": budget + 1, "early_stop": False
                }
                for budget in budgets
            },
            **{f"pgd{budget // 100}": {**pgd, "num_steps": budget // 100} for budget in budgets},
        }
    )  # fmt: skip


def noisy_nes() -> ConfigDict:
    """Return NES for random defences over its sigma and number of samples per gradient.

    Each NES takes 10 steps at eps 0.03 and checks for success after the last. `pgd10` takes the
    gradient of one noise sample per step.
    """
    return ConfigDict(
        {
            "pgd10": _PGD10,
            **{
                f"nes_n{samples}_sigma{sigma:.0e}": {
                    "attack": "nes",
                    "eps": (0.03,),
                    "step_size": 0.008,
                    "samples_per_gradient": samples,
                    "sigma": sigma,
                    "num_queries": 10 * samples + 1,
                    "early_stop": False,
                }
                for samples in (100, 400)
                for sigma in (1e-3, 1e-2, 1e-1)
            },
        }
    )
