from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstlight.errors import ConfigurationError
from firstlight.processors import Layout, Module

TOML = """
name = "jungfrau"
shape = [10, 12]
fill = nan
dtype = "float32"

[[modules]]
name = "jf0"
shape = [4, 6]

[[modules]]
name = "jf1"
shape = [4, 6]
origin = [5, 7]
rotation = 90
flip = "rows"
"""


def written(folder: Path, content: str, name: str = "jf.toml") -> Path:
    path = folder / name
    path.write_text(content)
    return path


def values(**module: Any) -> dict[str, Any]:
    """A layout of one good module, and one like that."""
    return {
        "name": "jungfrau",
        "modules": [{"name": "a", "shape": [2, 3]}, {"name": "b", "shape": [2, 3], "origin": [2, 0], **module}],
    }


def test_a_toml_file_is_read(tmp_path: Path) -> None:
    found = Layout.read(written(tmp_path, TOML.replace("[10, 12]", "[11, 12]")))
    assert (found.name, found.shape, found.dtype) == ("jungfrau", (11, 12), np.dtype("f4"))
    assert math.isnan(found.fill) and not found.by_part
    assert [module.key for module in found.modules] == ["jf0", "jf1"]
    assert found.modules[1].end == (11, 11), "a quarter turn swaps rows and columns"


def test_a_json_file_says_the_same(tmp_path: Path) -> None:
    content = {"name": "d", "fill": "nan", "dtype": "float32", "modules": [{"part": 1, "shape": [2, 3]}]}
    found = Layout.read(written(tmp_path, json.dumps(content), "jf.json"))
    assert found.by_part and found.shape == (2, 3) and math.isnan(found.fill)


def test_gaps_are_where_no_module_is() -> None:
    layout = Layout("pair", [Module("a", shape=(2, 3)), Module("b", shape=(1, 2), origin=(1, 4))])
    assert layout.shape == (2, 6)
    assert layout.gaps.tolist() == [[False] * 3 + [True] * 3, [False] * 3 + [True, False, False]]
    assert not layout.gaps.flags.writeable


def test_a_layout_can_be_sent_to_another_process() -> None:
    layout = Layout("pair", [Module("a", shape=(2, 3))], dtype=">i4")
    assert pickle.loads(pickle.dumps(layout)) == layout


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("name = [", "jf.toml is no layout file"),
        ('name = "d"', "jf.toml: layout: Object missing required field `modules`"),
        ('name = "d"\nmodules = []', "jf.toml: detector 'd' has no modules"),
        (TOML, "jf.toml: detector 'jungfrau': module 'jf1' reaches to row 11, column 11, out of the image of 10 x 12"),
    ],
)
def test_errors_name_the_file(tmp_path: Path, content: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        Layout.read(written(tmp_path, content))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml cannot be read: No such file"):
        Layout.read(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        ({"name": "a"}, "there are two modules 'a'"),
        ({"origin": [1, 2]}, "module 'b' covers part of module 'a'"),
        ({"origin": [-1, 2]}, "module 'b': origin is .* at least 0, not"),
        ({"shape": [0, 3]}, "module 'b': shape is .* at least 1"),
        ({"shape": "2x3"}, "module 'b': Expected `array`, got `str` - at `\\$.shape`"),
        ({"shape": [2.5, 3]}, "module 'b': Expected `int`, got `float`"),
        ({"rotation": 45}, "module 'b': Invalid enum value 45"),
        ({"flip": "sideways"}, "module 'b': Invalid enum value 'sideways'"),
        ({"orgin": [2, 0]}, "module 'b': Object contains unknown field `orgin`"),
        ({"name": "", "part": None}, "a module has the name of its source"),
        ({"name": None, "part": 2}, "module 2 goes by another kind of name than 'a'"),
        ({"part": 2}, "module 'b' needs either the name of its source, or a part number"),
    ],
)
def test_errors_name_the_module(module: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        Layout.from_dict(values(**module))


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"fill": math.nan, "dtype": "uint16"}, "dtype uint16 cannot hold the fill value nan"),
        ({"fill": -1, "dtype": "uint16"}, "dtype uint16 cannot hold the fill value -1"),
        ({"fill": 0.5, "dtype": "int32"}, "cannot hold the fill value 0.5"),
        ({"dtype": "colour"}, "'colour' is no dtype"),
        ({"dtype": "U4"}, "pixels are integers or floats"),
        ({"shape": [1 << 20, 1 << 20]}, "cannot be"),
        ({"fill": "black"}, "layout: Expected `int | float`"),
    ],
)
def test_an_image_that_cannot_be_is_refused(more: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        Layout.from_dict(values() | more)


def test_modules_is_a_list_of_tables() -> None:
    with pytest.raises(ConfigurationError, match="module number 1: Expected `object`, got `int`"):
        Layout.from_dict({"name": "d", "modules": [3]})
