"""``firstlight`` as a person types it: in a process of its own, with its address, its folder and its signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import firstlight

__all__ = ["Process", "Shell", "environment"]

_WITHIN_S = 60.0


def environment(*folders: Path) -> dict[str, str]:
    """That of this process, without settings of ours; Python finds this package, and what is in these folders."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FIRSTLIGHT_")}
    paths: Iterable[Path] = (Path(firstlight.__file__).parents[1], *folders)
    return kept | {"PYTHONPATH": os.pathsep.join(map(str, paths))}


class Process(subprocess.Popen[str]):
    """Does not outlive a test that failed in the middle."""

    def __exit__(self, *error: Any) -> None:
        if error[0] is not None and self.poll() is None:
            self.kill()
        super().__exit__(*error)

    def end(self, given: str | None = None) -> tuple[int, str, str]:
        """Exit code, and what was printed and said, when it is over."""
        with self:
            out, err = self.communicate(given, timeout=_WITHIN_S)
        return self.returncode, out, err


def _hears_ctrl_c() -> None:
    """Jobs in the background of a shell ignore it, and what they start does, too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Shell:
    """Types ``firstlight`` in a folder.

    Parameters
    ----------
    url
        Of the service that is meant when none is named.
    folders
        Where Python looks besides.
    """

    def __init__(self, folder: Path, url: str | None = None, *folders: Path) -> None:
        self.folder = folder
        self.url = url
        self.environment = environment(*folders) | ({"FIRSTLIGHT_URL": url} if url is not None else {})

    def start(self, *arguments: object) -> Process:
        """A command under way."""
        return Process(
            [sys.executable, "-m", "firstlight", *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=self.environment, cwd=self.folder, preexec_fn=_hears_ctrl_c,
        )  # fmt: skip

    def __call__(self, *arguments: object, code: int = 0, given: str = "", traceback: bool = False) -> tuple[str, str]:
        """What a command printed and said; `given` is typed into it. Only code of users may show a `traceback`."""
        found, out, err = self.start(*arguments).end(given)
        assert found == code, (out, err)
        assert traceback or "Traceback" not in err
        return out, err

    def lines(self, *arguments: object, code: int = 0) -> list[Any]:
        """What it prints with ``--json``."""
        out, _ = self(*arguments, "--json", code=code)
        return [json.loads(line) for line in out.splitlines()]
