"""The table of recipes that are compared at equal time."""

import pytest

from benchmarks.recipes import RECIPES, make_config
from jaxadv.models import make_model


@pytest.mark.parametrize("table", RECIPES)
def test_recipes_are_valid_and_differ(table):
    configs = {name: make_config(changes) for name, changes in RECIPES[table].items()}
    assert len({config.to_json() for config in configs.values()}) == len(configs)
    for config in configs.values():
        assert config.evaluation.split == "held_out"
        make_model(config.model.name, 10)
