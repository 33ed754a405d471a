"""Runs a command and turns what went wrong into one line and an exit code."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import typer

from firstlight.cli._app import RUN_DRANSPOSE, app
from firstlight.errors import (
    ConfigurationError,
    ConnectionLostError,
    FirstlightError,
    MessageEvictedError,
    MessageNotFoundError,
    QueryError,
    StreamNotFoundError,
    StreamTimeoutError,
)

__all__ = ["exit_code", "main"]

_FAILED, _USAGE, _INTERRUPTED = 1, 2, 130

_EXIT_CODES: tuple[tuple[type[FirstlightError], int], ...] = (
    (ConfigurationError, _USAGE),
    (QueryError, _USAGE),  # it comes from the service, but what was typed is wrong
    (ConnectionLostError, 3),
    (StreamNotFoundError, 4),
    (MessageNotFoundError, 4),
    (MessageEvictedError, 4),
    (StreamTimeoutError, 5),
)

# Older versions of typer raise click's exceptions, newer ones their own copies of them; only the names stayed.
_USAGE_ERROR: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def exit_code(error: FirstlightError) -> int:
    """The exit code that tells scripts what kind of error this was."""
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), _FAILED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Parameters
    ----------
    arguments
        Without the name of the program; by default those of this process. ``--debug`` may stand anywhere before ``--``.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    own = given[: given.index("--")] if "--" in given else given
    debug = "--debug" in own or bool(os.environ.get("FIRSTLIGHT_DEBUG"))
    given = [word for word in own if word != "--debug"] + given[len(own) :]
    if given[:1] == ["run"] and "--dranspose" in own:
        given = [RUN_DRANSPOSE, *(word for word in given[1:] if word != "--dranspose")]
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="firstlight: %(message)s")
    if not debug:
        sys.excepthook = _say_bug
    try:
        return _run(given)
    except FirstlightError as error:
        if debug:
            raise
        _say(error.text)
        return exit_code(error)
    except OSError as error:
        if debug:
            raise
        _say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return _FAILED


def _run(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        result = command.main(arguments, prog_name="firstlight", standalone_mode=False)
        sys.stdout.flush()
    except _USAGE_ERROR as error:
        _say(_usage(error))
        return _USAGE
    except (typer.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader had enough, as in `firstlight tail ... | head`; what is buffered must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    return result if isinstance(result, int) else 0


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "firstlight"
    text = " ".join(str(error.format_message()).split()).rstrip(".")
    return f"{text}; `{path} --help` tells how"


def _say(text: str) -> None:
    print(f"firstlight: {text}", file=sys.stderr)


def _say_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Last resort for what nobody foresaw: still one line, because a traceback tells a user nothing."""
    _say(f"internal error, {kind.__name__}: {error}; run it again with --debug, and report what it prints")
