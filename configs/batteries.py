"""Batteries of attacks: the keys of each are arguments of its function in `jaxadv.attacks`.

Every name is evaluated at every eps of its tuple.
"""

from ml_collections import ConfigDict

GRID = (0.01, 0.02, 0.03, 0.04, 0.05, 0.1)  # the study's


def standard() -> ConfigDict:
    """Returns the attacks of the final evaluation.

    The study's grid is `pgd40`. The last two tell whether the others can be believed: a
    gradient-free attack must not beat them, and in half the pixel range every image can be made
    grey.
    """
    pgd = {"attack": "pgd", "step_size": 0.01}
    return ConfigDict(
        {
            "fgsm": {"attack": "fgsm", "eps": GRID},
            "pgd40": {**pgd, "eps": GRID, "num_steps": 40, "random_start": False},
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
_SANITY = {
    "fgsm": {"attack": "fgsm", "eps": (0.03,)},
    "random_search": _RANDOM_SEARCH,
    "pgd_unbounded": {**_PGD10, "eps": (0.5,), "step_size": 0.1},
}


def noise() -> ConfigDict:
    """Returns the attacks of a model with noise of its own, at eps .03 and step .008.

    `pgd10` sees one draw of the noise in each step, `eot20` averages 20; then the same attack on
    the model with its noise off, and with one draw of it fixed. Random search takes 10 looks of 10
    passes, since a success in a single pass may be chance.
    """
    return ConfigDict(
        {
            "pgd10": _PGD10,
            "eot20": {**_PGD10, "num_noise_samples": 20},
            "noise_off": {**_PGD10, "noise": "off"},
            "noise_fixed": {**_PGD10, "noise": "fixed"},
            **_SANITY,
            "random_search": {**_RANDOM_SEARCH, "num_noise_samples": 10},
        }
    )


def plain() -> ConfigDict:
    """Returns the same for a model without noise: the 200 gradients of `eot20` are 200 steps."""
    return ConfigDict({"pgd10": _PGD10, "pgd200": {**_PGD10, "num_steps": 200}, **_SANITY})


def eot() -> ConfigDict:
    """Returns PGD-10 with gradients averaged over ever more draws of a model's noise.

    The average is of the losses, for 20 draws also of the softmax; `pgd200` takes a single draw
    in each of 200 steps.
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
    """Returns AutoAttack in the L-inf ball of the leaderboards, and PGD-40 beside it."""
    ball = {"eps": (8 / 255,)}
    return ConfigDict(
        {
            "pgd40": {"attack": "pgd", **ball, "step_size": 0.01, "num_steps": 40},
            "autoattack": {"attack": "autoattack", **ball},
        }
    )


def autoattack_l2() -> ConfigDict:
    """Returns the same in the L2 ball of the leaderboards."""
    ball = {"eps": (0.5,), "norm": "l2"}
    return ConfigDict(
        {
            "pgd40": {"attack": "pgd", **ball, "step_size": 0.1, "num_steps": 40},
            "autoattack": {"attack": "autoattack", **ball},
        }
    )


def rand() -> ConfigDict:
    """Returns AutoAttack for models with noise of their own: gradients averaged over 20 draws."""
    return ConfigDict(
        {"autoattack": {"attack": "autoattack", "eps": (8 / 255,), "version": "rand"}}
    )


def distance() -> ConfigDict:
    """Returns FAB to its end, whatever the distance, towards the three likeliest other classes.

    The accuracy that it leaves at its eps is one point of the distribution of distances.
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
    """Returns what sees outputs only, with 10,000 queries at the study's eps, and PGD beside it.

    `nes` is the study's with early stop; `nes_ilyas` has the loss, the momentum, the decay, the
    sample count and the first step size of Ilyas et al. 2018; `spsa` has random signs for
    directions and the margin as loss. For a model with noise of its own set `num_noise_samples`.
    Random search gains little after its first queries: a tenth of the budget does for the floor.
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
    """Returns the study's NES at each of its budgets, and PGD with as many steps.

    It takes no look at the result until the end, which the study did not count: L is L + 1 here.
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
    """Returns NES on a model with noise of its own, over sigma and the sample count.

    Every one takes 10 steps at eps .03 and looks at the end; PGD-10 sees the gradient of one draw.
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
