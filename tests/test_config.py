import importlib
import json
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from jaxadv import config as configs
from jaxadv.config import set_defaults
from jaxadv.configs import curriculum, default, evaluate
from jaxadv.core.types import UserError
from jaxadv.evaluation.attack_suites import expand_suite
from jaxadv.runs.workdir import claimed, read

# Parts of configs, and the study, whose runs have their own test.
PARTS = ("__init__", "attack_suites", "study", "variants")
CONFIGS = sorted(
    ".".join(path.with_suffix("").parts)
    for path in Path("jaxadv/configs").rglob("*.py")
    if path.stem not in PARTS
)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_loads_and_is_valid(name):
    module = importlib.import_module(name)
    config = module.get_config()
    configs.check(config, num_devices=2)
    assert module.__doc__


@pytest.mark.parametrize("suite", evaluate.SUITES)
def test_every_attack_suite_loads_and_is_valid(suite):
    config = evaluate.get_config(suite)
    configs.check(config, num_devices=2)
    assert expand_suite(config.evaluation.attacks)


@pytest.mark.parametrize("source", ["digits", "svhn_cropped:3.1.0", "folder:a/b", "npz:x.npz"])
@pytest.mark.parametrize("name", ["curriculum", "gan", "trades"])
def test_the_argument_of_a_config_is_any_source_of_data(name, source):
    config = importlib.import_module(f"jaxadv.configs.{name}").get_config(source)
    configs.check(config, num_devices=2)
    assert config.data.source == source


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("attack.eps_end", -0.1, "config.attack.eps_end is -0.1: it must be 0 or more"),
        ("attack.fraction", 1.5, "config.attack.fraction is 1.5: it must be from 0 to 1"),
        ("attack.norm", "l7", "config.attack.norm is 'l7': it must be one of linf, l2"),
        ("attack.loss", "dlr2", "cross_entropy, margin"),
        ("data.validation_fraction", 0.0, "between 0 and 1"),
        ("data.source", "foldr:x", "folder:DIR, npz:FILE or huggingface:DIR"),
        ("data.size", 0, "config.data.size is 0: it must be an integer from 1"),
        ("data.channels", 2, "config.data.channels is 2: it must be one of None, 1, 3"),
        ("data.test_fraction", 1.0, "between 0 and 1"),
        ("data.streaming", "yes", "it must be one of None, True, False"),
        ("data.augmentation", "mixup", "none, flip, flip_crop, flip_crop_jitter"),
        ("model.name", "bignett", "bignet"),
        ("model.name", "wrn_13", "wrn_"),
        ("model.activation", "swish", "relu"),
        ("model.dropout", 1.0, "dropout"),
        ("optimizer.name", "adam", "adamw, muon, sgd"),
        ("optimizer.learning_rate", float("nan"), "above 0"),
        ("train.num_epochs", 0, "from 1 to"),
        ("train.batch_size", 63, "not divisible by the 2 devices: use 62"),
        ("evaluation.batch_size", 1, "not divisible by the 2 devices: use 2"),
        ("evaluation.num_examples", 0, "from 1 to"),
        ("data.synthetic.share", 1.2, "data.synthetic.share is 1.2: it must be from 0 to 1"),
        ("data.synthetic.share", 0.5, "data.synthetic.path is not set"),
        ("data.synthetic.label_smoothing", -0.1, "from 0 to 1"),
        ("train.loss", "hat", "cross_entropy, trades, mart, ikl"),
        (
            "attack.loss",
            "kl",
            "attack.loss is 'kl', whose gradient is 0 at the clean image: set random_start",
        ),
        ("attack.name", "n_fgsm", "n_fgsm needs config.attack.num_steps_start=1"),
        ("evaluation.split", "train", "it must be one of test, held_out"),
    ],
)
def test_invalid_value_is_named(key, value, message):
    config = default.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as error:
        configs.check(config, num_devices=2)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_invalid_attack_of_the_suite_is_named():
    config = default.get_config()
    config.evaluation.attacks.pgd40.eps = (0.01, -0.02)
    with pytest.raises(UserError, match=r"attacks\.pgd40\.eps is -0\.02"):
        configs.check(config, num_devices=2)


@pytest.mark.parametrize("radii", [(0.0300001, 0.03), (0.05, 0.03, 0.03), (0, 0.0)])
def test_radii_of_one_name_in_the_results_are_refused(radii):
    config = default.get_config()
    config.evaluation.attacks.pgd40.eps = radii
    both = f"{radii[-2]!r} and {radii[-1]!r}"
    with pytest.raises(UserError, match=rf"pgd40\.eps has {re.escape(both)}, .*keep one"):
        configs.check(config, num_devices=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": 0.1}, "eps is 0.1: it must be a tuple of radii"),
        ({"eps": ()}, "it must be a tuple of radii"),
        ({"attack": "boundary"}, "must be one of fgsm, pgd"),
        ({"num_queries": 10.5}, "num_queries is 10.5: it must be an integer"),
        ({"step_size": (0.01, 0.02)}, "step_size is (0.01, 0.02): it must be a number"),
        ({"num_queries": 1e4}, "num_queries is 10000.0: it must be an integer"),
        (
            {"num_querys": 10},
            "num_querys is not an argument of nes_label_only: did you mean num_quer",
        ),
        ({"num_queries": "10"}, "num_queries is '10': it must be an integer"),
        ({"label_samples": 0}, "label_samples is 0: it must be an integer from 1"),
        ({"label_radius": -1.0}, "label_radius is -1.0: it must be 0 or more"),
        ({"attack": "nes", "step_size": 0.1, "early_stop": "no"}, "early_stop is 'no': it must"),
    ],
)
def test_invalid_argument_of_a_black_box_attack_is_named(changes, message):
    config = evaluate.get_config()
    config.evaluation.attacks = ConfigDict(
        {"a": {"attack": "nes_label_only", "eps": (0.1,), "num_queries": 10, **changes}}
    )
    with pytest.raises(UserError, match=re.escape(message)):
        configs.check(config, num_devices=2)


@pytest.mark.parametrize("key", ["attack", "eps", "num_steps"])
def test_an_attack_without_what_it_needs_is_named(key):
    config = evaluate.get_config()
    del config.evaluation.attacks.pgd40[key]
    with pytest.raises(UserError, match=f"pgd40 lacks {key}"):
        configs.check(config, num_devices=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train.loss": "trades", "attack.fraction": 0.0},
            "trades needs adversarial images, but config.attack.fraction is 0.0: set it",
        ),
        (
            {"train.loss": "ikl", "attack.fraction": 0.0},
            "ikl needs adversarial images, but config.attack.fraction is 0.0: set it",
        ),
        (
            {"train.loss": "mart"},
            "mart needs an attack on all images, but config.attack.fraction is 0.5",
        ),
        (
            {"train.loss": "mart", "attack.fraction": 1.0, "train.cutmix": 0.5},
            "mart does not support soft labels, but config.train.cutmix is 0.5: set it to 0.0",
        ),
        (
            {"train.loss": "mart", "attack.fraction": 1.0, "train.label_smoothing": 0.1},
            "soft labels, but config.train.label_smoothing is 0.1: set it to 0.0",
        ),
        (
            {"train.gradient_alignment": 0.2, "attack.norm": "l2"},
            "needs an L-inf attack, but config.attack.norm is l2 and config.attack.fraction 0.5",
        ),
        (
            {"train.swa_start": 3.0, "train.ema_decay": 0.9},
            "but a run has one average of the weights: set config.train.ema_decay=0.0",
        ),
        (
            {"optimizer.nesterov": True},
            "nesterov is an option of sgd, but config.optimizer.name is adamw: set it to sgd",
        ),
        (
            {"train.swa_start": 10.0},
            "swa_start is 10.0: it must be below config.train.num_epochs, 10",
        ),
        (
            {"train.cutmix": 0.5, "train.batch_size": 62},
            "each of the 2 devices has 31 of a batch: use config.train.batch_size=60",
        ),
    ],
)
def test_options_that_do_not_fit_together_are_named(changes, message):
    config = default.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=re.escape(message)):
        configs.check(config, num_devices=2)


def test_a_share_that_does_not_divide_among_the_devices_is_named():
    config = default.get_config()
    config.data.synthetic.update({"path": "somewhere", "share": 0.01})  # 1 of 64
    with pytest.raises(
        UserError, match=r"1 images per batch, which is not divisible.*use 0\.03125"
    ):
        configs.check(config, num_devices=2)


def test_only_attacks_of_the_suite_are_exported():
    config = evaluate.get_config("autoattack")
    config.evaluation.export = ("autoattack", "pgd")
    with pytest.raises(
        UserError, match=r"export names 'pgd', which is not an attack .*: autoattack, pgd40"
    ):
        configs.check(config, num_devices=2)


def claim(workdir, config):
    with claimed(workdir, config):
        pass


def test_a_workdir_keeps_its_config(tmp_path):
    config = default.get_config()
    claim(tmp_path / "run", config)
    claim(tmp_path / "run", config)
    assert json.loads(read(tmp_path / "run").to_json()) == json.loads(config.to_json())


def test_a_workdir_of_another_config_is_refused_and_left_alone(tmp_path):
    config = default.get_config()
    claim(tmp_path, config)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    before = (tmp_path / "config.json").read_text()
    config.train.num_epochs = 3
    config.attack.eps_end = 0.2
    with pytest.raises(UserError) as error:
        claim(tmp_path, config)
    assert "config.train.num_epochs was 10, is 3" in str(error.value)
    assert "config.attack.eps_end was 0.1, is 0.2" in str(error.value)
    assert (tmp_path / "config.json").read_text() == before


RESULTS = (
    "checkpoints/1/SHA256SUMS",
    "interrupted/0/SHA256SUMS",
    "damaged_checkpoints/0_epoch_1",
    "resume_cache_last/x.npz",
    "ledger_last/x.npz",  # its name in earlier versions
    "evaluation.json",
    "evaluator/checkpoints/1/SHA256SUMS",
    "judge/checkpoints/1/SHA256SUMS",
)


@pytest.mark.parametrize("result", RESULTS)
def test_each_result_of_a_run_keeps_its_config(tmp_path, result):
    config = default.get_config()
    claim(tmp_path, config)
    (tmp_path / result).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / result).touch()
    config.seed = 7
    with pytest.raises(UserError, match=r"config\.seed was 0, is 7"):
        claim(tmp_path, config)


def test_a_workdir_without_results_takes_a_corrected_config(tmp_path):
    config = default.get_config()
    claim(tmp_path, config)
    # What is there of a run that ended before its first result.
    (tmp_path / "metrics.jsonl").touch()
    for folder in ("checkpoints/1.partial", "tensorboard", "ledger", "checkpoints/.DS_Store"):
        (tmp_path / folder).mkdir(parents=True)
    config.seed = 7
    claim(tmp_path, config)
    assert read(tmp_path).seed == 7


def test_the_place_of_the_data_may_change(tmp_path):
    config = default.get_config()
    claim(tmp_path, config)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    config.data.data_dir = "elsewhere"
    config.compilation_cache = False
    claim(tmp_path, config)


def test_a_path_that_was_kept_with_its_home_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = default.get_config()
    config.data.synthetic.path = "~/samples"
    claim(tmp_path, config)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    config.data.synthetic.path = "/home/me/samples"
    claim(tmp_path, config)


@pytest.mark.parametrize("inside", ["checkpoints", "checkpoints/5", "config.json"])
def test_a_path_inside_a_workdir_is_reported(tmp_path, inside):
    claim(tmp_path, default.get_config())
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(UserError, match=f"is inside the workdir of a run: pass {tmp_path}"):
        read(tmp_path / inside)


def test_a_workdir_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}/x does not exist: pass the workdir of a run"):
        read(tmp_path / "x")


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json"):
        read(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot read"):
        read(tmp_path)


def test_a_workdir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"cannot write .*: pass another --workdir"):
            claim(workdir, default.get_config())


def test_evaluation_and_training_share_the_default_attack_suite():
    assert evaluate.get_config().evaluation == default.get_config().evaluation


@pytest.mark.parametrize(
    ("attack", "changes", "message"),
    [
        ("nes", {"chunk_size": 1}, "chunk_size is 1: it must be an integer from 2"),
        ("nes", {"num_queries": 3e9}, "num_queries is 3000000000.0: it must be an integer"),
        ("nes", {"num_queries": 3 * 10**9}, "num_queries is 3000000000: it must be an integer"),
        ("apgd", {"num_steps": 0}, "num_steps is 0: it must be an integer from 1"),
        (
            "apgd",
            {"num_steps": 10**8, "num_restarts": 100},
            "is 10000000100: it must be 2147483647",
        ),
        (
            "pgd",
            {"num_restarts": 3, "random_start": False},
            "num_restarts is 3, but without random_start all",
        ),
        ("pgd", {"loss": "kl", "random_start": False}, "loss is 'kl', whose gradient is 0"),
        ("fgsm", {"loss": "kl"}, "loss is 'kl': it must be one of"),
        ("square", {"share": 1.5}, "share is 1.5: it must be from 0 to 1"),
        ("autoattack", {"version": "fast"}, "version is 'fast': it must be one of standard"),
    ],
)
def test_what_an_attack_refuses_its_config_refuses_at_once(attack, changes, message):
    needed = {
        "nes": {"step_size": 0.1, "num_queries": 100},
        "pgd": {"step_size": 0.1, "num_steps": 1},
        "square": {"num_queries": 10},
    }.get(attack, {})
    config = evaluate.get_config()
    config.evaluation.attacks = ConfigDict(
        {"mine": {"attack": attack, "eps": (0.1,), **needed, **changes}}
    )
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        configs.check(config, num_devices=2)
    assert str(raised.value).startswith("config.evaluation.attacks.mine.")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("data", "name"), [("cifar10", "flip"), ("digits", "none")])
def test_the_augmentation_follows_from_the_data_set(data, name):
    config = curriculum.get_config(data)
    (line,) = set_defaults(config)
    assert config.data.augmentation == name
    assert line.startswith(f"config.data.augmentation is '{name}', the default of {data}; it can")
    config.data.augmentation = "flip_crop_jitter"
    assert set_defaults(config) == []
    assert config.data.augmentation == "flip_crop_jitter"
