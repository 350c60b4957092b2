"""That what is timed runs, and what the times are of."""

import numpy as np

from configs import study
from jaxadv.study import timing


def test_a_gradient_is_timed():
    model = study.get_config().runs["net_natural/0"].config.model
    assert 1e-7 < timing.seconds_per_gradient(model) < 0.1


def test_a_gan_is_timed_by_its_steps_and_by_its_samples():
    config = study.get_config("smoke").runs["gan/0"].config
    config.discriminator.num_blocks = 2  # the fewest, which compile fastest
    assert 1e-5 < timing.seconds_per_gan_step(config) < 10
    assert 1e-7 < timing.seconds_per_sample(config) < 1


def test_compiling_is_not_timed(monkeypatch):
    clock = iter(np.cumsum([0.0, 2.0]))
    calls = []
    monkeypatch.setattr(timing.time, "monotonic", lambda: next(clock))
    assert timing._seconds(lambda: calls.append(0)) == 2
    assert len(calls) == 2
