"""Runs what is not done yet of a study, and writes its page."""

import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.console import Console

from jaxadv import checkpoint, evaluate, sample, train, train_gan
from jaxadv import config as configs
from jaxadv.files import write_json
from jaxadv.formats import duration
from jaxadv.provenance import note_source
from jaxadv.study import costs, records
from jaxadv.study.plan import Run, chosen, make_plan
from jaxadv.types import UserError

_SECONDS_BETWEEN_PAGES = 60
# After which it is worth letting go of what was compiled: Linux maps only so much into a process.
_SECONDS_OF_A_LONG_RUN = 60


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
    done = _done(plan, results)
    for name in ("failures.json", "costs.json"):
        records.read_notes(results / name)  # damage is told of at once, not after hours
    if config.study.dry_run:
        runs = [plan[name] for name in names]
        Console().print(costs.table(runs, costs.estimate(runs, plan, results), done))
        return []
    tried: list[str] = []
    failures: dict[str, str] = {}
    with configs.locked(workdir):
        written = time.monotonic()
        try:
            # A training that is done anew leaves its evaluations to be done anew.
            while left := _left(plan, names, {*tried, *_done(plan, results)}):
                name = left[0]
                tried.append(name)
                print(f"\n[{len(tried)}/{len(tried) + len(left) - 1}] {name}", flush=True)
                began = time.monotonic()
                _try_run(plan, name, workdir, results, config.data.data_dir, failures)
                seconds = time.monotonic() - began
                print(f"{name}: {duration(seconds)}", flush=True)
                if seconds > _SECONDS_OF_A_LONG_RUN:
                    jax.clear_caches()
                if time.monotonic() - written > _SECONDS_BETWEEN_PAGES:
                    _write_page(config, plan, results, failures)
                    written = time.monotonic()
        finally:
            print(f"\nPage: {_write_page(config, plan, results, failures)}", flush=True)
    if failed := [name for name in tried if name in failures]:
        raise UserError(f"{len(failed)} of {len(tried)} runs failed: {'; '.join(failed)}")
    return []


def _left(plan: Mapping[str, Run], names: list[str], but: set[str]) -> list[str]:
    return [name for name in names if plan[name].planned and name not in but]


def _done(plan: Mapping[str, Run], results: Path) -> set[str]:
    """Returns the names of the runs that are done.

    Raises:
      UserError: a record is damaged, or of another config.
    """
    standing = records.standing(results, plan)
    for name, record in standing.items():
        records.check_same(record, name, plan[name].config)
    return set(standing)


def _try_run(
    plan: Mapping[str, Run],
    name: str,
    workdir: Path,
    results: Path,
    data_dir: str | None,
    failures: dict[str, str],
) -> None:
    """Runs one, and what it needs where that is not in the workdir; keeps what it failed of."""
    run = plan[name]
    folder = run.workdir(workdir)
    try:
        if need := run.needs:
            if need not in failures and not _is_there(plan[need], workdir, results):
                print(f"{name} needs {need}, which is not in {workdir}", flush=True)
                _try_run(plan, need, workdir, results, data_dir, failures)
            if need in failures:
                raise UserError(f"it needs {need}, which failed ({failures[need]})")
        _JOBS[run.config.mode](run.located(workdir, data_dir), folder)
        records.keep(results, name, run.config, folder)
    except Exception as error:  # whatever it is: the other runs go on
        known = isinstance(error, UserError | OSError)
        failures[name] = str(error) if known else traceback.format_exc().strip().splitlines()[-1]
        print(f"failed: {error if known else traceback.format_exc()}", flush=True)


def _sample(config: ConfigDict, workdir: Path) -> None:
    """Draws the samples of a GAN where they are not whole: a part cannot be gone on from."""
    if not _has_samples(workdir):
        shutil.rmtree(workdir / "synthetic", ignore_errors=True)
        sample.run(config, workdir)


_JOBS: dict[str, Callable] = {
    "train": train.run,
    "evaluate": evaluate.run,
    "gan": train_gan.run,
    "sample": _sample,
}


def _has_samples(workdir: Path) -> bool:
    return (workdir / "synthetic" / "manifest.json").exists()


def _is_there(run: Run, workdir: Path, results: Path) -> bool:
    """Returns whether the workdir holds what a run has to leave for another.

    Of a training that is the last checkpoint that its record speaks of, where there is a record.
    """
    folder = run.workdir(workdir)
    if run.config.mode == "sample":
        return _has_samples(folder)
    if run.config.mode == "gan":
        return (folder / "gan.json").exists()
    last = checkpoint.restore(folder, "last", {})
    if last is None or last.epoch != run.config.train.num_epochs:
        return False
    record = records.read(results, run.name)
    return record is None or last.sha256["weights"] == records.weights(record, "last")


def _write_page(
    config: ConfigDict, plan: Mapping[str, Run], results: Path, failures: Mapping[str, str]
) -> Path:
    """Writes the page of all there is, and keeps what failed until it is done."""
    from jaxadv.study.page import write  # Matplotlib takes a second, which no start waits for

    results.mkdir(parents=True, exist_ok=True)
    path = results / "failures.json"
    earlier = records.read_notes(path)
    done = records.standing(results, plan)
    told = {name: why for name, why in {**earlier, **failures}.items() if name not in done}
    if told:
        write_json(path, told)
    else:
        path.unlink(missing_ok=True)
    return write(config, plan, results, told)
