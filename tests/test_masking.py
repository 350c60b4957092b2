import pytest

from jaxadv.masking import signs_of_masking

HONEST = {
    "fgsm/0.03": {
        "attack": "fgsm",
        "eps": 0.03,
        "queries": 1,
        "accuracy": 0.42,
        "ci95": [0.40, 0.44],
    },
    "pgd/0.03": {"eps": 0.03, "queries": 40, "accuracy": 0.32, "ci95": [0.30, 0.34]},
    "pgd/0.05": {"eps": 0.05, "queries": 40, "accuracy": 0.22, "ci95": [0.20, 0.24]},
}
COMMON = {
    "norm": "linf",
    "noise": "on",
    "attack": "pgd",
    "n": 2000,
    "unmoved": 0,
    "num_noise_samples": 1,
}


def evaluation(*, stochastic=False, varying=0, more=None, **changes):
    """Three attacks, with changes to the last, e.g. `ci95=[0.5, 0.6]`, and perhaps one more."""
    attacks = {name: COMMON | attack for name, attack in HONEST.items()}
    attacks["pgd/0.05"] |= changes
    if more:
        attacks["more"] = attacks["pgd/0.03"] | more
    clean = {"varying": varying, "n": 2000, "accuracy": 0.6, "ci95": [0.58, 0.62]}
    return {
        "stochastic": stochastic,
        "largest_class": 0.1,
        "clean": clean,
        "attacks": attacks,
    }


def test_an_honest_evaluation_has_no_signs():
    assert signs_of_masking(evaluation()) == []
    assert signs_of_masking(evaluation() | {"attacks": {}}) == []


def test_a_model_that_guesses_is_a_sign():
    results = evaluation()
    results["clean"] |= {"accuracy": 0.105, "ci95": [0.093, 0.119]}
    (sign,) = signs_of_masking(results)
    assert "The clean accuracy, 10.5%, cannot be told from" in sign
    assert signs_of_masking(results | {"largest_class": 0.09}) == []


def test_a_single_step_that_wins_is_a_sign():
    (sign,) = signs_of_masking(evaluation(eps=0.03, ci95=[0.45, 0.49]))
    assert "fgsm/0.03 breaks more images than pgd/0.05" in sign
    assert "40" in sign


@pytest.mark.parametrize(
    "changes",
    [
        {"eps": 0.03, "ci95": [0.43, 0.47]},  # the intervals overlap
        {"eps": 0.02, "ci95": [0.45, 0.49]},  # another ball
        {"eps": 0.03, "ci95": [0.45, 0.49], "norm": "l2"},  # another norm
        {"eps": 0.03, "ci95": [0.45, 0.49], "noise": "off"},  # another model
        {"eps": 0.03, "ci95": [0.45, 0.49], "queries": 1},  # a single step too
    ],
)
def test_single_steps_are_compared_in_the_same_ball_beyond_chance(changes):
    results = evaluation(**changes)
    results["attacks"]["pgd40/0.05"] = results["attacks"].pop("pgd/0.05")
    assert signs_of_masking(results) == []


def test_a_larger_eps_that_helps_is_a_sign():
    (sign,) = signs_of_masking(evaluation(ci95=[0.35, 0.39]))
    assert "pgd/0.05 breaks fewer images than pgd/0.03" in sign


def test_a_larger_eps_is_compared_for_the_same_attack_beyond_chance():
    assert signs_of_masking(evaluation(ci95=[0.33, 0.37])) == []
    results = evaluation(ci95=[0.35, 0.39])
    results["attacks"]["restarts/0.05"] = results["attacks"].pop("pgd/0.05")
    assert signs_of_masking(results) == []


def test_a_gradient_free_attack_that_wins_is_a_sign():
    free = {"attack": "random_search", "queries": 100}
    (sign,) = signs_of_masking(evaluation(more=free | {"ci95": [0.25, 0.29]}))
    assert "more, which sees no gradient, breaks more images than pgd/0.03" in sign
    # It beats the single step, but not the best attack of the ball.
    assert signs_of_masking(evaluation(more=free | {"ci95": [0.35, 0.39]})) == []
    assert signs_of_masking(evaluation(more=free | {"ci95": [0.25, 0.29], "eps": 0.01})) == []


def test_surviving_any_perturbation_is_a_sign():
    large = {"eps": 0.5, "accuracy": 0.2, "ci95": [0.18, 0.22]}
    (sign,) = signs_of_masking(evaluation(**large))
    assert "pgd/0.05 leaves 20.0%" in sign
    assert signs_of_masking(evaluation(**large | {"eps": 0.4})) == []
    assert signs_of_masking(evaluation(**large | {"ci95": [0.09, 0.11]})) == []
    assert signs_of_masking(evaluation(**large | {"attack": "random_search"})) == []


@pytest.mark.parametrize("count", ["num_noise_samples", "num_steps", "num_restarts"])
def test_more_of_something_that_still_helps_is_a_sign(count):
    def signs(fewer, more, ci95):
        results = evaluation(more={count: more, "ci95": ci95})
        results["attacks"]["pgd/0.03"][count] = fewer
        return signs_of_masking(results)

    (sign,) = signs(10, 20, [0.25, 0.29])
    assert "more breaks more images than pgd/0.03, with 20" in sign
    assert signs(10, 20, [0.29, 0.31]) == []  # by chance
    assert signs(1, 20, [0.25, 0.29]) == []  # too far apart to tell


def test_more_steps_are_compared_where_nothing_else_differs():
    results = evaluation(more={"num_steps": 80, "ci95": [0.25, 0.29], "loss": "margin"})
    results["attacks"]["pgd/0.03"]["num_steps"] = 40
    assert signs_of_masking(results) == []


def test_more_queries_are_compared_where_nothing_else_differs():
    def signs(**changes):
        more = {"attack": "nes", "num_queries": 200, "sigma": 1e-3, "ci95": [0.45, 0.49], **changes}
        results = evaluation(more=more)
        results["attacks"]["fewer"] = results["attacks"]["more"] | {
            "num_queries": 100, "sigma": 1e-3, "momentum": 0.0, "ci95": [0.55, 0.59]
        }  # fmt: skip
        return signs_of_masking(results)

    (sign,) = signs(momentum=0.0)
    assert "more breaks more images than fewer, with 200 queries" in sign
    assert signs(momentum=0.9) == []
    assert signs(momentum=0.0, sigma=1e-2) == []


def test_images_that_do_not_move_are_a_sign():
    (sign,) = signs_of_masking(evaluation(unmoved=3))
    assert "pgd/0.05 left 3 of 2000 images" in sign
    assert signs_of_masking(evaluation(eps=0, unmoved=2000, ci95=[0.6, 0.6])) == []
    assert signs_of_masking(evaluation(unmoved=3, attack="random_search")) == []


def test_a_search_that_one_noisy_pass_ends_is_a_sign():
    free = {"attack": "square", "num_queries": 100, "ci95": [0.35, 0.39]}

    def signs(**changes):
        results = evaluation(stochastic=True, num_noise_samples=20, more=free | changes)
        return signs_of_masking(results)

    (sign,) = signs()
    assert "more ends with the first noisy pass" in sign
    assert signs(num_noise_samples=10) == []
    assert signs(early_stop=False) == []
    assert signs(noise="off") == []
    assert signs_of_masking(evaluation(more=free)) == []


def test_a_search_that_moved_nothing_is_a_sign():
    free = {"attack": "nes", "num_queries": 100, "ci95": [0.35, 0.39], "attacked": 900}
    (sign,) = signs_of_masking(evaluation(more=free | {"unmoved": 900}))
    assert "more moved none of the 900 images" in sign
    assert signs_of_masking(evaluation(more=free | {"unmoved": 899})) == []


def test_noise_that_no_attack_averages_is_a_sign():
    (sign,) = signs_of_masking(evaluation(stochastic=True))
    assert "num_noise_samples" in sign
    assert signs_of_masking(evaluation(stochastic=True, num_noise_samples=20)) == []
    # An average on the model without its noise does not count.
    assert signs_of_masking(evaluation(stochastic=True, num_noise_samples=20, noise="off"))


def test_noise_that_is_not_declared_is_a_sign():
    (sign,) = signs_of_masking(evaluation(varying=7))
    assert "differ on 7 of 2000" in sign
    assert signs_of_masking(evaluation(varying=7, stochastic=True, num_noise_samples=5)) == []
