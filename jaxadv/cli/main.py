"""The command `jaxadv`: jobs, reports, and lists of attacks and configs.

Each job is a config. Its values are set as in run.py, by flags `--config.KEY=VALUE`.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import shtab
from absl import flags as absl_flags
from rich.console import Console
from rich.table import Table

from jaxadv import __version__
from jaxadv.cli import flags
from jaxadv.cli.job import run_command

_EXAMPLES = """\
examples:
  jaxadv train curriculum:digits           train on scikit-learn's digits: a minute
  jaxadv train fast                        train on CIFAR-10
  jaxadv train fast:folder:photos          train on a folder of images by class
  jaxadv evaluate runs/fast autoattack     run AutoAttack on the best checkpoint
  jaxadv report runs/fast runs/curriculum  compare two runs

Every key of a config is a flag: jaxadv train fast --config.train.num_epochs=6
`jaxadv configs` lists the configs, `jaxadv attacks` the attacks."""
_CONFIG_COMPLETION = {"bash": "_jaxadv_configs", "zsh": "_jaxadv_configs"}
_JOB_FLAGS = (
    "workdir", "quiet", "json", "distributed", "coordinator", "num_processes", "process_id",
    "debug",
)  # fmt: skip


def main() -> None:
    """Run the command of the arguments of this program."""
    from jaxadv.reports.terminal import protect_output

    protect_output()
    values, arguments = split_values(sys.argv[1:])
    parser = make_parser()
    options = parser.parse_args(arguments)
    if not options.command:
        parser.print_help()
        raise SystemExit(2)
    if options.command not in _COMMANDS:
        run_command(["jaxadv", *job_flags(options), *values])
    elif values:
        parser.error(f"{options.command} has no config: omit {values[0]}")
    else:
        _COMMANDS[options.command](options)


def split_values(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the flags that set values of the config, and the other arguments.

    argparse would take such a flag for an argument of another kind if it contains a space.

    >>> split_values(["train", "--config.seed=3", "fast", "--config.data.size", "28"])
    (['--config.seed=3', '--config.data.size', '28'], ['train', 'fast'])
    """
    values, others, rest = [], [], list(arguments)
    while rest:
        argument = rest.pop(0)
        if not re.match("--?(no)?config\\.", argument):
            others.append(argument)
            continue
        values.append(argument)
        if "=" not in argument and rest and not rest[0].startswith("-"):
            values.append(rest.pop(0))
    return values, others


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="jaxadv",
        description="Train, attack and evaluate robust image classifiers in JAX.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shtab.add_argument_to(
        parser,
        "--print-completion",
        help="print the completion script of a shell",
        preamble=_complete_configs(),
    )
    parser.add_argument("--version", action="version", version=f"jaxadv {__version__}")
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")

    job = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in _JOB_FLAGS:
        _add_flag(job, absl_flags.FLAGS[name])

    def add_job(name: str, text: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=text,
            parents=[job],
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"example:\n  {example}\n\nEvery key of a config is a flag --config.KEY=VALUE.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    train = add_job("train", "train a classifier and evaluate it", "jaxadv train curriculum:digits")
    _add_config(train, None)
    evaluate = add_job(
        "evaluate", "attack the classifier of a run", "jaxadv evaluate runs/fast autoattack"
    )
    checkpoint = evaluate.add_argument(
        "checkpoint", metavar="RUN", help="folder of the training run"
    )
    checkpoint.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    evaluate.add_argument(
        "suite",
        nargs="?",
        help="attack suite, such as autoattack or blackbox; by default FGSM and PGD",
    )
    evaluate.add_argument("--config", help="config of an evaluation, in place of a suite")
    gan = add_job("gan", "train a conditional GAN", "jaxadv gan gan:digits")
    _add_config(gan, "gan")
    sample = add_job(
        "sample", "generate images by a trained GAN", "jaxadv sample --workdir runs/gan_digits"
    )
    _add_config(sample, "gan")
    study = add_job("study", "run the study's experiments", "jaxadv study study:smoke")
    _add_config(study, "study")

    report = commands.add_parser("report", help="write the report of a run, or compare two runs")
    workdirs = report.add_argument("workdirs", metavar="WORKDIR", nargs="+", help="one or two runs")
    workdirs.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    report.add_argument("--out", type=Path, help="page of a comparison; by default compare.html")
    commands.add_parser("attacks", help="list the attacks")
    commands.add_parser("configs", help="list the configs")
    return parser


def _add_flag(parser: argparse.ArgumentParser, flag: absl_flags.Flag) -> None:
    """Add a flag of a run to a command, with the same name and help."""
    if flag.boolean:
        parser.add_argument(f"--{flag.name}", action="store_true", help=flag.help)
    else:
        parser.add_argument(f"--{flag.name}", help=flag.help)


def _add_config(parser: argparse.ArgumentParser, default: str | None) -> None:
    text = "name or file of a config, with its data after a colon"
    position = "?" if default else None
    config = parser.add_argument(
        "config", metavar="CONFIG", nargs=position, default=default, help=text
    )
    config.complete = _CONFIG_COMPLETION  # type: ignore[attr-defined]


def _complete_configs() -> dict[str, str]:
    """Return functions of shells that complete the names of configs, and files."""
    names = " ".join(flags.config_names())
    return {
        "bash": f'_jaxadv_configs() {{ compgen -W "{names}" -- "$1"; compgen -f -- "$1"; }}',
        "zsh": f"_jaxadv_configs() {{ compadd {names}; _files }}",
    }


def job_flags(options: argparse.Namespace) -> list[str]:
    """Return the flags of run.py for a command.

    >>> job_flags(make_parser().parse_args(["train", "fast", "--quiet"]))
    ['--config=fast', '--config.mode=train', '--quiet']
    """
    config = options.config
    if options.command == "evaluate":
        if config and options.suite:
            raise SystemExit("error: evaluate takes a suite or --config, not both")
        config = config or ":".join(filter(None, ("evaluate", options.suite)))
    found = [f"--config={config}"]
    if options.command == "evaluate":
        found.append(f"--config.checkpoint={options.checkpoint}")
    found.append(f"--config.mode={options.command}")
    for name in _JOB_FLAGS:
        value = getattr(options, name)
        if value is True:
            found.append(f"--{name}")
        elif value not in (None, False):
            found.append(f"--{name}={value}")
    return found


def _report(options: argparse.Namespace) -> None:
    from jaxadv.core.files import read_json
    from jaxadv.core.types import UserError
    from jaxadv.reports.compare import write_comparison
    from jaxadv.reports.report import write_gan_report, write_report

    try:
        if len(options.workdirs) > 1:
            page = write_comparison(options.workdirs, options.out or Path("compare.html"))
        elif options.out:
            raise UserError("--out is the page of a comparison: name two runs, or omit it")
        else:
            config = read_json(Path(options.workdirs[0]) / "config.json") or {}
            is_gan = config.get("mode") in ("gan", "sample")
            page = (write_gan_report if is_gan else write_report)(options.workdirs[0])
    except (UserError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    except (AttributeError, KeyError, TypeError) as error:
        raise SystemExit(
            f"error: a file of {' or '.join(options.workdirs)} is not that of a run "
            f"({type(error).__name__}: {error})"
        ) from None
    print(f"Report: {page}")


def _list_attacks(_: argparse.Namespace) -> None:
    from jaxadv.attacks import ATTACKS

    table = Table("attack", "norms", "uses", "method", box=None)
    for name, spec in ATTACKS.items():
        uses = "gradients" if spec.uses_gradients else "outputs or labels"
        method = (spec.attack_fn.__doc__ or "").strip().split("\n")[0]
        table.add_row(name, ", ".join(spec.norms), uses, method)
    Console().print(table)


def _list_configs(_: argparse.Namespace) -> None:
    import ast
    from importlib.resources import files

    table = Table("config", "purpose", box=None)
    for name in flags.config_names():
        source = (files("jaxadv.configs") / f"{name}.py").read_text(encoding="utf-8")
        table.add_row(name, (ast.get_docstring(ast.parse(source)) or "").split("\n")[0])
    Console().print(table)


_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "report": _report,
    "attacks": _list_attacks,
    "configs": _list_configs,
}


if __name__ == "__main__":
    main()
