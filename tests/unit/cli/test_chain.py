"""Chain files, and what ``firstlight graph`` and ``firstlight layout`` draw."""

from __future__ import annotations

import itertools
import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from firstlight.cli import main

_FILE = """
from dataclasses import dataclass
from firstlight.pipeline import Chain, Forward, Pipeline, Stage
from firstlight.testing._pipeline_contract import Collect

@dataclass(frozen=True)
class Find:
    threshold: float = 10.0
    def __call__(self, event):
        return Forward({"threshold": self.threshold}) if event["eiger"].array.max() > self.threshold else None

def total(event):
    return int(event["eiger"].array.sum())

find = Pipeline("find", inputs=["eiger"], worker=Find(), reducer=Collect)
add = Pipeline("add", inputs=["hits"], worker=total, reducer=Collect)
whole = Chain("whole", ["eiger"], [Stage("hits", find, workers=2), Stage("total", add)])
"""

CHAIN = """
sources = ["eiger"]

[stages.hits]
pipeline = "{module}.py:find"
workers = 2
parameters = {{ threshold = 20 }}

[stages.total]
pipeline = "{module}.py:add"
inputs = ["hits"]
skip_errors = true
"""

_NAMES = (f"chain_stages_{number}" for number in itertools.count(1))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pipelines, somewhere else than where the commands run."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def chain_file(folder: Path, text: str = CHAIN) -> Path:
    module = next(_NAMES)  # a module is imported once, and this process goes on
    (folder / f"{module}.py").write_text(_FILE)
    path = folder / "serial.toml"
    path.write_text(text.format(module=module))
    return path


def test_a_chain_file_is_drawn(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = chain_file(folder)
    assert main(["graph", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "eiger",
        "└─ hits  worker Find, reducer Collect, 2 processes",
        "   └─ total  worker total, reducer Collect, 1 process",
    ]
    assert main(["graph", str(path), "--mermaid"]) == 0
    assert capsys.readouterr().out.startswith("flowchart LR\n")
    picture = folder / "serial.svg"
    assert main(["graph", str(path), "--svg", str(picture)]) == 0
    assert ET.parse(picture).getroot().tag.endswith("svg")
    out, err = capsys.readouterr()
    assert out == "" and "serial.svg" in err


def test_chains_and_pipelines_of_a_module_are_drawn(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = chain_file(folder).parent / f"{sorted(folder.glob('chain_*.py'))[0].name}"
    assert main(["graph", f"{module}:whole"]) == 0
    assert "└─ total" in capsys.readouterr().out
    assert main(["graph", f"{module}:find"]) == 0
    assert capsys.readouterr().out == "eiger\n└─ find  worker Find, reducer Collect\n"


def test_parameters_and_errors_are_those_of_the_file(folder: Path) -> None:
    from firstlight.cli._chain import read_chain

    hits, total = read_chain(chain_file(folder)).stages
    assert hits.pipeline.parameters == {"threshold": 20.0} and hits.workers == 2 and hits.pipeline.on_error == "stop"
    assert total.pipeline.on_error == "skip" and total.pipeline.inputs == ("hits",)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("sources", "[sources", "serial.toml is no chain file: "),
        ('sources = ["eiger"]', "", "serial.toml: Object missing required field `sources`"),
        ("workers = 2", "worker = 2", "serial.toml: stage 'hits': Object contains unknown field `worker`"),
        ("workers = 2", "workers = 0", "serial.toml: stage 'hits': a run needs n and prefetch"),
        (":find", ":fnd", "stage 'hits': "),
        (":find", ":whole", "is a chain; a stage is one pipeline"),
        ("threshold = 20", "treshold = 20", "stage 'hits': worker Find has no parameter 'treshold'"),
        ('inputs = ["hits"]', 'inputs = ["hist"]', "input 'hist' of stage 'total' is neither a source nor a stage"),
        ("[stages.total]", "[stages.hits]", "serial.toml is no chain file: "),
        ("[stages.total]", "[stages.eiger]", "'eiger' is a source, and cannot be a stage as well"),
        ("{module}.py:find", "nowhere.py:find", "stage 'hits': there is no file"),
    ],
)
def test_mistakes_in_the_file_are_one_line_that_names_it(
    old: str, new: str, problem: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old in CHAIN
    assert main(["graph", str(chain_file(folder, CHAIN.replace(old, new)))]) == 2
    error = capsys.readouterr().err
    assert problem in error and "serial.toml" in error and error.count("\n") == 1


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph", "nowhere.toml"]) == 2
    assert "nowhere.toml cannot be read: No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--stream", "s", "--workers", "2"], "are about one pipeline"),
        (["--stream", "s", "--set", "threshold=1"], "are about one pipeline"),
        ([], "say which stream"),
    ],
)
def test_options_that_a_chain_does_not_have(
    more: list[str], problem: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(chain_file(folder)), *more]) == 2
    assert problem in capsys.readouterr().err


LAYOUT = """
name = "jungfrau"
dtype = "int32"
[[modules]]
name = "jf0"
shape = [4, 6]
[[modules]]
name = "jf1"
shape = [4, 6]
origin = [0, 7]
rotation = 180
flip = "rows"
"""


def test_a_layout_is_checked_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, picture = tmp_path / "jf.toml", tmp_path / "jf.svg"
    path.write_text(LAYOUT)
    assert main(["layout", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "jungfrau: 4 x 13 pixels, int32, 2 modules cover 92.3%"
    assert lines[2].split(maxsplit=1)[1].split("  ")[-1].strip() == "rows flipped, turned by 180"
    assert main(["layout", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == {"name": "jungfrau", "shape": [4, 13], "modules": 2, "covered": pytest.approx(48 / 52)}
    assert main(["layout", str(path), "--svg", str(picture)]) == 0
    svg = ET.parse(picture).getroot()
    rects = [rect for rect in svg.iter("{http://www.w3.org/2000/svg}rect") if rect.get("class") in ("module", "first")]
    module, first = ({name: float(rect.attrib[name]) for name in ("x", "y", "width")} for rect in rects[2:])
    # Upside down, then turned by 180: what came first is right in the top row.
    assert first["y"] == module["y"]
    assert first["x"] + first["width"] == pytest.approx(module["x"] + module["width"], abs=0.2)


def test_a_layout_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "jf.toml"
    path.write_text(LAYOUT.replace("[0, 7]", "[0, 5]"))
    assert main(["layout", str(path)]) == 2
    assert "jf.toml: detector 'jungfrau': module 'jf1' covers part of module 'jf0'" in capsys.readouterr().err
