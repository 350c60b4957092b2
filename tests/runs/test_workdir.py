"""Stored configs of earlier versions."""

import json

import pytest

from configs import default
from jaxadv.core.types import UserError
from jaxadv.runs.workdir import claimed, differences, migrate, read


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
