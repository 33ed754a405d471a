"""The whole way once, with nothing else installed: ``firstlight demo``.

::

    detector --Stream V2--> connector --> service --> workers --> results --> reducer --> terminal
                                             |                       |
                                             +-------- hits ------> writer --> NeXus, PNG

Every box is a process of its own, except that the reducer runs where the demonstration was started. The detector is
simulated or a recording; all other parts are those that a beamline would run.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstlight.testing.demo._plan import Plan, make_plan
    from firstlight.testing.demo._run import Progress, run_demo
    from firstlight.testing.demo._summary import DemoError, Summary

__all__ = ["DemoError", "Plan", "Progress", "Summary", "make_plan", "run_demo"]

# Loaded when they are used: each process of a demonstration comes through here, and needs only its own part.
_HOME = {"DemoError": "_summary", "Plan": "_plan", "Progress": "_run", "Summary": "_summary"}
_HOME |= {"make_plan": "_plan", "run_demo": "_run"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
