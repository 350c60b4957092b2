"""Which runs a study has at each scale, and which of them `only` asks for."""

import pytest

from configs import presets, standard, study
from configs.experiments import (
    activation,
    adversary,
    model_size,
    optimizer,
    other_defences,
    randomness,
    synthetic,
    wide_resnet,
)
from jaxadv import config as configs
from jaxadv.classifier import make_defence
from jaxadv.curriculum import gradient_evaluations
from jaxadv.drawing import MARKERS, SERIES
from jaxadv.models.defences import DEFENCES, is_stochastic
from jaxadv.page import template
from jaxadv.study.plan import chosen, make_plan
from jaxadv.types import UserError


def test_what_experiments_share_is_the_same_training():
    shared = [optimizer.get_config("adamw"), activation.get_config("relu")]
    shared += [model_size.get_config("net"), wide_resnet.get_config("net")]
    assert len({config.to_json() for config in shared}) == 1
    assert other_defences.get_config("none") == synthetic.get_config("none")
    assert adversary.get_config("curriculum") == model_size.get_config("bignet")
    plain, standard = randomness.get_config("none"), adversary.get_config("standard")
    others = [line for line in configs.differences(plain, standard) if "evaluation" not in line]
    assert others == []


@pytest.mark.parametrize("scale", ["smoke", "cpu", "full"])
def test_every_run_can_be_meant_and_finds_what_it_needs(scale):
    config = study.get_config(scale)
    plan = make_plan(config)
    before = set()
    for name, run in plan.items():
        gan = run.config.mode in ("gan", "sample")
        (configs.check_gan if gan else configs.check)(run.config, 2)
        assert run.needs is None or run.needs in before
        before.add(name)
    for experiment in config.experiments.order:
        for _, arm in config.experiments[experiment].arms:
            assert not arm or f"{arm.partition(':')[0]}/0" in plan


@pytest.mark.parametrize("defence", ["none", *DEFENCES])
def test_a_model_with_noise_of_its_own_is_judged_by_averaged_gradients(defence):
    config = standard.get_config()
    config.model.defence.name = defence
    attacks = presets.corrected(config).evaluation.attacks
    averages = any(attack.get("num_noise_samples", 1) > 1 for attack in attacks.values())
    assert averages == is_stochastic(make_defence(config.model.defence))


def test_the_arms_of_a_figure_differ_in_colour():
    experiments = study.get_config("cpu").experiments
    assert max(len(experiments[name].arms) for name in experiments.order) <= len(set(SERIES))
    assert len(set(MARKERS)) == len(SERIES)
    style = template("page.html").render()
    assert all(style.count(f"--series-{i}: ") == 2 for i in range(1, len(SERIES) + 1))


def test_every_arm_of_the_curricula_costs_the_same():
    plan = make_plan(study.get_config("cpu"))
    for arm in dict(study.get_config("cpu").experiments.curricula.arms).values():
        name = arm.partition(":")[0]
        assert sum(gradient_evaluations(plan[f"{name}/0"].config)) == 60


def test_only_asks_for_experiments_with_all_they_need():
    config = study.get_config()
    plan = make_plan(config)
    config.study.only = "nes, optimizer"
    names = chosen(config, plan)
    trainings = {name.split("/")[0] for name in names}
    assert trainings == {"net_natural", "net_standard", "net_curriculum", "net_sgd"}
    assert names == [name for name in plan if name in names]
    config.study.only = "synthetic"
    assert {"gan/0", "gan/0/synthetic"} <= set(chosen(config, plan))
    config.study.only = "randomnes"
    with pytest.raises(UserError, match="only names 'randomnes': the experiments are undefended"):
        chosen(config, plan)


def test_paths_are_those_of_the_workdir(tmp_path):
    plan = make_plan(study.get_config())
    evaluation = plan["net_natural/0/nes"].located(tmp_path, "data")
    assert evaluation.checkpoint == str(tmp_path / "net_natural" / "0")
    assert evaluation.data.data_dir == "data"
    training = plan["net_synthetic_half/0"].located(tmp_path, None)
    assert training.data.synthetic.path == str(tmp_path / "gan" / "0" / "synthetic")
    assert plan["gan/0/synthetic"].workdir(tmp_path) == tmp_path / "gan" / "0"
    assert plan["net_natural/0/nes"].config.checkpoint == "net_natural/0"  # the plan's own stays
