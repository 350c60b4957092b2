"""Adversarial attacks and adversarial training of image classifiers in JAX.

The names below take anybody's model and data. `jaxadv.attacks` has the single attacks. Modules are
imported when they are first used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxadv.adapters.classifier import Classifier
    from jaxadv.adapters.wrap import wrap
    from jaxadv.attacks.black_box import BlackBox
    from jaxadv.core.devices import set_up_cpu
    from jaxadv.core.types import UserError
    from jaxadv.evaluation.evaluate import evaluate
    from jaxadv.evaluation.result import EvaluationResult
    from jaxadv.runs.classifier import load_classifier
    from jaxadv.runs.pretrained import load_pretrained

__version__ = version("jaxadv")
__all__ = [
    "BlackBox", "Classifier", "EvaluationResult", "UserError", "evaluate", "load_classifier",
    "load_pretrained", "set_up_cpu", "wrap",
]  # fmt: skip

_MODULES = {
    "BlackBox": "attacks.black_box",
    "Classifier": "adapters.classifier",
    "EvaluationResult": "evaluation.result",
    "UserError": "core.types",
    "evaluate": "evaluation.evaluate",
    "load_classifier": "runs.classifier",
    "load_pretrained": "runs.pretrained",
    "set_up_cpu": "core.devices",
    "wrap": "adapters.wrap",
}


def __getattr__(name: str) -> Any:
    if name == "attacks":
        return import_module("jaxadv.attacks")
    if name not in _MODULES:
        raise AttributeError(f"module 'jaxadv' has no attribute {name!r}")
    return getattr(import_module(f"jaxadv.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
