"""Trains or evaluates a robust classifier: `python run.py --config configs/curriculum.py`."""

import sys
import warnings
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, as in configs/curriculum.py or configs/curriculum.py:digits."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; by default runs/ and the config's name."
)
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def _parse(argv: list[str]) -> list[str]:
    try:
        return app.parse_flags_with_usage(argv)
    except (KeyError, AttributeError, OSError, TypeError, ValueError) as error:
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None


def _default_workdir() -> Path:
    if _CONFIG.value.mode == "evaluate" and _CONFIG.value.checkpoint:
        return Path(_CONFIG.value.checkpoint) / "evaluate"
    path, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return Path("runs") / "_".join(filter(None, (Path(path).stem, argument)))


def main(_: list[str]) -> None:
    """Runs the job that the config names."""
    # Imported once the flags are right: JAX and its friends take seconds.
    from jaxadv import evaluate, parallel, train
    from jaxadv.types import UserError

    logging.set_verbosity(logging.DEBUG if _DEBUG.value else logging.WARNING)
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    parallel.use_all_cores()
    jobs = {"train": train.run, "evaluate": evaluate.run}
    try:
        if _CONFIG.value.mode not in jobs:
            raise UserError(f"config.mode is {_CONFIG.value.mode!r}: one of {', '.join(jobs)}")
        jobs[_CONFIG.value.mode](_CONFIG.value, Path(_WORKDIR.value or _default_workdir()))
    except UserError as error:
        if _DEBUG.value:
            raise
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=_parse)
