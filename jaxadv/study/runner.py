"""Runs of the study: those without a record are executed, then the page is written."""

import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.console import Console

from jaxadv import config as configs
from jaxadv.core.files import write_json
from jaxadv.core.types import UserError
from jaxadv.evaluation import checkpoint
from jaxadv.gan import sampling
from jaxadv.gan import train as train_gan
from jaxadv.reports.formats import duration
from jaxadv.runs import checkpoints
from jaxadv.runs.workdir import locked, source_version
from jaxadv.study import costs, records
from jaxadv.study.experiments import EXPERIMENTS
from jaxadv.study.plan import Run, make_plan, requested_runs
from jaxadv.training import train

_SECONDS_BETWEEN_PAGES = 60
# After longer runs the compiled programs are dropped: Linux limits the memory maps of a process.
_SECONDS_OF_A_LONG_RUN = 60


def run(config: ConfigDict, workdir: Path) -> list[str]:
    """Execute the requested runs that are not done, and write the page of all records.

    A failed run is reported, and the next ones are executed. An interrupted study resumes where it
    stopped. The runs leave their files in the workdir, the records and the page are in
    `config.study.results`.

    Args:
      config: of configs/study.py.
      workdir: of the study; each run has a folder in it.

    Returns:
      No warnings; each run prints its own.

    Raises:
      UserError: the config or a record is invalid, or some runs failed.
    """
    source_version()
    plan = make_plan(config)
    results = Path(config.study.results)
    names = requested_runs(config.study.only, EXPERIMENTS, plan)
    done = _done(plan, results)
    for file in ("failures.json", "costs.json"):
        records.read_json_file(results / file)  # reports damage before hours of work
    if config.study.dry_run:
        runs = [plan[name] for name in names]
        Console().print(costs.cost_table(runs, costs.estimate(runs, plan, results), done))
        return []
    executed: list[str] = []
    failures: dict[str, str] = {}
    with locked(workdir):
        written = time.monotonic()
        try:
            # A repeated training makes its evaluations not done, so that the list is made again.
            while remaining := _remaining(plan, names, {*executed, *_done(plan, results)}):
                name = remaining[0]
                executed.append(name)
                count = len(executed) + len(remaining) - 1
                print(f"\n[{len(executed)}/{count}] {name}", flush=True)
                began = time.monotonic()
                _execute(plan, name, workdir, results, config.data.data_dir, failures)
                seconds = time.monotonic() - began
                print(f"{name}: {duration(seconds)}", flush=True)
                if seconds > _SECONDS_OF_A_LONG_RUN:
                    jax.clear_caches()
                if time.monotonic() - written > _SECONDS_BETWEEN_PAGES:
                    _write_page(plan, config.study.scale, results, failures)
                    written = time.monotonic()
        finally:
            page = _write_page(plan, config.study.scale, results, failures)
            print(f"\nPage: {page}", flush=True)
    if failed := [name for name in executed if name in failures]:
        raise UserError(f"{len(failed)} of {len(executed)} runs failed: {'; '.join(failed)}")
    return []


def _remaining(plan: Mapping[str, Run], names: list[str], excluded: set[str]) -> list[str]:
    return [name for name in names if plan[name].planned and name not in excluded]


def _done(plan: Mapping[str, Run], results: Path) -> set[str]:
    """Return the names of the runs that are done.

    Raises:
      UserError: a record is damaged, or has another config than its run.
    """
    current = records.current_records(results, plan)
    for name, record in current.items():
        records.check_config(record, name, plan[name].config)
    return set(current)


def _execute(
    plan: Mapping[str, Run],
    name: str,
    workdir: Path,
    results: Path,
    data_dir: str | None,
    failures: dict[str, str],
) -> None:
    """Execute a run, after its dependency if that has no results in the workdir.

    Error messages are added to `failures`.
    """
    run = plan[name]
    folder = run.workdir(workdir)
    try:
        if needed := run.dependency:
            if needed not in failures and not _has_results(plan[needed], workdir, results):
                print(f"{name} needs {needed}, which is not in {workdir}", flush=True)
                _execute(plan, needed, workdir, results, data_dir, failures)
            if needed in failures:
                raise UserError(f"it needs {needed}, which failed ({failures[needed]})")
        config = run.with_paths(workdir, data_dir)
        configs.check(config, jax.device_count())
        _JOBS[config.mode](config, folder)
        records.write_record(results, name, run.config, folder)
    except Exception as error:  # of any kind: the other runs are still executed
        is_known = isinstance(error, UserError | OSError)
        failures[name] = str(error) if is_known else traceback.format_exc().strip().splitlines()[-1]
        print(f"failed: {error if is_known else traceback.format_exc()}", flush=True)


def _sample(config: ConfigDict, workdir: Path) -> None:
    """Write the samples of a GAN, unless they are complete; a part cannot be resumed."""
    if not _has_samples(workdir):
        shutil.rmtree(workdir / "synthetic", ignore_errors=True)
        sampling.run(config, workdir)


_JOBS: dict[str, Callable] = {
    "train": train.run,
    "evaluate": checkpoint.run,
    "gan": train_gan.run,
    "sample": _sample,
}


def _has_samples(workdir: Path) -> bool:
    return (workdir / "synthetic" / "manifest.json").exists()


def _has_results(run: Run, workdir: Path, results: Path) -> bool:
    """Return whether the workdir has the results of a run that others start from.

    For a training that is its last checkpoint, with the weights of the record if there is one.
    """
    folder = run.workdir(workdir)
    if run.config.mode == "sample":
        return _has_samples(folder)
    if run.config.mode == "gan":
        return (folder / "gan.json").exists()
    last = checkpoints.restore(folder, "last", {})
    if last is None or last.epoch != run.config.train.num_epochs:
        return False
    record = records.read_record(results, run.name)
    return record is None or last.sha256["weights"] == records.weights(record, "last")


def _write_page(
    plan: Mapping[str, Run], scale: str, results: Path, failures: Mapping[str, str]
) -> Path:
    """Write the page, and keep the failures of runs that are not done in failures.json."""
    from jaxadv.study.page import write_page  # Matplotlib takes a second to import

    results.mkdir(parents=True, exist_ok=True)
    path = results / "failures.json"
    earlier = records.read_json_file(path)
    done = records.current_records(results, plan)
    current = {name: why for name, why in {**earlier, **failures}.items() if name not in done}
    if current:
        write_json(path, current)
    else:
        path.unlink(missing_ok=True)
    return write_page(EXPERIMENTS, plan, scale, results, current)
