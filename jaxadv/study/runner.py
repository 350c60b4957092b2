"""Runs what is not done yet of a study, and writes its page."""

import json
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.console import Console

from jaxadv import checkpoint, evaluate, sample, train, train_gan
from jaxadv import config as configs
from jaxadv.formats import duration
from jaxadv.provenance import note_source
from jaxadv.study import costs, records
from jaxadv.study.plan import Run, asked, chosen, make_plan
from jaxadv.types import UserError

_JOBS: dict[str, Callable] = {
    "train": train.run,
    "evaluate": evaluate.run,
    "gan": train_gan.run,
    "sample": sample.run,
}


def run(config: ConfigDict, workdir: Path) -> list[str]:
    """Runs the experiments asked for, skips what is done, and writes the page of all there is.

    A run that fails is told of, and the others go on. A study that was stopped goes on where it
    stopped; what its runs leave lies in the workdir, their records and the page in
    `config.study.results`.

    Args:
      config: of configs/study.py.
      workdir: of the study; each run has a folder in it.

    Returns:
      No warnings; each run has told its own.

    Raises:
      UserError: the config is not right, or some of the runs failed.
    """
    note_source()
    plan = make_plan(config)
    results = Path(config.study.results)
    names = chosen(config, plan)
    done = {name for name in names if records.check_same(results, name, plan[name].config)}
    if config.study.dry_run:
        Console().print(costs.table(costs.estimate([plan[name] for name in names], results), done))
        return []
    _check(plan, names)
    left = [name for name in names if plan[name].planned and name not in done]
    failures: dict[str, str] = {}
    with configs.locked(workdir):
        try:
            for number, name in enumerate(left, start=1):
                print(f"\n[{number}/{len(left)}] {name}", flush=True)
                began = time.monotonic()
                _try_run(plan, name, workdir, results, config.data.data_dir, failures)
                print(f"{name}: {duration(time.monotonic() - began)}", flush=True)
        finally:
            _write_page(config, plan, results, failures)
    if failures:
        raise UserError(f"{len(failures)} of {len(left)} runs failed: {'; '.join(failures)}")
    return []


def _check(plan: Mapping[str, Run], names: list[str]) -> None:
    """Raises a UserError, before anything is run, for a config that cannot be meant."""
    for name in names:
        config = plan[name].config
        check = configs.check_gan if config.mode in ("gan", "sample") else configs.check
        try:
            check(config, jax.device_count())
        except UserError as error:
            raise UserError(f"{name}: {error}") from None


def _try_run(
    plan: Mapping[str, Run],
    name: str,
    workdir: Path,
    results: Path,
    data_dir: str | None,
    failures: dict[str, str],
) -> None:
    """Runs one, and what it needs where that is not in the workdir; keeps what it failed of."""
    try:
        if (need := plan[name].needs) and not _is_there(plan[need], workdir):
            if need in failures:
                raise UserError(f"it needs {need}, which failed")
            print(f"{name} needs {need}, which is not in {workdir}", flush=True)
            _try_run(plan, need, workdir, results, data_dir, failures)
            if need in failures:
                raise UserError(f"it needs {need}, which failed")
        run = plan[name]
        folder = run.workdir(workdir)
        _JOBS[run.config.mode](run.located(workdir, data_dir), folder)
        records.keep(results, name, run.config, folder)
    except Exception as error:  # whatever it is: the other runs go on
        known = isinstance(error, UserError | OSError)
        failures[name] = str(error) if known else traceback.format_exc().strip().splitlines()[-1]
        print(f"failed: {error if known else traceback.format_exc()}", flush=True)


def _is_there(run: Run, workdir: Path) -> bool:
    """Returns whether the workdir holds all that a run has to leave for another."""
    folder = run.workdir(workdir)
    if run.config.mode == "sample":
        return (folder / "synthetic" / "manifest.json").exists()
    if run.config.mode == "gan":
        return (folder / "gan.json").exists()
    last = checkpoint.restore(folder, "last", {})
    return last is not None and last.epoch == run.config.train.num_epochs


def _write_page(
    config: ConfigDict, plan: Mapping[str, Run], results: Path, failures: Mapping[str, str]
) -> None:
    from jaxadv.study.page import write  # Matplotlib takes a second, which no start waits for

    results.mkdir(parents=True, exist_ok=True)
    path = results / "failures.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    path.unlink(missing_ok=True)
    told = {
        name: reason
        for name, reason in {**earlier, **failures}.items()
        if records.read(results, name) is None
    }
    if told:
        path.write_text(json.dumps(told, indent=2) + "\n")
    print(f"\nPage: {write(config, plan, results, told)}", flush=True)


__all__ = ["asked", "run"]
