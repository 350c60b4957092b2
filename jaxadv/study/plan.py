"""Which runs a study has, what each needs, and which of them were asked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxadv.types import UserError


class Run(NamedTuple):
    """A run of a study.

    Attributes:
      name: `<training>/<seed>`, or `<training>/<seed>/<kind>` of an evaluation of it.
      config: of the job; paths in it are names of other runs.
      planned: whether it is run at this scale, or only said what it would cost.
    """

    name: str
    config: ConfigDict
    planned: bool

    @property
    def needs(self) -> str | None:
        """The run whose results it starts from, if any."""
        match self.config.mode:
            case "evaluate":
                return self.config.checkpoint
            case "sample":
                return self.name.rpartition("/")[0]
            case "train" if self.config.data.synthetic.share:
                return self.config.data.synthetic.path
        return None

    def workdir(self, folder: Path) -> Path:
        """Returns where it works, in the folder of the study: a GAN's samples lie in the GAN's."""
        name = self.needs if self.config.mode == "sample" else self.name
        return folder / str(name)

    def located(self, folder: Path, data_dir: str | None) -> ConfigDict:
        """Returns its config with the paths of this machine."""
        config = self.config.copy_and_resolve_references()
        config.data.data_dir = data_dir
        if config.mode == "evaluate":
            config.checkpoint = str(folder / config.checkpoint)
        if config.mode == "train" and config.data.synthetic.share:
            config.data.synthetic.path = str(folder / config.data.synthetic.path)
        return config


def make_plan(config: ConfigDict) -> dict[str, Run]:
    """Returns all runs of a study by name, in their order; see configs/study.py."""
    return {
        name: Run(name, config.runs[name].config, config.runs[name].planned)
        for name in config.order
    }


def training_config(run: Run, plan: Mapping[str, Run]) -> ConfigDict:
    """Returns the config of a training, or of the one that an evaluation starts from."""
    return plan[str(run.needs)].config if run.config.mode == "evaluate" else run.config


def chosen(config: ConfigDict, plan: Mapping[str, Run]) -> list[str]:
    """Returns the names of the runs of the experiments that `config.study.only` names, in order.

    Raises:
      UserError: there is no such experiment.
    """
    trainings = set()
    for name in asked(config):
        trainings |= {arm.partition(":")[0] for _, arm in config.experiments[name].arms}
    names = {name for name in plan if name.partition("/")[0] in trainings}
    for name in list(names):
        need = plan[name].needs
        while need:
            names.add(need)
            need = plan[need].needs
    return [name for name in plan if name in names]


def asked(config: ConfigDict) -> list[str]:
    """Returns the names of the experiments that `config.study.only` names, all where it is empty.

    Raises:
      UserError: there is no such experiment.
    """
    every = config.experiments.order
    only = [name.strip() for name in config.study.only.split(",") if name.strip()]
    for name in only:
        if name not in every:
            raise UserError(
                f"config.study.only names {name!r}: the experiments are {', '.join(every)}"
            )
    return [name for name in every if not only or name in only]
