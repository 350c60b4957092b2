"""The recipes that are compared at equal time."""

from benchmarks.recipes import RECIPES, make_config
from jaxadv.models import make_model


def test_recipes_are_valid_and_differ():
    configs = {name: make_config(changes) for name, changes in RECIPES.items()}
    assert len({config.to_json() for config in configs.values()}) == len(configs)
    for config in configs.values():
        assert config.evaluation.split == "held_out"
        make_model(config.model.name, 10)
