"""Edge cases of the command line: paths, values, environment variables, output, other data sets."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl import flags as absl_flags
from tiny_config import tiny_config

from jaxadv.cli import flags
from jaxadv.cli import job as job_module
from jaxadv.configs import curriculum, default, evaluate, gan, study
from jaxadv.core import devices
from jaxadv.core.files import user_path
from jaxadv.core.types import HostBatch, UserError
from jaxadv.data import Dataset
from jaxadv.evaluation import checkpoint as evaluation
from jaxadv.runs import checkpoints
from jaxadv.runs.workdir import check_dataset, claim_dataset, restore_classifier
from jaxadv.training import train

# Raised by ml_collections when it loads a config.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ROOT = Path(__file__).parent.parent
CURRICULUM = ("--config", "configs/curriculum.py:digits")


@pytest.fixture
def parse(monkeypatch):
    """Return a function that parses arguments as the command line does and returns the config."""

    def parsed(*arguments):
        argv = ["run.py", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)
        sys.modules.pop(
            "config_config", None
        )  # otherwise the module of the previous config is reused
        flags.parse_flags(argv)
        return flags.CONFIG.value

    yield parsed
    for name in [name for name in absl_flags.FLAGS if name.startswith("config.")]:
        delattr(absl_flags.FLAGS, name)
    for name in ("config", "workdir"):
        absl_flags.FLAGS[name].unparse()
    absl_flags.FLAGS.unparse_flags()


@pytest.mark.parametrize(
    ("text", "eps"),
    [
        ("8/255", (8 / 255,)),
        (" 8 / 255 ", (8 / 255,)),
        ("(8/255,)", (8 / 255,)),
        ("[8/255]", (8 / 255,)),
        ("4/255, 8/255", (4 / 255, 8 / 255)),
        ("(0.01, 8/255)", (0.01, 8 / 255)),
        ("0.1", (0.1,)),
    ],
)
def test_radii_can_be_fractions(parse, text, eps):
    config = parse(*CURRICULUM, f"--config.evaluation.attacks.fgsm.eps={text}")
    assert config.evaluation.attacks.fgsm.eps == eps


def test_radii_of_a_repeated_flag_can_be_fractions(parse):
    flag = "--config.evaluation.attacks.fgsm.eps="
    config = parse(*CURRICULUM, f"{flag}4/255", f"{flag}8/255")
    assert config.evaluation.attacks.fgsm.eps == (4 / 255, 8 / 255)


def test_numbers_can_be_fractions_and_names_can_have_slashes(parse):
    config = parse(*CURRICULUM, "--config.attack.eps_end=8/255", "--config.evaluation.export=a/b")
    assert config.attack.eps_end == 8 / 255
    assert config.evaluation.export == ("a/b",)


def test_options_of_a_model_need_no_declaration(parse):
    options = {"width": "3", "rate": "1/4", "sizes": "(3, 4)", "norm": "batch"}
    flags_of_options = [f"--config.model.options.{key}={text}" for key, text in options.items()]
    config = parse(*CURRICULUM, *flags_of_options, "--config.seed=7")
    expected = {"width": 3, "rate": 0.25, "sizes": (3, 4), "norm": "batch"}
    assert config.model.options.to_dict() == expected
    assert config.seed == 7
    nested = "evaluator.classifier.model.options"
    config = parse("--config", "configs/gan.py:digits", f"--config.{nested}.width=3")
    assert config.evaluator.classifier.model.options.width == 3


def test_none_unsets_an_optional_key(parse):
    optional = ("data.data_dir", "data.synthetic.path", "model.activation", "model.dropout")
    changed = [f"--config.{key}=None" for key in (*optional, "evaluation.num_examples")]
    config = parse(*CURRICULUM, *changed)
    assert config.data.data_dir is None
    assert config.data.synthetic.path is None
    assert config.model.activation is None
    assert config.model.dropout is None
    assert config.evaluation.num_examples is None


def test_none_overrides_the_value_of_a_config(parse):
    config = parse(
        "--config", "configs/evaluate.py:blackbox", "--config.evaluation.num_examples=None"
    )
    assert config.evaluation.num_examples is None


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--config.evaluation.attacks.fgsm.eps=8/0",
            "eps=8/0 is not a tuple of numbers: write 8/255",
        ),
        ("--config.model.options.width", "options.width has no value: write it after ="),
        ("--config.modl.options.width=3", "modl"),
        ("--config.evaluation.attacks.fgsm.eps=(8/255", "is not a tuple of numbers: write 8/255"),
        ("--config.evaluation.attacks.fgsm.eps=", "is not a tuple of numbers: write 8/255"),
        ("--config.attack.eps_end=8/0", "it is not a number, nor a fraction such as 8/255"),
        ("--config.attack.eps_end=a/b", "it is not a number, nor a fraction such as 8/255"),
        ("--config.attack.eps_end=None", "--config.attack.eps_end is None: pass a value"),
        ("--config.seed=None", "--config.seed is None: pass a value"),
        ("--config.data.data_dir=", "--config.data.data_dir is empty: pass a value, or None"),
        ("--config.model.name=", "--config.model.name is empty: pass a value"),
        ("--workdir=", "--workdir is empty: pass a folder"),
    ],
)
def test_an_invalid_value_is_reported_in_one_line(parse, argument, message):
    with pytest.raises(SystemExit) as error:
        parse(*CURRICULUM, argument)
    assert error.value.code.startswith("error: ")
    assert message in error.value.code
    assert "\n" not in error.value.code


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def get_config(:", "SyntaxError"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        ("x = 1 / 0", "ZeroDivisionError"),
        ("assert False", "AssertionError"),
        ("raise KeyError", "KeyError"),
        ("", "get_config"),
        ("def get_config(): return None", "no config"),
        ("from ml_collections import ConfigDict as get_config", "mode"),
    ],
)
def test_an_error_in_a_config_file_is_reported_in_one_line(parse, tmp_path, source, message):
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(SystemExit) as error:
        parse("--config", tmp_path / "mine.py")
    assert error.value.code.startswith("error: ")
    assert message in error.value.code
    assert "\n" not in error.value.code


def test_the_home_directory_is_expanded_in_the_path_of_a_config(parse, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text((ROOT / "configs" / "evaluate.py").read_text())
    assert parse("--config=~/mine.py").mode == "evaluate"


@pytest.fixture
def job(monkeypatch):
    """Return a function that runs the command line with a config and a value of --workdir.

    The job of the mode is replaced. The function returns the arguments that the job would get.
    """

    def ran(config, workdir):
        given = []
        values = {"CONFIG": config, "WORKDIR": workdir, "DEBUG": False, "DISTRIBUTED": False,
                  "QUIET": False, "JSON": False}  # fmt: skip
        no_processes = dict.fromkeys(("COORDINATOR", "NUM_PROCESSES", "PROCESS_ID"))
        for name, value in {**values, **no_processes}.items():
            monkeypatch.setattr(flags, name, SimpleNamespace(value=value))
        name = job_module._JOBS[config.mode]
        monkeypatch.setattr(f"jaxadv.{name}.run", lambda *arguments: given.extend(arguments))
        monkeypatch.setattr("jaxadv.core.devices.set_up_cpu", lambda: None)
        monkeypatch.setattr("warnings.showwarning", None)  # restored afterwards
        job_module._run_job()
        return given

    return ran


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        (default.get_config(), ("data.data_dir", "data.synthetic.path")),
        (evaluate.get_config(), ("checkpoint", "data.data_dir")),
        (gan.get_config(), ("data.data_dir", "evaluator.checkpoint", "sampling.path")),
        (study.get_config(), ("data.data_dir", "study.results")),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_the_home_directory_is_expanded_in_all_paths(job, monkeypatch, config, keys):
    monkeypatch.setenv("HOME", "/home/me")
    config = config.copy_and_resolve_references()
    with config.ignore_type():
        config.update_from_flattened_dict(dict.fromkeys(keys, "~/x"))
    given, workdir = job(config, "~/runs/x")
    assert workdir == Path("/home/me/runs/x")
    for key in keys:
        value = given
        for part in key.split("."):
            value = value[part]
        assert value == "/home/me/x"


def test_the_default_workdir_of_an_evaluation_is_inside_that_of_its_run(job, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = evaluate.get_config()
    config.checkpoint = "~/x"
    for unset in (None, "None"):
        assert job(config, unset)[1] == Path("/home/me/x/evaluate")


@pytest.mark.parametrize(
    ("argument", "folder"), [("", "evaluate"), (":default", "evaluate"), (":rand", "rand")]
)
def test_each_suite_has_its_own_default_workdir(parse, argument, folder):
    parse(f"--config=configs/evaluate.py{argument}", "--config.checkpoint=runs/x")
    assert job_module._get_workdir() == Path("runs/x") / folder


@pytest.mark.parametrize(
    ("argument", "folder"),
    [
        ("", "curriculum"),
        (":digits", "curriculum_digits"),
        (":folder:../data/pets", "curriculum_folder_.._data_pets"),
        (":imagenette/160px-v2:1.0.0", "curriculum_imagenette_160px-v2_1.0.0"),
    ],
)
def test_the_default_workdir_of_a_source_of_data_is_one_folder(parse, argument, folder):
    parse(f"--config=configs/curriculum.py{argument}")
    assert job_module._get_workdir() == Path("runs") / folder


def test_an_unknown_home_directory_is_reported():
    with pytest.raises(UserError, match="home directory in ~nobody_of_this_name/x is unknown"):
        user_path("~nobody_of_this_name/x")


def error_line(*arguments, **environment):
    """Return the error message, which must be the only output."""
    result = subprocess.run(
        [sys.executable, "run.py", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def test_an_unavailable_platform_is_reported(tmp_path):
    line = error_line(*CURRICULUM, "--workdir", tmp_path / "run", JAX_PLATFORMS="nonsense")
    assert line.startswith("error: JAX cannot use JAX_PLATFORMS=nonsense (")
    assert line.endswith("set JAX_PLATFORMS=cpu, or unset it")
    assert not (tmp_path / "run").exists()


def test_an_invalid_environment_variable_of_jax_is_reported():
    line = error_line(*CURRICULUM, JAX_ENABLE_X64="maybe")
    assert re.match("error: .*'maybe'.*JAX_ENABLE_X64.*correct that environment variable", line)


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("no chip\nat all")])
def test_devices_that_do_not_start_are_reported_in_one_line(monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    with pytest.raises(UserError, match=r"JAX cannot initialise .*set JAX_PLATFORMS=cpu") as raised:
        devices.check_devices()
    assert "\n" not in str(raised.value)


def test_environment_variables_do_not_change_the_precision_of_a_run():
    settings = {"jax_enable_x64": True, "jax_numpy_dtype_promotion": "strict"}
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        with pytest.warns(UserWarning, match="is ignored") as warned:
            devices.set_up_arithmetic()
        assert {name: getattr(jax.config, name) for name in settings} == before
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    assert [str(warning.message).split("=")[0] for warning in warned] == [*map(str.upper, settings)]
    devices.set_up_arithmetic()  # without a warning


def test_the_command_line_sets_the_precision_before_the_devices_start(job, monkeypatch):
    calls = []
    monkeypatch.setattr(devices, "set_up_arithmetic", lambda: calls.append("arithmetic"))
    monkeypatch.setattr(devices, "check_devices", lambda: calls.append("devices"))
    job(evaluate.get_config(), "out")
    assert calls == ["arithmetic", "devices"]


def test_the_home_directory_is_expanded_in_the_path_of_the_compilation_cache(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "~/cache")
    updates = []
    monkeypatch.setattr(jax.config, "update", lambda *update: updates.append(update))
    devices.enable_compilation_cache()
    assert updates == [("jax_compilation_cache_dir", "/home/me/cache")]


def test_the_command_line_protects_its_output():
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "run.py", "--help"], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert result.stderr == b""


def dataset(name="My scans, copy 1", side=32, classes=tuple("0123456789")):
    split = HostBatch(np.zeros((200, side, side, 3), np.uint8), np.zeros(200, np.int32))
    return Dataset(name, classes, split, split, split)


@pytest.mark.parametrize(
    ("other", "description"),
    [
        (dataset("digits, not CIFAR"), "'digits, not CIFAR' (10 classes, images of 32 x 32 x 3)"),
        (dataset(side=28), "'My scans, copy 1' (10 classes, images of 28 x 28 x 3)"),
        (dataset(classes=("cat", "dog")), "'My scans, copy 1' (2 classes, images of 32 x 32 x 3)"),
    ],
)
def test_evaluating_a_run_on_another_data_set_raises_an_error(tmp_path, other, description):
    claim_dataset(tmp_path, dataset())
    check_dataset(tmp_path, dataset())
    check_dataset(tmp_path, dataset("My scans, copy 2"))
    with pytest.raises(UserError) as error:
        restore_classifier(curriculum.get_config("digits"), other, tmp_path, "best")
    message = str(error.value)
    assert f"{tmp_path} was trained on 'My scans, copy 1' (10 classes, images of 32" in message
    assert f"this is {description}: use the data set of the run" in message
    assert "\n" not in message


def test_a_failed_evaluation_on_another_data_set_creates_no_workdir(tmp_path):
    trained = curriculum.get_config("digits")
    (tmp_path / "config.json").write_text(trained.to_json())
    claim_dataset(tmp_path, dataset())
    config = evaluate.get_config()
    config.checkpoint = str(tmp_path)
    with pytest.raises(UserError, match=r"was trained on 'My scans, copy 1'.*this is 'digits, not"):
        evaluation.run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"name": "x"}', '{"name": 1, "image_shape": 2}'])
def test_a_damaged_record_of_the_data_set_is_reported(tmp_path, content):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=r"dataset\.json is damaged"):
        check_dataset(tmp_path, dataset())


class StopError(Exception):
    pass


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return a function that starts a training in a workdir, up to its initial state."""

    def stop(*_):
        raise StopError

    monkeypatch.setattr(train, "init_state", stop)

    def started(data):
        with pytest.raises(StopError):
            train.train(tiny_config(), data, tmp_path)
        return json.loads((tmp_path / "config.json").read_text())["dataset"]

    return started


def test_a_training_records_its_data_set_and_refuses_another(tmp_path, start):
    assert start(dataset())["name"] == "My scans, copy 1"
    assert start(dataset("other"))["name"] == "other"  # no results before
    checkpoints.save(tmp_path, 1, {}, {"validation_accuracy_robust": 0.5})
    with pytest.raises(UserError, match="was trained on 'other'"):
        start(dataset())
    assert start(dataset("other"))["name"] == "other"


def test_a_damaged_evaluation_is_reported(tmp_path):
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(UserError, match=r"evaluation\.json is damaged"):
        train._read_warnings(tmp_path / "evaluation.json")


def test_a_run_without_a_record_of_its_data_set_resumes(tmp_path, start):
    checkpoints.save(tmp_path, 1, {}, {"validation_accuracy_robust": 0.5})
    with pytest.raises(FileNotFoundError):
        start(dataset())  # and no record is written
