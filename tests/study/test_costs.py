"""Tests of the cost of runs, counted by hand, and of the dry run."""

import json

import pytest

from jaxadv.configs import study
from jaxadv.study import costs, runner
from jaxadv.study.costs import cost_in_gradients, estimate
from jaxadv.study.plan import make_plan


def test_cost_of_a_training_includes_the_evaluations_of_both_checkpoints():
    plan = make_plan(study.get_config())
    standard = plan["bignet_standard/0"]
    gradients, duration = cost_in_gradients(standard, standard.config)
    attacks = 10_000 * 6 * 40
    assert gradients == 48_000 * 10 * (1 + 0.5 * 10) + 2 * attacks
    assert duration == 48_000 * 10 * (3 + 0.5 * 10) + attacks  # half of the images are attacked
    original = plan["bignet_standard/0/study"]
    assert cost_in_gradients(original, standard.config) == (1024 * 12 * 40, 1024 * 6 * 40)


def test_random_defence_is_attacked_on_every_image_and_takes_many_forward_passes():
    noisy = make_plan(study.get_config())["bignet_rse/0"]
    gradients, duration = cost_in_gradients(noisy, noisy.config)
    training, attacks = 48_000 * 10 * (1 + 0.5 * 10), 10_000 * (10 + 10 * 20 + 10)
    assert gradients == training + 2 * attacks
    passes = 10_000 * 3 * 50
    assert duration == pytest.approx(48_000 * 10 * (3 + 0.5 * 10) + 2 * (attacks + passes / 3))


def test_dry_run_prints_the_cost_and_executes_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(costs, "seconds_per_gradient", lambda model: 1e-3)
    config = study.get_config()
    config.study.results = str(tmp_path / "results")
    config.study.only = "undefended"
    config.study.dry_run = True
    runner.run(config, tmp_path / "study")
    assert not (tmp_path / "study").exists()
    output = capsys.readouterr().out
    assert "net_natural/0/study" in output
    assert "net_curriculum" not in output
    kept = json.loads((tmp_path / "results" / "costs.json").read_text())
    cost = kept["costs"]["net_natural/0"]
    assert cost["gradients"] == 48_000 * 10 + 2 * 10_000 * 240
    assert cost["seconds"] == pytest.approx(1e-3 * (48_000 * 30 + 10_000 * 240))
    assert "cpu" in cost["device"]


def test_cost_of_a_gan_is_that_of_its_evaluator_and_of_its_steps(monkeypatch, tmp_path):
    monkeypatch.setattr(costs, "seconds_per_gradient", lambda model: 1e-3)
    monkeypatch.setattr(costs, "seconds_per_gan_step", lambda config: 0.2)
    monkeypatch.setattr(costs, "seconds_per_sample", lambda config: 0.01)
    plan = make_plan(study.get_config())
    runs = [plan["gan/0"], plan["gan/0/synthetic"]]
    gan, samples = estimate(runs, plan, tmp_path).values()
    epochs = plan["gan/0"].config.evaluator.classifier.train.num_epochs
    assert gan.seconds == pytest.approx(1e-3 * 48_000 * 3 * epochs + 5000 * 0.2)
    assert samples.seconds == pytest.approx(20_000 * 0.01)
