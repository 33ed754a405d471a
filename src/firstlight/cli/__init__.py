"""The command line: one module for each verb, which reads options, calls the rest of firstlight and prints.

Data goes to stdout, progress and errors to stderr. Exit codes:

===  =============================================================================
0    done
1    it did not work, or something was lost or damaged on the way
2    the command, an option or a setting cannot be used
3    the service cannot be reached
4    there is no such stream or message
5    nothing came in time
130  interrupted
===  =============================================================================
"""

from __future__ import annotations

from firstlight.cli._app import app
from firstlight.cli._main import main

__all__ = ["app", "main"]
