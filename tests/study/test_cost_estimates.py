"""Tests of the timing of models on this device."""

import numpy as np
import pytest

from jaxadv.configs import study
from jaxadv.study import costs
from jaxadv.study.plan import make_plan

pytestmark = pytest.mark.slow  # compiles much


def test_gradient_is_timed():
    model = make_plan(study.get_config())["net_natural/0"].config.model
    assert 1e-7 < costs.seconds_per_gradient(model) < 0.1


def test_gan_is_timed_by_its_steps_and_by_its_samples():
    config = make_plan(study.get_config("smoke"))["gan/0"].config
    config.discriminator.num_blocks = 2  # the fewest, which compile fastest
    assert 1e-5 < costs.seconds_per_gan_step(config) < 10
    assert 1e-7 < costs.seconds_per_sample(config) < 1


def test_compilation_is_not_timed(monkeypatch):
    clock = iter(np.cumsum([0.0, 2.0]))
    calls = []
    monkeypatch.setattr(costs.time, "monotonic", lambda: next(clock))
    assert costs._seconds(lambda: calls.append(0)) == 2
    assert len(calls) == 2
