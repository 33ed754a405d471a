"""Classes of the user, and those of dranspose that they are written against."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Any

from firstlight.errors import ConfigurationError

__all__ = [
    "EnsembleState",
    "EventData",
    "IngesterState",
    "ParameterList",
    "ReducerState",
    "ResultData",
    "StrParameter",
    "StreamData",
    "Url",
    "WorkParameter",
    "WorkerState",
    "load_class",
]

try:
    from dranspose.event import EventData, ResultData, StreamData
    from dranspose.parameters import ParameterList, StrParameter
    from dranspose.protocol import EnsembleState, IngesterState, ReducerState, WorkerState, WorkParameter
    from pydantic_core import Url
except ModuleNotFoundError as _error:
    raise ConfigurationError(
        f"payloads of dranspose need its classes ({_error.name} is not installed): pip install 'firstlight[dranspose]'",
        extra="dranspose",
    ) from _error


def load_class(target: str) -> Any:
    """The class that ``module:Class`` means; the working directory is searched, too, as dranspose does.

    Raises
    ------
    ConfigurationError
        If it does not name a class, importing the module raises, or the module has no such class.
    """
    module_name, colon, name = target.partition(":")
    if not colon or not module_name or not name:
        raise ConfigurationError(f"{target!r} does not name a class: write package.module:Class", target=target)
    # Once, and behind everything else: a module of a payload must not hide one of ours.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may raise anything
        where = _last_line(error, module_name)
        raise ConfigurationError(
            f"cannot import {module_name!r} for {target}: {type(error).__name__}: {error}{where}", target=target
        ) from error
    found = getattr(module, name, None)
    if not isinstance(found, type):
        own = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module_name]
        classes = ", ".join(kind.__name__ for kind in own) or "none"
        raise ConfigurationError(f"{module_name} has no class {name!r}; its classes: {classes}", target=target)
    return found


def _last_line(error: Exception, module_name: str) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == module_name:
        return f"; looked in {os.getcwd()} and where Python looks"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({last.filename}, line {last.lineno})"
