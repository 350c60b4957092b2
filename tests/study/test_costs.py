"""What a run costs, counted by hand, and the dry run that says so."""

import json

import pytest

from configs import study
from jaxadv.study import runner, timing
from jaxadv.study.costs import cost_in_gradients, estimate
from jaxadv.study.plan import make_plan


def test_gradients_are_counted_for_training_and_for_both_checkpoints():
    plan = make_plan(study.get_config())
    standard = plan["bignet_standard/0"]
    gradients, weighed = cost_in_gradients(standard, standard.config)
    attacks = 10_000 * 6 * 40
    assert gradients == 48_000 * 10 * (1 + 0.5 * 10) + 2 * attacks
    assert weighed == 48_000 * 10 * (3 + 0.5 * 10) + attacks  # half of the images stand
    there = plan["bignet_standard/0/study"]
    assert cost_in_gradients(there, standard.config) == (1024 * 12 * 40, 1024 * 6 * 40)


def test_a_model_with_noise_is_attacked_on_every_image_and_seen_in_many_passes():
    noisy = make_plan(study.get_config())["bignet_rse/0"]
    gradients, weighed = cost_in_gradients(noisy, noisy.config)
    training, attacks = 48_000 * 10 * (1 + 0.5 * 10), 10_000 * (10 + 10 * 20 + 10)
    assert gradients == training + 2 * attacks
    passes = 10_000 * 3 * 50
    assert weighed == pytest.approx(48_000 * 10 * (3 + 0.5 * 10) + 2 * (attacks + passes / 3))


def test_a_dry_run_tells_the_cost_and_runs_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(timing, "seconds_per_gradient", lambda model: 1e-3)
    config = study.get_config()
    config.study.results = str(tmp_path / "results")
    config.study.only = "undefended"
    config.study.dry_run = True
    runner.run(config, tmp_path / "study")
    assert not (tmp_path / "study").exists()
    told = capsys.readouterr().out
    assert "net_natural/0/study" in told
    assert "net_curriculum" not in told
    kept = json.loads((tmp_path / "results" / "costs.json").read_text())
    cost = kept["costs"]["net_natural/0"]
    assert cost["gradients"] == 48_000 * 10 + 2 * 10_000 * 240
    assert cost["seconds"] == pytest.approx(1e-3 * (48_000 * 30 + 10_000 * 240))
    assert "cpu" in cost["device"]


def test_the_cost_of_a_gan_is_that_of_its_judge_and_of_its_steps(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "seconds_per_gradient", lambda model: 1e-3)
    monkeypatch.setattr(timing, "seconds_per_gan_step", lambda config: 0.2)
    monkeypatch.setattr(timing, "seconds_per_sample", lambda config: 0.01)
    plan = make_plan(study.get_config())
    runs = [plan["gan/0"], plan["gan/0/synthetic"]]
    gan, samples = estimate(runs, plan, tmp_path).values()
    epochs = plan["gan/0"].config.judge.classifier.train.num_epochs
    assert gan.seconds == pytest.approx(1e-3 * 48_000 * 3 * epochs + 5000 * 0.2)
    assert samples.seconds == pytest.approx(20_000 * 0.01)
