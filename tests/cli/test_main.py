"""The command `jaxadv`: its arguments, its lists, and what it prints."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from jaxadv.attacks import ATTACKS
from jaxadv.cli import flags, job, main
from jaxadv.configs import curriculum
from jaxadv.core.command_line import command_line
from jaxadv.evaluation import checkpoint


@pytest.fixture(autouse=True)
def unprotected(monkeypatch):
    """Leave the streams as they are: those of pytest have no file."""
    monkeypatch.setattr("jaxadv.reports.terminal.protect_output", lambda: None)


def job_flags(*arguments):
    return main.job_flags(main.make_parser().parse_args(arguments))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "curriculum:digits"], ["--config=curriculum:digits", "--config.mode=train"]),
        (
            ["evaluate", "runs/x", "--workdir", "out", "--json"],
            ["--config=evaluate", "--config.checkpoint=runs/x", "--config.mode=evaluate",
             "--workdir=out", "--json"],
        ),
        (
            ["evaluate", "runs/x", "--config", "mine.py"],
            ["--config=mine.py", "--config.checkpoint=runs/x", "--config.mode=evaluate"],
        ),
        (["gan"], ["--config=gan", "--config.mode=gan"]),
        (["sample", "gan:digits"], ["--config=gan:digits", "--config.mode=sample"]),
        (["study"], ["--config=study", "--config.mode=study"]),
        (
            ["train", "fast", "--num_processes", "2", "--quiet", "--debug"],
            ["--config=fast", "--config.mode=train", "--quiet", "--num_processes=2", "--debug"],
        ),
    ],
)  # fmt: skip
def test_a_command_gives_the_flags_of_its_job(arguments, expected):
    assert job_flags(*arguments) == expected


def test_a_command_passes_values_of_its_config(monkeypatch):
    given = []
    monkeypatch.setattr(main, "run_command", given.extend)
    values = ["--config.attack.eps_end=8 / 255", "--config.seed", "3", "--config.evaluation.x"]
    monkeypatch.setattr(sys, "argv", ["jaxadv", "train", *values[:3], "fast", values[3]])
    main.main()
    assert given == ["jaxadv", "--config=fast", "--config.mode=train", *values]


def test_an_evaluation_takes_a_suite_or_a_config():
    with pytest.raises(SystemExit, match="error: evaluate takes a suite or --config, not both"):
        job_flags("evaluate", "runs/x", "autoattack", "--config", "mine.py")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dance"], "invalid choice: 'dance'"),
        (["attacks", "--loud"], "unrecognized arguments: --loud"),
        (["attacks", "--config.seed=1"], "attacks has no config: omit --config.seed=1"),
        (["train", "fast", "--config=curriculum"], "unrecognized arguments: --config=curriculum"),
        (["train"], "the following arguments are required: CONFIG"),
        ([], "commands:"),
    ],
)
def test_wrong_arguments_end_the_program(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["jaxadv", *arguments])
    with pytest.raises(SystemExit) as error:
        main.main()
    assert error.value.code == 2
    assert message in "".join(capsys.readouterr())


def test_a_report_without_a_run_is_an_error_of_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["jaxadv", "report", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match=r"error: no workdir .*none: give the folder"):
        main.main()


def test_a_report_of_other_files_is_an_error_of_one_line(monkeypatch, tmp_path):
    (tmp_path / "evaluation.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"mode": "train"}')
    (tmp_path / "evaluation.json").write_text('{"model": "net"}')
    monkeypatch.setattr(sys, "argv", ["jaxadv", "report", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"error: a file of .* is not that of a run .KeyError"):
        main.main()
    monkeypatch.setattr(sys, "argv", ["jaxadv", "report", str(tmp_path), "--out", "x.html"])
    with pytest.raises(SystemExit, match="error: --out is the page of a comparison"):
        main.main()


def test_the_report_of_a_gan_is_that_of_a_gan(monkeypatch, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"mode": "gan"}')
    monkeypatch.setattr(sys, "argv", ["jaxadv", "report", str(tmp_path)])
    main.main()
    assert (
        "Generator" in (tmp_path / "report.html").read_text()
        or "GAN" in (tmp_path / "report.html").read_text()
    )


def test_the_lists_are_complete(monkeypatch, capsys):
    for command, names in {"attacks": ATTACKS, "configs": flags.config_names()}.items():
        monkeypatch.setattr(sys, "argv", ["jaxadv", command])
        main.main()
        listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
        assert set(names) < set(listed)


def test_help_fits_a_screen_and_names_each_command(capsys):
    with pytest.raises(SystemExit):
        main.make_parser().parse_args(["--help"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) < 40
    for command in ("train", "evaluate", "gan", "sample", "study", "report", "attacks", "configs"):
        assert f"    {command} " in text


def test_shells_complete_the_names_of_configs(capsys):
    with pytest.raises(SystemExit):
        main.make_parser().parse_args(["--print-completion", "bash"])
    script = capsys.readouterr().out + "\n_jaxadv_configs cur"
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert found.stdout.split() == ["curriculum"]


@pytest.mark.parametrize("name", ["curriculun", "curriculun:digits"])
def test_an_unknown_config_is_an_error_that_names_the_others(name):
    with pytest.raises(ValueError, match="no config 'curriculun': use one of curriculum, evaluate"):
        flags.find_config(name)


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("run.py", "python run.py --config 'a b.py'"),
        ("/environment/bin/jaxadv", "jaxadv --config 'a b.py'"),
        ("benchmarks/jaxadv.py", "python benchmarks/jaxadv.py --config 'a b.py'"),
    ],
)
def test_the_recorded_command_can_be_repeated(monkeypatch, program, command):
    monkeypatch.setattr(sys, "argv", [program, "--config", "a b.py"])
    assert command_line() == command


@pytest.fixture
def run_job(monkeypatch, tmp_path):
    """Return a function that runs an evaluation whose job prints and writes, with some flags."""

    def ran(mode="evaluate", **values):
        config = curriculum.get_config("digits").copy_and_resolve_references()
        config.mode = mode
        values = {"CONFIG": config, "WORKDIR": str(tmp_path), **values}
        names = ("DEBUG", "DISTRIBUTED", "COORDINATOR", "NUM_PROCESSES", "PROCESS_ID", "QUIET",
                 "JSON")  # fmt: skip
        for name, value in {**dict.fromkeys(names), **values}.items():
            monkeypatch.setattr(flags, name, SimpleNamespace(value=value))

        def work(config, workdir):
            print("Report: page")
            print("warning: weak attack", file=sys.stderr)
            (workdir / "evaluation.json").write_text(json.dumps({"n": 3}))
            return []

        monkeypatch.setenv("TQDM_DISABLE", "0")  # restored afterwards
        monkeypatch.setattr("warnings.showwarning", None)  # restored afterwards
        monkeypatch.setattr("jaxadv.config.check", lambda *_: None)
        monkeypatch.setattr("jaxadv.core.devices.set_up_cpu", lambda: None)
        monkeypatch.setattr(checkpoint, "run", work)
        return job._run_job()

    return ran


def test_json_is_all_that_json_prints_to_stdout(run_job, capsys):
    run_job(JSON=True)
    out, err = capsys.readouterr()
    assert json.loads(out) == {"n": 3}
    assert "Report: page" in err


def test_quiet_prints_warnings_only(run_job, capsys):
    run_job(QUIET=True)
    assert capsys.readouterr() == ("", "warning: weak attack\n")
    run_job()
    assert "Report: page" in capsys.readouterr().out


def test_json_of_a_job_without_results_is_an_error(run_job):
    with pytest.raises(ValueError, match="--json works for train, evaluate, gan, not for study"):
        run_job(mode="study", JSON=True)
