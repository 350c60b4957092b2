import importlib.util
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from jaxadv.training.curriculum import durations, gradient_evaluations, linear_budget


def attack(eps=(0.01, 0.1), num_steps=(10, 40)):
    return ConfigDict(
        {
            "eps_start": eps[0],
            "eps_end": eps[1],
            "num_steps_start": num_steps[0],
            "num_steps_end": num_steps[1],
            "step_size": 0.01,
        }
    )


def default_config():
    path = Path(__file__).parents[2] / "configs" / "default.py"
    spec = importlib.util.spec_from_file_location("default", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def test_budgets_of_ten_epochs_of_the_study():
    budgets = [linear_budget(attack(), epoch, 10) for epoch in range(10)]
    eps = [0.01, 0.019, 0.028, 0.037, 0.046, 0.055, 0.064, 0.073, 0.082, 0.091]
    assert [budget.eps for budget in budgets] == pytest.approx(eps, abs=1e-12)
    assert [budget.num_steps for budget in budgets] == [10, 13, 16, 19, 22, 25, 28, 31, 34, 37]
    assert {budget.step_size for budget in budgets} == {0.01}


def test_number_of_steps_is_rounded_down():
    assert [linear_budget(attack(), epoch, 7).num_steps for epoch in range(7)] == [
        10, 14, 18, 22, 27, 31, 35,
    ]  # fmt: skip


def test_float_rounding_does_not_lose_a_step():
    # 7 + 43 * (23 / 43) is 29.999999999999996 in floats.
    assert linear_budget(attack(num_steps=(7, 50)), 23, 43).num_steps == 30


def test_the_default_config_is_the_curriculum_of_the_study():
    budget = linear_budget(default_config().attack, 9, 10)
    assert budget == (pytest.approx(0.091), 0.01, 37)


@pytest.mark.parametrize("num_epochs", [1, 3, 10, 30, 77])
@pytest.mark.parametrize("eps", [8 / 255, 0.03, 0.1])
def test_equal_start_and_end_give_an_exactly_fixed_budget(num_epochs, eps):
    fixed = attack(eps=(eps, eps), num_steps=(7, 7))
    for epoch in range(num_epochs):
        assert linear_budget(fixed, epoch, num_epochs) == (eps, 0.01, 7)


def test_a_curriculum_may_decrease():
    budget = linear_budget(attack(eps=(0.1, 0.0), num_steps=(40, 0)), 5, 10)
    assert budget == (pytest.approx(0.05), 0.01, 20)


@pytest.mark.parametrize(
    ("changes", "update"),
    [
        ({}, 1.0),
        ({"train.loss": "trades"}, 1.25),  # both versions of the attacked images
        ({"train.awp_gamma": 0.01}, 2.0),
        ({"train.loss": "ikl", "train.awp_gamma": 0.01}, 2.5),
        ({"train.gradient_alignment": 0.2}, 2.0),
    ],
)
def test_gradients_and_time_of_an_epoch(changes, update):
    """A quarter of the images is attacked, with 4 and then 6 steps."""
    config = default_config()
    config.update_from_flattened_dict(
        {
            "attack.fraction": 0.25,
            "attack.num_steps_start": 4,
            "attack.num_steps_end": 8,
            "train.num_epochs": 2,
            **changes,
        }
    )
    gradients = [update + 0.25 * num_steps for num_steps in (4, 6)]
    assert gradient_evaluations(config) == gradients
    kernels = 4 if config.train.awp_gamma else 2
    assert durations(config) == [gradient + kernels for gradient in gradients]
