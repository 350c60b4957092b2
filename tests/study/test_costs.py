"""What a run costs, counted by hand, and the dry run that says so."""

import json

import pytest

from configs import study
from jaxadv.study import costs, runner
from jaxadv.study.costs import cost_in_gradients
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
    monkeypatch.setattr(costs, "_seconds_per_gradient", lambda model: 1e-3)
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


def test_a_gradient_is_timed():
    model = study.get_config().runs["net_natural/0"].config.model
    assert 1e-7 < costs._seconds_per_gradient(model.to_json(sort_keys=True)) < 0.1
