"""The Python code of the README and of the tutorials does what the text around it says, against a real service."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import firstlight
from firstlight.pipeline import Items, run
from firstlight.testing import ThreadService

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_URL = "firstlight://localhost:8410"


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ThreadService]:
    with ThreadService(tmp_path / "first-data") as running:
        yield running


class Reader:
    """Somebody who saves the programs of a page and runs them."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url

    def save(self, name: str, code: str) -> None:
        """Save a program as it stands on the page, but for the address of the service."""
        assert code.count(DEFAULT_URL) == 1
        (self._folder / name).write_text(code.replace(DEFAULT_URL, self._url), encoding="utf-8")

    def change(self, name: str, old: str, new: str) -> None:
        path = self._folder / name
        code = path.read_text(encoding="utf-8")
        assert old in code
        path.write_text(code.replace(old, new), encoding="utf-8")

    def start(self, name: str) -> subprocess.Popen[str]:
        # The same package as ours, installed or not; a backend of matplotlib that needs no screen.
        environment = {**os.environ, "PYTHONPATH": str(Path(firstlight.__file__).parents[1]), "MPLBACKEND": "agg"}
        command = [sys.executable, "-W", "error", name]
        return subprocess.Popen(
            command, cwd=self._folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def finish(self, process: subprocess.Popen[str]) -> list[str]:
        """The lines that it printed."""
        try:
            printed, errors = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 0, errors
        return printed.splitlines()

    def run(self, name: str) -> list[str]:
        return self.finish(self.start(name))


@pytest.fixture
def reader(service: ThreadService, tmp_path: Path) -> Reader:
    return Reader(tmp_path, service.url)


def test_the_readme(reader: Reader) -> None:
    (code,) = python_blocks("README.md")
    assert len(code.strip().splitlines()) <= 12, "the README shows about ten lines"
    reader.save("readme.py", code)
    lines = [line.split() for line in reader.run("readme.py")]
    assert [(line[0], *line[1:3], line[4]) for line in lines] == [
        ("1", "(512,", "512)", "0.1"), ("2", "(512,", "512)", "0.2"), ("3", "(512,", "512)", "0.4"),
    ]  # fmt: skip
    means = [float(line[3]) for line in lines]
    assert means == pytest.approx([5, 10, 20], rel=0.05)


@pytest.fixture
def tutorial(reader: Reader) -> Reader:
    """The three programs of the first tutorial, saved under the names that it gives them, and the images sent."""
    page = "docs/tutorials/your-first-stream.md"
    text = (ROOT / page).read_text(encoding="utf-8")
    names = [f"{name}.py" for name in re.findall(r"ave this as `(\w+)\.py`", text)]
    assert names == ["send.py", "read.py", "plot.py"]
    for name, code in zip(names, python_blocks(page), strict=True):
        reader.save(name, code)
    assert reader.run("send.py") == []
    return reader


def test_the_tutorial_reads_once_for_each_group(tutorial: Reader) -> None:
    lines = tutorial.run("read.py")
    assert len(lines) == 60
    assert lines[0].startswith("1 0 (256, 256) uint16 ")
    assert tutorial.run("read.py") == [], "the second time it prints nothing"
    tutorial.change("read.py", 'group="monitor"', 'group="another"')
    both = [tutorial.start("read.py"), tutorial.start("read.py")]
    shared = [tutorial.finish(process) for process in both]
    assert sorted(int(line.split()[0]) for lines in shared for line in lines) == list(range(1, 61))


def test_the_tutorial_ends_with_a_plot(tutorial: Reader, service: ThreadService, tmp_path: Path) -> None:
    plot = tmp_path / "spot.png"
    assert tutorial.run("plot.py") == []
    assert plot.read_bytes().startswith(b"\x89PNG")
    plot.unlink()
    service.restart()
    tutorial.run("plot.py")
    assert plot.is_file(), "the messages are read from disk"
    plot.unlink()
    for name in ("send.py", "plot.py"):
        tutorial.change(name, "scan_0001", "scan_0002")
    plotting = tutorial.start("plot.py")
    tutorial.run("send.py")
    tutorial.finish(plotting)
    assert plot.is_file(), "the same program plots a stream while it is taken"


def test_the_page_on_analysis(monkeypatch: pytest.MonkeyPatch) -> None:
    page: Any = types.ModuleType("saxs")
    monkeypatch.setitem(sys.modules, "saxs", page)
    first = python_blocks("docs/how-to/run-your-analysis.md")[0]
    exec(compile(first, "run-your-analysis.md", "exec", dont_inherit=True), page.__dict__)  # our own page
    frames = Items({"eiger": [np.full((64, 80), value, np.uint16) for value in (3, 5)]})
    mean = run(page.saxs, frames).result()
    assert mean.snapshot()["profile"].values == pytest.approx(np.full(50, 4.0)) and mean.indices == [1, 2]
    mean.add(3, np.ones(20))  # as when `firstlight set` changed the number of bins
    assert mean.snapshot()["profile"].values == pytest.approx(np.ones(20)) and mean.indices == [3]


def test_the_page_on_reducers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    page: Any = types.ModuleType("bright")
    monkeypatch.setitem(sys.modules, "bright", page)  # where its dataclasses look
    for block in python_blocks("docs/how-to/reduce-results.md"):
        exec(compile(block, "reduce-results.md", "exec", dont_inherit=True), page.__dict__)  # our own page
    frames = Items({"eiger": [np.full((2, 2), value, np.uint16) for value in (3, 7, 3, 250)]})
    for pipeline in (page.bright, page.combined):
        assert run(pipeline, frames).result().counts.nonzero()[0].tolist() == [3, 7, 250]
    both = run(page.both, frames)
    assert both.result()["steps"].steps == [4, -4, 247]
    assert set(both.views()) == {"histogram/n", "histogram/brightness", "steps/steps"}
    assert run(dataclasses.replace(page.bright, reducer=page.Peak), frames).result().most_common == 3
    run(dataclasses.replace(page.bright, reducer=page.Rate), frames).reducer.tick()
    assert capsys.readouterr().out == "0 so far\n"
