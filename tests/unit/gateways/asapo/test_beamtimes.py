"""Beamtimes: what the facility's files say, what a laptop does without them, and names of strangers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstlight.errors import StorageError
from firstlight.gateways.asapo._beamtimes import Beamtime, Beamtimes, name_problem
from firstlight.gateways.asapo._errors import Answer, Refusal


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "asapo"
    folder.mkdir()
    return folder


def has_folder(root: Path, beamline: str, beamtime: str, *, year: str = "2026", kind: str = "data") -> Path:
    folder = root / "beamtimes" / beamline / year / kind / beamtime
    folder.mkdir(parents=True)
    return folder


def is_current(root: Path, beamline: str, beamtime: str, /, **changes: Any) -> Path:
    folder = root / "beamlines" / beamline / "current"
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"beamtimeId": beamtime, "beamline": beamline, "corePath": f"/core/{beamtime}", "applicant": {"x": 1}}
    file = folder / f"beamtime-metadata-{beamtime}.json"
    file.write_text(json.dumps({name: value for name, value in (fields | changes).items() if value is not None}))
    return file


def refused(root: Path, beamtime: str, beamline: str) -> str:
    with pytest.raises(Refusal) as error:
        Beamtimes(root).resolve(beamtime, beamline)
    assert (error.value.status, error.value.code) == (401, Answer.NOT_AUTHORIZED)
    assert "\n" not in error.value.text
    return error.value.text


# -- without a facility ---------------------------------------------------------------------------------------------


def test_on_a_laptop_any_beamtime_has_a_folder_that_is_made_by_its_first_file(root: Path) -> None:
    core = root / "unassigned" / "test"
    for beamline in ("auto", "", "p05"):
        assert Beamtimes(root).resolve("test", beamline) == Beamtime("test", "auto", core, None)
    assert core.parent.is_dir()
    assert not core.exists()


def test_neither_is_too_little(root: Path) -> None:
    for beamtime in ("auto", ""):
        assert "neither beamtime nor beamline is given" in refused(root, beamtime, "auto")


def test_a_folder_that_cannot_be_made_is_an_error_of_storage(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot look up beamtimes in"):
        Beamtimes(tmp_path / "file").resolve("test", "auto")


# -- beamtimes that have a folder -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["data", "commissioning"])
@pytest.mark.parametrize("above", ["p05", "petra3/gpfs/p05"])
def test_the_beamline_is_found_by_the_folder_of_the_beamtime(root: Path, kind: str, above: str) -> None:
    folder = has_folder(root, above, "11000015", kind=kind)
    has_folder(root, "p06", "11000016")
    for beamline in ("auto", "", "p05"):
        assert Beamtimes(root).resolve("11000015", beamline) == Beamtime("11000015", "p05", folder, None)
    assert not (root / "unassigned").exists()


def test_another_beamline_s_beamtime_is_refused(root: Path) -> None:
    has_folder(root, "p05", "11000015")
    assert refused(root, "11000015", "p06") == "beamtime 11000015 belongs to beamline p05 and not to p06"


def test_a_beamtime_at_two_beamlines_needs_both_names(root: Path) -> None:
    folders = {name: has_folder(root, name, "b") for name in ("p05", "p06")}
    assert "at several beamlines: p05, p06; give the beamline" in refused(root, "b", "auto")
    for name, folder in folders.items():
        assert Beamtimes(root).resolve("b", name).core == folder


def test_data_of_the_last_year_before_anything_else(root: Path) -> None:
    for year, kind in (("2025", "data"), ("2026", "commissioning"), ("2026", "data"), ("2027", "commissioning")):
        has_folder(root, "p05", "b", year=year, kind=kind)
    assert Beamtimes(root).resolve("b", "auto").core == root / "beamtimes/p05/2026/data/b"


def test_characters_of_patterns_are_only_characters(root: Path) -> None:
    has_folder(root, "p05", "b1")
    for name in ("*", "b?", "b[0-9]", "**"):
        assert Beamtimes(root).resolve(name, "auto").core == root / "unassigned" / name


def test_a_file_is_no_folder_of_a_beamtime(root: Path) -> None:
    has_folder(root, "p05", "other").with_name("b").touch()
    assert Beamtimes(root).resolve("b", "auto").beamline == "auto"


def test_the_facility_s_folders_may_be_elsewhere(root: Path, tmp_path: Path) -> None:
    has_folder(tmp_path / "x", "p05", "b")
    is_current(tmp_path / "y", "p06", "c")
    beamtimes = Beamtimes(root, beamlines=tmp_path / "y/beamlines", beamtimes=tmp_path / "x/beamtimes")
    assert beamtimes.resolve("b", "auto").beamline == "p05"
    assert beamtimes.resolve("auto", "p06").id == "c"
    assert beamtimes.resolve("d", "auto").core == root / "unassigned/d"


# -- what a beamline does now ---------------------------------------------------------------------------------------


def test_the_beamtime_of_a_beamline(root: Path) -> None:
    is_current(root, "p05", "11000015")
    online = root / "beamlines/p05/current"
    expected = Beamtime("11000015", "p05", Path("/core/11000015"), online)
    beamtimes = Beamtimes(root)
    for beamtime, beamline in (("auto", "p05"), ("", "p05"), ("11000015", "auto"), ("11000015", "p05")):
        assert beamtimes.resolve(beamtime, beamline) == expected


def test_a_switch_of_beamtimes_is_seen(root: Path) -> None:
    beamtimes = Beamtimes(root)
    first = is_current(root, "p05", "b1")
    assert beamtimes.resolve("auto", "p05").id == "b1"
    second = is_current(root, "p05", "b2")
    os.utime(first, ns=(2_000_000_000, 2_000_000_000))
    os.utime(second, ns=(3_000_000_000, 3_000_000_000))
    assert beamtimes.resolve("auto", "p05").id == "b2"
    os.utime(first, ns=(4_000_000_000, 4_000_000_000))
    assert beamtimes.resolve("auto", "p05").id == "b1"
    first.unlink()
    assert beamtimes.resolve("auto", "p05").id == "b2"


def test_a_beamline_without_a_beamtime(root: Path) -> None:
    text = refused(root, "auto", "p05")
    assert text.startswith("beamline p05 has no beamtime now: there is no ")
    assert text.endswith("p05/current/beamtime-metadata-*.json")


def test_raw_files_go_to_the_beamline_only_while_the_beamtime_is_there(root: Path) -> None:
    has_folder(root, "p05", "b1")
    assert Beamtimes(root).resolve("b1", "auto").online is None
    online = root / "beamlines/p05/current"
    online.mkdir(parents=True)
    assert Beamtimes(root).resolve("b1", "auto").online == online
    file = is_current(root, "p05", "b1")
    assert Beamtimes(root).resolve("b1", "auto").online == online
    file.unlink()
    is_current(root, "p05", "b2")
    assert Beamtimes(root).resolve("b1", "auto").online is None
    assert Beamtimes(root).resolve("b2", "auto").online == online


@pytest.mark.parametrize("field", ["beamtimeId", "beamline", "corePath"])
@pytest.mark.parametrize(("value", "problem"), [(None, "is missing"), (5, "is not a text"), ("", "is not a text")])
def test_a_field_that_is_missing_is_named_with_its_file(root: Path, field: str, value: Any, problem: str) -> None:
    file = is_current(root, "p05", "b1", **{field: value})
    assert refused(root, "auto", "p05") == f"{field} in {file} {problem}; correct the file"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"beamline": "p06"}, "beamline in {} is 'p06', but it is in the folder of p05"),
        ({"beamtimeId": "../b"}, "beamtimeId in {} is '../b', which has a '/'"),
        ({"beamtimeId": "auto"}, "beamtimeId in {} is 'auto', which means none"),
        ({"corePath": "core/b1"}, "corePath in {} is 'core/b1', which is not an absolute path"),
        ({"corePath": "/a\0b"}, "which is not an absolute path"),
    ],
)
def test_a_field_that_cannot_be_used_is_named_with_its_file(root: Path, changes: dict[str, Any], text: str) -> None:
    file = is_current(root, "p05", "b1", **changes)
    assert text.format(file) in refused(root, "auto", "p05")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"{", "is not a JSON object"),
        (b"", "is not a JSON object"),
        (b"[]", "is not a JSON object"),
        (b"\xff{}", "is not a JSON object"),
        (b'{"beamtimeId":"' + b"x" * (1 << 20), "is larger than 1048576 bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(root: Path, content: bytes, text: str) -> None:
    file = is_current(root, "p05", "b1")
    file.write_bytes(content)
    said = refused(root, "auto", "p05")
    assert str(file) in said
    assert text in said


def test_a_folder_or_a_pipe_in_place_of_metadata_stops_nobody_for_long(root: Path) -> None:
    file = is_current(root, "p05", "b1")
    file.unlink()
    file.mkdir()
    assert "is not a file" in refused(root, "auto", "p05")
    file.rmdir()
    os.mkfifo(file)
    assert "is not a file" in refused(root, "auto", "p05")


def test_a_broken_file_lets_no_beamtime_land_in_a_wrong_place(root: Path) -> None:
    has_folder(root, "p06", "known")
    file = is_current(root, "p05", "b1")
    file.write_text("{")
    assert str(file) in refused(root, "b1", "auto")
    assert Beamtimes(root).resolve("known", "auto").beamline == "p06"


# -- names of strangers, and links ----------------------------------------------------------------------------------

BAD = [
    "..",
    ".",
    ".hidden",
    "a/b",
    "/",
    "/etc",
    "../../x",
    "a\\b",
    "a\0b",
    "a\nb",
    "a\x7f",
    "\udc80",
    "x" * 101,
    "é" * 51,
]


@pytest.mark.parametrize("name", BAD)
def test_names_that_would_lead_elsewhere_are_refused_before_anything_is_looked_up(tmp_path: Path, name: str) -> None:
    root = tmp_path / "never"
    assert "cannot be the name of a beamtime" in refused(root, name, "auto")
    assert "cannot be the name of a beamtime" in refused(root, name, "p05")
    assert "cannot be the name of a beamline" in refused(root, "auto", name)
    assert "cannot be the name of a beamline" in refused(root, "b1", name)
    assert not root.exists()


def test_a_long_name_is_not_repeated_in_full(root: Path) -> None:
    assert len(refused(root, "x" * 100_000, "auto")) < 250


@given(st.text(max_size=40))
def test_whatever_may_be_a_name_stays_one_folder(name: str) -> None:
    if not name_problem(name):
        path = Path("/root/unassigned") / name
        assert path.parent == Path("/root/unassigned")
        assert os.path.normpath(path) == str(path)


@pytest.mark.parametrize("name", ["11000015", "c20260101-000-CAM1", "asapo_test", "über", "x" * 100, "a b", "b:1", "-"])
def test_names_that_facilities_use(root: Path, name: str) -> None:
    assert Beamtimes(root).resolve(name, "auto").id == name


def test_links_that_lead_away_are_not_followed(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    has_folder(outside, "p05", "b1")
    is_current(outside, "p05", "b1")
    (root / "beamtimes").mkdir()
    (root / "beamtimes" / "p05").symlink_to(outside / "beamtimes/p05")
    (root / "beamlines").mkdir()
    (root / "beamlines" / "p05").symlink_to(outside / "beamlines/p05")
    assert Beamtimes(root).resolve("b1", "auto") == Beamtime("b1", "auto", root / "unassigned/b1", None)
    assert "has no beamtime now" in refused(root, "auto", "p05")


def test_a_metadata_file_that_is_a_link_away_is_not_read(root: Path, tmp_path: Path) -> None:
    outside = is_current(tmp_path / "outside", "p05", "b1")
    folder = root / "beamlines/p05/current"
    folder.mkdir(parents=True)
    (folder / outside.name).symlink_to(outside)
    assert "has no beamtime now" in refused(root, "auto", "p05")


def test_links_within_and_loops(root: Path) -> None:
    is_current(root, "p05", "b1")
    current = root / "beamlines/p05/current"
    current.rename(root / "beamlines/p05/run1")
    current.symlink_to("run1")
    assert Beamtimes(root).resolve("auto", "p05").online == current
    current.unlink()
    current.symlink_to("current")
    assert "has no beamtime now" in refused(root, "auto", "p05")
    (root / "beamtimes").symlink_to("beamtimes")
    assert Beamtimes(root).resolve("b1", "p06").beamline == "auto"
