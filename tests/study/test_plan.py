"""Tests of the study's plan: its runs at each scale, and the requested ones."""

import itertools

import pytest

from jaxadv import config as configs
from jaxadv.configs import attack_suites, standard, study
from jaxadv.configs.experiments import (
    activation,
    adversary,
    model_size,
    optimizer,
    other_defences,
    randomness,
    synthetic,
    wide_resnet,
)
from jaxadv.core.types import UserError
from jaxadv.models.classifier import make_defence
from jaxadv.models.defences import DEFENCES, is_stochastic
from jaxadv.reports.plots import MARKERS, SERIES
from jaxadv.reports.report import template
from jaxadv.runs.workdir import differences
from jaxadv.study import claims as claims_of
from jaxadv.study.experiments import EXPERIMENTS
from jaxadv.study.findings import FINDINGS
from jaxadv.study.plan import make_plan, requested_runs
from jaxadv.study.specification import CORRECTED, ORIGINAL, SCORE, SLIDES
from jaxadv.training.curriculum import gradient_evaluations


def test_trainings_shared_by_experiments_have_one_config():
    shared = [optimizer.get_config("adamw"), activation.get_config("relu")]
    shared += [model_size.get_config("net"), wide_resnet.get_config("net")]
    assert len({config.to_json() for config in shared}) == 1
    assert other_defences.get_config("none") == synthetic.get_config("none")
    assert adversary.get_config("curriculum") == model_size.get_config("bignet")
    plain, standard = randomness.get_config("none"), adversary.get_config("standard")
    others = [line for line in differences(plain, standard) if "evaluation" not in line]
    assert others == []


@pytest.mark.parametrize("scale", ["smoke", "cpu", "full"])
def test_every_run_has_a_valid_config_and_follows_its_dependency(scale):
    plan = make_plan(study.get_config(scale))
    before = set()
    for name, run in plan.items():
        configs.check(run.config, 2)
        assert run.dependency is None or run.dependency in before
        before.add(name)
    for experiment in EXPERIMENTS.values():
        for training in experiment.trainings.values():
            assert not training or f"{training.partition(':')[0]}/0" in plan


def test_claims_are_about_cells_of_their_experiment():
    for experiment in EXPERIMENTS.values():
        for claim in experiment.claims:
            for cell in filter(None, (claim.first, claim.second)):
                assert cell.label in experiment.trainings
                assert (
                    cell.column == SCORE
                    or cell.column
                    in {
                        CORRECTED: experiment.columns,
                        ORIGINAL: experiment.original,
                        SLIDES: experiment.slides.get(cell.label, {}),
                    }[cell.source]
                )


@pytest.mark.parametrize("defence", ["none", *DEFENCES])
def test_corrected_protocol_averages_gradients_for_random_defences(defence):
    config = standard.get_config()
    config.model.defence.name = defence
    attacks = attack_suites.corrected(defence)
    averages = any(attack.get("num_noise_samples", 1) > 1 for attack in attacks.values())
    assert averages == is_stochastic(make_defence(config.model.defence))


def test_trainings_of_a_plot_differ_in_colour():
    most = max(len(experiment.trainings) for experiment in EXPERIMENTS.values())
    assert most <= len(set(SERIES))
    assert len(set(MARKERS)) == len(SERIES)
    style = template("page.html").render()
    assert all(style.count(f"--series-{i}: ") == 2 for i in range(1, len(SERIES) + 1))


def test_experiments_of_a_topic_follow_each_other():
    topics = [experiment.topic for experiment in EXPERIMENTS.values()]
    assert len([key for key, _ in itertools.groupby(topics)]) == len(set(topics))


def test_findings_are_about_claims_of_the_page_and_state_their_costs():
    claims = {claim for experiment in EXPERIMENTS.values() for claim in experiment.claims}
    assert all(set(dict(finding.claims)) <= claims for finding in FINDINGS)
    plan = make_plan(study.get_config())

    def cost(name):
        return sum(gradient_evaluations(plan[name].config))

    def text_on(claim):
        return next(one.text for one in FINDINGS if claim in dict(one.claims))

    curriculum = cost("bignet_curriculum/0")
    assert "twice the gradients" in text_on(claims_of.CURRICULUM)
    assert curriculum / cost("bignet_standard/0") == pytest.approx(2, rel=0.1)
    assert "1.5 times the gradients" in text_on(claims_of.BEST_CLEAN)
    assert cost("bignet_best/0") / curriculum == pytest.approx(1.5, rel=0.05)


def test_autoattack_attacks_every_seed_of_the_trainings_that_are_compared():
    plan = make_plan(study.get_config())
    for name in (
        *("bignet_best", "bignet_curriculum", "bignet_standard", "net_curriculum", "net_fixed"),
        *("net_long_ramp", "net_trades", "net_n_fgsm", "net_sgd", "net_gelu"),
    ):
        for seed in range(3):
            evaluation = plan[f"{name}/{seed}/autoattack"].config.evaluation
            assert evaluation.num_examples == 1000
            assert set(evaluation.attacks) == {"autoattack", "pgd40"}


def test_curricula_have_equal_cost():
    plan = make_plan(study.get_config("cpu"))
    for training in EXPERIMENTS["curricula"].trainings.values():
        name = training.partition(":")[0]
        assert sum(gradient_evaluations(plan[f"{name}/0"].config)) == 60


def test_only_requests_experiments_with_their_dependencies():
    plan = make_plan(study.get_config())
    names = requested_runs("nes, optimizer", EXPERIMENTS, plan)
    trainings = {name.split("/")[0] for name in names}
    assert trainings == {"net_natural", "net_standard", "net_curriculum", "net_sgd"}
    assert names == [name for name in plan if name in names]
    assert {"gan/0", "gan/0/synthetic"} <= set(requested_runs("synthetic", EXPERIMENTS, plan))
    with pytest.raises(UserError, match="only names 'randomnes': the experiments are adversary"):
        requested_runs("randomnes", EXPERIMENTS, plan)


def test_paths_are_in_the_workdir_of_the_study(tmp_path):
    plan = make_plan(study.get_config())
    evaluation = plan["net_natural/0/nes"].with_paths(tmp_path, "data")
    assert evaluation.checkpoint == str(tmp_path / "net_natural" / "0")
    assert evaluation.data.data_dir == "data"
    training = plan["net_synthetic_half/0"].with_paths(tmp_path, None)
    assert training.data.synthetic.path == str(tmp_path / "gan" / "0" / "synthetic")
    assert plan["gan/0/synthetic"].workdir(tmp_path) == tmp_path / "gan" / "0"
    assert plan["net_natural/0/nes"].config.checkpoint == "net_natural/0"  # unchanged in the plan
