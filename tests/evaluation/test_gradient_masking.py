import pytest

from jaxadv.core.results import AttackEntry, CleanResult, SuiteResult
from jaxadv.evaluation.gradient_masking import gradient_masking_warnings

COMMON = {
    "attack": "pgd",
    "norm": "linf",
    "eps": 0.03,
    "n": 2000,
    "queries": 40,
    "unmoved": 0,
    "seconds": 1.0,
    "num_noise_samples": 1,
    "accuracy": 0.32,
    "ci95": (0.30, 0.34),
}
ATTACKS = {
    "fgsm": {"attack": "fgsm", "queries": 1, "accuracy": 0.42, "ci95": (0.40, 0.44)},
    "pgd": {},
    "pgd_large": {"eps": 0.05, "accuracy": 0.22, "ci95": (0.20, 0.24)},
}


def warnings(
    *, stochastic=False, varying=0, clean=(0.6, 0.58, 0.62), largest_class=0.1, attacks=None, **last
):
    """Return the warnings of three attacks that mask nothing, with changes.

    `attacks` has changes by name, or further attacks; `last` changes the last one.
    """
    changed = {**ATTACKS, "pgd_large": ATTACKS["pgd_large"] | last}
    for name, changes in (attacks or {}).items():
        changed[name] = changed.get(name, {}) | changes
    accuracy, low, high = clean
    return gradient_masking_warnings(
        SuiteResult(
            stochastic=stochastic,
            largest_class=largest_class,
            clean=CleanResult(accuracy=accuracy, ci95=(low, high), n=2000, varying=varying),
            attacks=tuple(
                # The attack at the larger radius has the name of the one at the smaller radius.
                AttackEntry.from_json(COMMON | one | {"name": name.removesuffix("_large")})
                for name, one in changed.items()
            ),
            worst_case=(),
            aggregated_score={},
        )
    )


def test_an_evaluation_without_masking_has_no_warnings():
    assert warnings() == []


def test_guessing_is_a_warning():
    (warning,) = warnings(clean=(0.105, 0.093, 0.119))
    assert "The clean accuracy, 10.5%, is not significantly above" in warning
    assert warnings(clean=(0.105, 0.093, 0.119), largest_class=0.09) == []


def test_a_single_step_that_beats_iterated_attacks_is_a_warning():
    (warning,) = warnings(eps=0.03, ci95=(0.45, 0.49))
    assert "fgsm/0.03 fools more images than pgd/0.03" in warning
    assert "40" in warning


@pytest.mark.parametrize(
    "changes",
    [
        {"ci95": (0.43, 0.47)},  # the intervals overlap
        {"eps": 0.02, "ci95": (0.45, 0.49)},  # another ball
        {"ci95": (0.45, 0.49), "norm": "l2"},  # another norm
        {"ci95": (0.45, 0.49), "noise": "off"},  # another model
        {"ci95": (0.45, 0.49), "queries": 1},  # a single step too
    ],
)
def test_single_steps_are_compared_in_the_same_ball_and_significantly(changes):
    assert warnings(attacks={"other": changes}) == []


def test_a_larger_eps_that_is_weaker_is_a_warning():
    (warning,) = warnings(ci95=(0.35, 0.39))
    assert "pgd/0.05 fools fewer images than pgd/0.03" in warning


def test_a_larger_eps_is_compared_for_the_same_attack_and_significantly():
    assert warnings(ci95=(0.33, 0.37)) == []
    weak = {"eps": 0.05, "ci95": (0.35, 0.39)}
    assert warnings(attacks={"restarts": weak}) == []


def test_a_black_box_attack_that_beats_gradients_is_a_warning():
    free = {"attack": "random_search", "queries": 100}
    (warning,) = warnings(attacks={"more": free | {"ci95": (0.25, 0.29)}})
    assert "more/0.03, a black-box attack, fools more images than pgd/0.03" in warning
    # It beats the single step, but not the best attack in the ball.
    assert warnings(attacks={"more": free | {"ci95": (0.35, 0.39)}}) == []
    assert warnings(attacks={"more": free | {"ci95": (0.25, 0.29), "eps": 0.01}}) == []


def test_surviving_an_unbounded_perturbation_is_a_warning():
    large = {"eps": 0.5, "accuracy": 0.2, "ci95": (0.18, 0.22)}
    (warning,) = warnings(**large)
    assert "pgd/0.5 leaves an accuracy of 20.0%" in warning
    assert warnings(**large | {"eps": 0.4}) == []
    assert warnings(**large | {"ci95": (0.09, 0.11)}) == []
    assert warnings(**large | {"attack": "random_search"}) == []


@pytest.mark.parametrize("count", ["num_noise_samples", "num_steps", "num_restarts"])
def test_a_count_that_still_helps_is_a_warning(count):
    def compare(fewer, more, ci95):
        return warnings(attacks={"pgd": {count: fewer}, "more": {count: more, "ci95": ci95}})

    (warning,) = compare(10, 20, (0.25, 0.29))
    assert "more/0.03 fools more images than pgd/0.03, with 20" in warning
    assert compare(10, 20, (0.29, 0.31)) == []  # not significantly
    assert compare(1, 20, (0.25, 0.29)) == []  # counts too far apart


def test_counts_are_compared_where_nothing_else_differs():
    more = {"num_steps": 80, "ci95": (0.25, 0.29), "loss": "margin"}
    assert warnings(attacks={"pgd": {"num_steps": 40}, "more": more}) == []


def test_query_budgets_are_compared_where_nothing_else_differs():
    def compare(**changes):
        nes = {"attack": "nes", "sigma": 1e-3, "momentum": 0.0}
        return warnings(
            attacks={
                "more": nes | {"num_queries": 200, "ci95": (0.45, 0.49)} | changes,
                "fewer": nes | {"num_queries": 100, "ci95": (0.55, 0.59)},
            }
        )

    (warning,) = compare()
    assert "more/0.03 fools more images than fewer/0.03, with 200 queries" in warning
    assert compare(momentum=0.9) == []
    assert compare(sigma=1e-2) == []


def test_images_that_do_not_move_are_a_warning():
    (warning,) = warnings(unmoved=3)
    assert "pgd/0.05 did not move 3 of 2000 images" in warning
    assert warnings(eps=0, unmoved=2000, ci95=(0.6, 0.6)) == []
    assert warnings(unmoved=3, attack="random_search") == []
    assert warnings(unmoved=3, attack="fab") == []  # which returns the clean image


def test_a_search_that_one_noisy_forward_pass_stops_is_a_warning():
    free = {"attack": "square", "num_queries": 100, "ci95": (0.35, 0.39)}

    def search(**changes):
        return warnings(stochastic=True, num_noise_samples=20, attacks={"more": free | changes})

    (warning,) = search()
    assert "more/0.03 stops at the first noisy forward pass" in warning
    assert search(num_noise_samples=10) == []
    assert search(early_stop=False) == []
    assert search(noise="off") == []
    assert warnings(attacks={"more": free}) == []


def test_a_search_that_moves_nothing_is_a_warning():
    free = {"attack": "nes", "num_queries": 100, "ci95": (0.35, 0.39), "attacked": 900}
    (warning,) = warnings(attacks={"more": free | {"unmoved": 900}})
    assert "more/0.03 moved none of the 900 attacked images" in warning
    assert warnings(attacks={"more": free | {"unmoved": 899}}) == []


def test_noise_that_no_attack_averages_is_a_warning():
    (warning,) = warnings(stochastic=True)
    assert "num_noise_samples" in warning
    assert warnings(stochastic=True, num_noise_samples=20) == []
    # An average over the model without its noise does not count.
    assert warnings(stochastic=True, num_noise_samples=20, noise="off")


def test_undeclared_noise_is_a_warning():
    (warning,) = warnings(varying=7)
    assert "differ on 7 of 2000" in warning
    assert warnings(varying=7, stochastic=True, num_noise_samples=5) == []
