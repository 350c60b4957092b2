"""The edges of the command line: paths, values, environment variables, output and stray data."""

import json
import os
import re
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl import flags

import run as program
from configs import curriculum, default, evaluate, gan, study
from jaxadv import checkpoint, parallel, terminal, train
from jaxadv import evaluate as evaluation
from jaxadv.data import Dataset
from jaxadv.files import user_path
from jaxadv.types import Batch, UserError

# Of ml_collections, which loads configs so.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ROOT = Path(__file__).parent.parent
CURRICULUM = ("--config", "configs/curriculum.py:digits")


@pytest.fixture
def parse(monkeypatch):
    """Returns a function that parses arguments as the command line does; it returns the config."""

    def parsed(*arguments):
        argv = ["run.py", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)
        sys.modules.pop("config_config", None)  # the last one's, which would be filled up
        program._parse(argv)
        return program._CONFIG.value

    yield parsed
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    for name in ("config", "workdir"):
        flags.FLAGS[name].unparse()
    flags.FLAGS.unparse_flags()


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
def test_radii_may_be_fractions(parse, text, eps):
    config = parse(*CURRICULUM, f"--config.evaluation.attacks.fgsm.eps={text}")
    assert config.evaluation.attacks.fgsm.eps == eps


def test_radii_of_a_repeated_flag_may_be_fractions(parse):
    flag = "--config.evaluation.attacks.fgsm.eps="
    config = parse(*CURRICULUM, f"{flag}4/255", f"{flag}8/255")
    assert config.evaluation.attacks.fgsm.eps == (4 / 255, 8 / 255)


def test_numbers_may_be_fractions_and_names_may_have_slashes(parse):
    config = parse(*CURRICULUM, "--config.attack.eps_end=8/255", "--config.evaluation.export=a/b")
    assert config.attack.eps_end == 8 / 255
    assert config.evaluation.export == ("a/b",)


def test_none_is_no_value_of_an_optional_key(parse):
    optional = ("data.data_dir", "data.synthetic.path", "model.activation", "model.dropout")
    changed = [f"--config.{key}=None" for key in (*optional, "evaluation.num_examples")]
    config = parse(*CURRICULUM, *changed)
    assert config.data.data_dir is None
    assert config.data.synthetic.path is None
    assert config.model.activation is None
    assert config.model.dropout is None
    assert config.evaluation.num_examples is None


def test_none_undoes_the_value_of_a_config(parse):
    config = parse(
        "--config", "configs/evaluate.py:blackbox", "--config.evaluation.num_examples=None"
    )
    assert config.evaluation.num_examples is None


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.evaluation.attacks.fgsm.eps=8/0", "eps=8/0 is no tuple of numbers: write 8/255"),
        ("--config.evaluation.attacks.fgsm.eps=(8/255", "is no tuple of numbers: write 8/255"),
        ("--config.evaluation.attacks.fgsm.eps=", "is no tuple of numbers: write 8/255"),
        ("--config.attack.eps_end=8/0", "it is no number, and no fraction such as 8/255"),
        ("--config.attack.eps_end=a/b", "it is no number, and no fraction such as 8/255"),
        ("--config.attack.eps_end=None", "--config.attack.eps_end is None: give a value"),
        ("--config.seed=None", "--config.seed is None: give a value"),
        ("--config.data.data_dir=", "--config.data.data_dir is empty: give a value, or None"),
        ("--config.model.name=", "--config.model.name is empty: give a value"),
        ("--workdir=", "--workdir is empty: give a folder"),
    ],
)
def test_a_value_that_cannot_be_meant_is_told_in_one_line(parse, argument, message):
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
def test_a_config_file_that_fails_is_told_in_one_line(parse, tmp_path, source, message):
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(SystemExit) as error:
        parse("--config", tmp_path / "mine.py")
    assert error.value.code.startswith("error: ")
    assert message in error.value.code
    assert "\n" not in error.value.code


def test_a_config_file_may_lie_in_the_home_directory(parse, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text((ROOT / "configs" / "evaluate.py").read_text())
    assert parse("--config=~/mine.py").mode == "evaluate"


@pytest.fixture
def job(monkeypatch):
    """Returns a function that runs the command line on a config, and returns what its job is given.

    Args: config, its mode's job being replaced, and --workdir.
    """

    def ran(config, workdir):
        given = []
        values = {"_CONFIG": config, "_WORKDIR": workdir, "_DEBUG": False, "_DISTRIBUTED": False}
        for name, value in {**values, "_COORDINATOR": None, "_NUM_PROCESSES": None}.items():
            monkeypatch.setattr(program, name, SimpleNamespace(value=value))
        name = program._JOBS[config.mode]
        monkeypatch.setattr(f"jaxadv.{name}.run", lambda *arguments: given.extend(arguments))
        monkeypatch.setattr("jaxadv.parallel.set_up_cpu", lambda: None)
        monkeypatch.setattr("warnings.showwarning", None)  # put back afterwards
        program._run()
        return given

    return ran


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        (default.get_config(), ("data.data_dir", "data.synthetic.path")),
        (evaluate.get_config(), ("checkpoint", "data.data_dir")),
        (gan.get_config(), ("data.data_dir", "judge.checkpoint", "sampling.path")),
        (study.get_config(), ("data.data_dir", "study.results")),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_a_home_directory_is_expanded_in_every_path(job, monkeypatch, config, keys):
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


def test_an_evaluation_goes_into_the_workdir_of_its_run(job, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = evaluate.get_config()
    config.checkpoint = "~/x"
    for unset in (None, "None"):
        assert job(config, unset)[1] == Path("/home/me/x/evaluate")


def test_an_unknown_home_directory_is_named():
    with pytest.raises(UserError, match="home directory in ~nobody_of_this_name/x is not known"):
        user_path("~nobody_of_this_name/x")


def told(*arguments, **environment):
    """Returns the one line that the program ends with."""
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


def test_a_platform_that_is_not_there_is_named(tmp_path):
    line = told(*CURRICULUM, "--workdir", tmp_path / "run", JAX_PLATFORMS="nonsense")
    assert line.startswith("error: JAX_PLATFORMS is nonsense, but JAX cannot use it (")
    assert line.endswith("set JAX_PLATFORMS=cpu, or unset it")
    assert not (tmp_path / "run").exists()


def test_an_environment_variable_that_jax_cannot_read_is_named():
    line = told(*CURRICULUM, JAX_ENABLE_X64="maybe")
    assert re.match("error: .*'maybe'.*JAX_ENABLE_X64.*correct that environment variable", line)


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("no chip\nat all")])
def test_devices_that_do_not_start_are_told_in_one_line(monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    with pytest.raises(UserError, match=r"JAX cannot start .*set JAX_PLATFORMS=cpu") as told:
        parallel.check_devices()
    assert "\n" not in str(told.value)


def test_the_types_of_a_run_do_not_depend_on_the_environment():
    settings = {"jax_enable_x64": True, "jax_numpy_dtype_promotion": "strict"}
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        with pytest.warns(UserWarning, match="runs ignore it") as warned:
            parallel.set_up_arithmetic()
        assert {name: getattr(jax.config, name) for name in settings} == before
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    assert [str(warning.message).split()[0] for warning in warned] == [*map(str.upper, settings)]
    parallel.set_up_arithmetic()  # says nothing


def test_the_command_line_sets_the_types_before_the_job(job, monkeypatch):
    calls = []
    monkeypatch.setattr(parallel, "set_up_arithmetic", lambda: calls.append("types"))
    monkeypatch.setattr(parallel, "check_devices", lambda: calls.append("devices"))
    job(evaluate.get_config(), "out")
    assert calls == ["types", "devices"]


def test_a_compilation_cache_may_lie_in_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "~/cache")
    updates = []
    monkeypatch.setattr(jax.config, "update", lambda *update: updates.append(update))
    parallel.keep_compilations()
    assert updates == [("jax_compilation_cache_dir", "/home/me/cache")]


PRINTS = """
import sys
from pathlib import Path
from jaxadv.terminal import protect_output
protect_output()
for _ in range(3):
    print("Fr\\u00e9chet \\u2013 \\u221e \\u4e2d \\udcff", flush=True)
    print("progress \\u221e", file=sys.stderr)
Path(sys.argv[1]).touch()
"""


def prints(tmp_path, encoding, stdout):
    done = tmp_path / "done"
    result = subprocess.run(
        [sys.executable, "-c", PRINTS, done],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": encoding},
        stdout=stdout,
        stderr=subprocess.PIPE,
    )
    assert done.exists()
    assert result.returncode == 0
    return result


def test_a_closed_pipe_ends_quietly(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    result = prints(tmp_path, "utf-8", writer)
    os.close(writer)
    assert result.stderr.decode("utf-8") == 3 * "progress ∞\n"


def test_an_encoding_without_a_character_ends_no_run(tmp_path):
    result = prints(tmp_path, "ascii", subprocess.PIPE)
    assert result.stdout == 3 * b"Frechet - inf \\u4e2d \\udcff\n"
    assert result.stderr == 3 * b"progress inf\n"


def test_the_command_line_protects_its_output():
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "run.py", "--help"], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert result.stderr == b""


EVALUATION = {
    "model": "net",
    "dataset": "digits \N{EN DASH} mine",
    "checkpoint": {"which": "best", "epoch": 5},
    "n": 10,
    "stochastic": True,
    "clean": {
        "accuracy": 0.5,
        "ci95": [0.2, 0.8],
        "single_pass": {"mean": 0.5, "std": 0.01},
        "majority": {"accuracy": 0.5},
    },
    "attacks": {
        "fgsm/0.03": {
            "attack": "fgsm", "norm": "linf", "eps": 0.03, "accuracy": 0.1, "ci95": [0.0, 0.4],
            "seconds": 1.0, "single_pass": {"mean": 0.1, "std": 0.01},
            "majority": {"accuracy": 0.1},
        }
    },
    "aggregated_score": {},
    "worst_case": {},
}  # fmt: skip


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_the_table_is_aligned_in_the_characters_of_the_terminal(monkeypatch, encoding):
    output = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(output, encoding=encoding))
    monkeypatch.setenv("COLUMNS", "120")
    terminal.show(EVALUATION)
    sys.stdout.flush()
    title, *lines = output.getvalue().decode(encoding).splitlines()
    assert title.strip().startswith("net on digits")
    assert len({len(line) for line in lines}) == 1
    text = "\n".join(lines)
    assert ("Linf" in text) == (encoding != "utf-8")
    assert ("50.00 +- 1.00" in text) == (encoding == "ascii")


def dataset(name="My scans, copy 1", side=32, classes=tuple("0123456789")):
    split = Batch(np.zeros((200, side, side, 3), np.uint8), np.zeros(200, np.int32))
    return Dataset(name, classes, split, split, split)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (dataset("digits, not CIFAR"), "'digits, not CIFAR' (10 classes, images of 32 x 32 x 3)"),
        (dataset(side=28), "'My scans, copy 1' (10 classes, images of 28 x 28 x 3)"),
        (dataset(classes=("cat", "dog")), "'My scans, copy 1' (2 classes, images of 32 x 32 x 3)"),
    ],
)
def test_a_run_is_not_evaluated_on_another_data_set(tmp_path, other, words):
    evaluation.claim_dataset(tmp_path, dataset())
    evaluation.check_dataset(tmp_path, dataset())
    evaluation.check_dataset(tmp_path, dataset("My scans, copy 2"))
    with pytest.raises(UserError) as error:
        evaluation.restore_classifier(curriculum.get_config("digits"), other, tmp_path, "best")
    message = str(error.value)
    assert f"{tmp_path} was trained on 'My scans, copy 1' (10 classes, images of 32" in message
    assert f"this is {words}: use the data set of the run" in message
    assert "\n" not in message


def test_an_evaluation_of_a_run_on_another_data_set_leaves_nothing(tmp_path):
    trained = curriculum.get_config("digits")
    evaluation.claim_dataset(tmp_path, dataset())
    (tmp_path / "config.json").write_text(trained.to_json())
    config = evaluate.get_config()
    config.checkpoint = str(tmp_path)
    with pytest.raises(UserError, match=r"was trained on 'My scans, copy 1'.*this is 'digits, not"):
        evaluation.run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"name": "x"}', '{"name": 1, "image_shape": 2}'])
def test_a_damaged_record_of_the_data_set_is_named(tmp_path, content):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=r"dataset\.json is damaged"):
        evaluation.check_dataset(tmp_path, dataset())


class StopError(Exception):
    pass


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Returns a function that begins a training in one workdir, up to its first state."""

    def stop(*_):
        raise StopError

    monkeypatch.setattr(train, "init_state", stop)

    def begun(data):
        with pytest.raises(StopError):
            train.train(curriculum.get_config("digits"), data, tmp_path)
        return json.loads((tmp_path / "dataset.json").read_text())

    return begun


def test_a_training_records_its_data_set_and_keeps_to_it(tmp_path, begin):
    assert begin(dataset())["name"] == "My scans, copy 1"
    assert begin(dataset("other"))["name"] == "other"  # nothing was computed before
    checkpoint.save(tmp_path, 1, {}, {"validation_accuracy_robust": 0.5})
    with pytest.raises(UserError, match="was trained on 'other'"):
        begin(dataset())
    assert begin(dataset("other"))["name"] == "other"


def test_an_evaluation_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(UserError, match=r"evaluation\.json is damaged"):
        train._warnings_of(tmp_path / "evaluation.json")


def test_a_run_without_a_record_of_its_data_set_continues(tmp_path, begin):
    checkpoint.save(tmp_path, 1, {}, {"validation_accuracy_robust": 0.5})
    with pytest.raises(FileNotFoundError):
        begin(dataset())  # and no record is made up
