"""The files of a run: workdir, checkpoints, resume cache, metrics log."""
