"""Modules of the user, named "package.module:Module" in `config.model.name`.

A section of docs/training.md, "A model of your own", has what such a module must offer.
"""

import dataclasses
import importlib
import inspect
import os
import re
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from flax import linen as nn

from jaxadv.core.types import UserError, first_line
from jaxadv.models.nnx_module import NnxModule


def is_import_path(name: Any) -> bool:
    """Return whether the name of a model is that of a user's module.

    >>> is_import_path("my_models:SmallCNN"), is_import_path("wrn_13_10")
    (True, False)
    """
    return isinstance(name, str) and ":" in name


def make_custom(
    name: str, num_classes: int, options: Mapping[str, Any], axis_name: str | None
) -> nn.Module:
    """Import a user's module and construct it.

    Args:
      name: "package.module:Module"; the package is in the current directory or installed. The class
        is a module of Linen, or of NNX.
      num_classes: number of logits, the first argument of the constructor.
      options: further keyword arguments of the constructor; hashable.
      axis_name: passed to a Linen module that has this field; see `make_model`.

    Raises:
      UserError: the module cannot be imported, has no such class, or its constructor refuses the
        options.
    """
    module_class = _import_class(name)
    try:
        if not issubclass(module_class, nn.Module):
            # The NNX module is constructed in each call, so its arguments are checked here.
            constructor = inspect.signature(module_class.__init__)
            constructor.bind(None, num_classes=num_classes, **options, rngs=None)
            arguments = tuple({"num_classes": num_classes, **options}.items())
            stochastic = bool(getattr(module_class, "stochastic", False))
            return NnxModule(module_class, arguments, stochastic)
        if "axis_name" in {field.name for field in dataclasses.fields(module_class)}:
            return module_class(num_classes=num_classes, axis_name=axis_name, **options)
        return module_class(num_classes=num_classes, **options)
    except Exception as error:
        raise UserError(
            f"config.model.name {name!r} cannot be constructed with num_classes={num_classes} and "
            f"config.model.options={dict(options)} ({describe(error)}): correct the options, or "
            "the constructor"
        ) from error


def _import_class(name: str) -> type[Any]:
    """Return the class that "package.module:Module" names."""
    match = re.fullmatch(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*)", name)
    if match is None or match[1].endswith(".py"):
        raise UserError(
            f"config.model.name is {name!r}: write the import path of a module and its class, "
            "such as my_models:SmallCNN for SmallCNN in my_models.py"
        )
    module = _import_module(match[1])
    found = getattr(module, match[2], None)
    if found is None:
        raise UserError(
            f"config.model.name is {name!r}, but {module.__name__} has no {match[2]}: it has "
            f"{', '.join(_module_classes(module)) or 'no module of Linen or NNX'}"
        )
    if not _is_module_class(found):
        raise UserError(
            f"config.model.name is {name!r}, which is not a class of Linen or NNX modules: use "
            f"{', '.join(_module_classes(module)) or 'a subclass of flax.linen.Module'}"
        )
    parameters = inspect.signature(found.__call__).parameters
    accepts_train = "train" in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )
    if issubclass(found, nn.Module) and not accepts_train:
        raise UserError(
            f"config.model.name is {name!r}, whose __call__ has no argument `train`: write "
            "__call__(self, images, train=False)"
        )
    return found


def _import_module(path: str) -> ModuleType:
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())  # last, so that it hides no installed package
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name and f"{path}.".startswith(f"{error.name}."):
            raise UserError(
                f"config.model.name: there is no module {error.name}, neither installed nor in the "
                f"current directory {os.getcwd()}: start in the directory that contains it, or "
                "set PYTHONPATH"
            ) from error
        raise UserError(
            f"config.model.name: the import of {path} failed ({describe(error)}): install that "
            "module"
        ) from error
    except SystemExit as error:
        raise UserError(
            f"config.model.name: the import of {path} ends the program ({describe(error)}): move "
            'what it runs as a script below if __name__ == "__main__"'
        ) from error
    except Exception as error:
        raise UserError(
            f"config.model.name: the import of {path} failed ({describe(error)}): correct the file"
        ) from error


def _module_classes(module: ModuleType) -> list[str]:
    """Return the names of the Linen and NNX modules that a Python module defines."""
    return [
        name
        for name, value in vars(module).items()
        if _is_module_class(value) and value.__module__ == module.__name__
    ]


def _is_module_class(value: Any) -> bool:
    from flax import nnx  # here, since its import delays every start

    return isinstance(value, type) and issubclass(value, nn.Module | nnx.Module)


def describe(error: BaseException) -> str:
    """Return the type and the first line of an error.

    >>> describe(KeyError("width"))
    "KeyError: 'width'"
    """
    kind, message = type(error).__name__, first_line(error)
    return kind if message == kind else f"{kind}: {message}"
