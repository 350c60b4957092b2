import pytest

from jaxadv.masking import signs_of_masking

HONEST = {
    "fgsm/0.03": {"eps": 0.03, "queries": 1, "ci95": [0.40, 0.44]},
    "pgd/0.03": {"eps": 0.03, "queries": 40, "ci95": [0.30, 0.34]},
    "pgd/0.05": {"eps": 0.05, "queries": 40, "ci95": [0.20, 0.24]},
}


def evaluation(**changes):
    """Results of three attacks, with changes to the last: e.g. `ci95=[0.5, 0.6]`."""
    common = {"norm": "linf", "n": 2000, "unmoved": 0}
    attacks = {name: common | attack for name, attack in HONEST.items()}
    attacks["pgd/0.05"] |= changes
    return attacks


def test_an_honest_evaluation_has_no_signs():
    assert signs_of_masking(evaluation()) == []
    assert signs_of_masking({}) == []


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
        {"eps": 0.03, "ci95": [0.45, 0.49], "queries": 1},  # a single step too
    ],
)
def test_single_steps_are_compared_in_the_same_ball_beyond_chance(changes):
    attacks = evaluation(**changes)
    attacks["pgd40/0.05"] = attacks.pop("pgd/0.05")
    assert signs_of_masking(attacks) == []


def test_a_larger_eps_that_helps_is_a_sign():
    (sign,) = signs_of_masking(evaluation(ci95=[0.35, 0.39]))
    assert "pgd/0.05 breaks fewer images than pgd/0.03" in sign


def test_a_larger_eps_is_compared_for_the_same_attack_beyond_chance():
    assert signs_of_masking(evaluation(ci95=[0.33, 0.37])) == []
    attacks = evaluation(ci95=[0.35, 0.39])
    attacks["restarts/0.05"] = attacks.pop("pgd/0.05")
    assert signs_of_masking(attacks) == []


def test_images_that_do_not_move_are_a_sign():
    (sign,) = signs_of_masking(evaluation(unmoved=3))
    assert "pgd/0.05 left 3 of 2000 images" in sign
    assert signs_of_masking(evaluation(eps=0, unmoved=2000, ci95=[0.6, 0.6])) == []
