"""A list of experiments, run one after the other and laid beside the figures of a study."""

from jaxadv.study.runner import run

__all__ = ["run"]
