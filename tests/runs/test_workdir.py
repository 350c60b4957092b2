"""Stored configs of earlier versions."""

import json

import pytest

from jaxadv.configs import default, evaluate, gan
from jaxadv.core.types import UserError
from jaxadv.runs.workdir import (
    claimed,
    differences,
    expand_paths,
    load_dataset,
    migrate,
    read,
    trained_config,
)


def old_gan_config(classifier):
    """Return a config of a GAN as the first version stored it."""
    classifier = json.loads(classifier.to_json())
    classifier["model"]["defence"]["pni"]["granularity"] = "layer"
    judge = {"checkpoint": None, "num_samples": 2000, "classifier": classifier}
    return {"mode": "gan", "seed": 0, "judge": judge}


def test_the_config_of_an_earlier_version_equals_that_of_today(tmp_path):
    today = default.get_config()
    stored = json.loads(today.to_json())
    stored["model"]["defence"]["pni"]["granularity"] = "layer"
    for key in (
        *("swa_start", "label_smoothing", "cutmix", "mart_weight", "ikl_alpha", "ikl_beta"),
        *("awp_gamma", "gradient_alignment"),
    ):
        del stored["train"][key]
    del stored["optimizer"]["nesterov"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert differences(read(tmp_path), today) == []
    with claimed(tmp_path, today):
        pass
    today.seed = 7
    with pytest.raises(UserError, match=r"config\.seed was 0, is 7"), claimed(tmp_path, today):
        pass


def test_a_renamed_section_is_read_under_its_new_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(old_gan_config(default.get_config())))
    config = read(tmp_path, "gan")
    assert "judge" not in config
    assert config.evaluator.num_samples == 2000
    assert differences(config.evaluator.classifier, default.get_config()) == []


def test_a_config_of_a_version_with_two_data_sets_equals_that_of_today(tmp_path):
    today = default.get_config("digits")
    stored = json.loads(today.to_json())
    for key in ("source", "size", "channels", "streaming", "test_fraction"):
        del stored["data"][key]
    stored["data"]["name"] = "digits"
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert differences(read(tmp_path), today) == []
    assert len(load_dataset(read(tmp_path).data).test.labels) == 360
    today.data.source = "cifar10"
    assert differences(read(tmp_path), today) == ["config.data.source was digits, is cifar10"]


def test_the_path_of_the_data_may_differ(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    stored, asked = default.get_config("folder:~/pets"), default.get_config("folder:/data/pets")
    assert differences(stored, asked) == []
    asked.data.source = "npz:/data/pets"
    assert differences(stored, asked) == ["config.data.source was folder, is npz"]
    elsewhere = evaluate.get_config()
    elsewhere.data.source = "folder:/data/pets"
    assert differences(evaluate.get_config(), elsewhere) == []


def test_paths_of_data_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = gan.get_config("folder:~/pets")
    expand_paths(config)
    assert config.data.source == config.evaluator.classifier.data.source == "folder:/home/me/pets"
    config = evaluate.get_config()
    expand_paths(config)
    assert config.data.source is None


def test_an_evaluation_may_name_the_data_at_another_path(tmp_path):
    (tmp_path / "config.json").write_text(default.get_config("npz:/there/x.npz").to_json())
    trained = trained_config(tmp_path, "train", None, "npz:/here/x.npz")
    assert trained.data.source == "npz:/here/x.npz"
    assert trained_config(tmp_path, "train", None).data.source == "npz:/there/x.npz"
    message = "config.data.source is cifar10, the run in .* was trained on npz:/there/x.npz: give"
    with pytest.raises(UserError, match=message):
        trained_config(tmp_path, "train", None, "cifar10")


def test_a_config_of_today_is_not_changed():
    config = json.loads(default.get_config().to_json())
    assert migrate(config) == config
    old = migrate(old_gan_config(default.get_config()))
    assert migrate(old) == old


@pytest.mark.parametrize("content", ["[]", "1", "{"])
def test_a_stored_config_that_is_not_an_object_is_reported(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="cannot read"):
        read(tmp_path)
