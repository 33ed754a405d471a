"""The stream header: nested groups with values under "()" and units beside them."""

from __future__ import annotations

import json

import pytest

from firstlight.errors import ConfigurationError
from firstlight.model._header import Header, get, put, units_of

DISTANCE = "entry/instrument/detector/distance"


def test_has_the_shape_that_om_reads() -> None:
    header: Header = {}
    put(header, "entry/instrument/beam/incident_wavelength", 1.25, units="angstrom")
    put(header, DISTANCE, 0.2, units="m")
    read = json.loads(json.dumps(header))
    assert read["entry"]["instrument"]["beam"]["incident_wavelength"]["()"] == 1.25
    assert read["entry"]["instrument"]["detector"]["distance"] == {"()": 0.2, "@units": "m"}


def test_what_was_put_is_got() -> None:
    header: Header = {}
    put(header, DISTANCE, 0.2, units="m")
    assert get(header, DISTANCE) == 0.2
    assert units_of(header, DISTANCE) == "m"
    put(header, DISTANCE, 3)
    assert get(header, DISTANCE) == 3
    assert units_of(header, DISTANCE) is None


@pytest.mark.parametrize("path", ["entry", "entry/instrument/detector", f"{DISTANCE}/deeper", "other"])
def test_default_where_there_is_no_value(path: str) -> None:
    header: Header = {}
    put(header, DISTANCE, 0.2, units="m")
    assert get(header, path) is None
    assert get(header, path, 7) == 7
    assert units_of(header, path) is None


def test_a_foreign_header_with_bare_values_is_read_without_error() -> None:
    assert get({"entry": {"title": "bare"}}, "entry/title", "default") == "default"
    assert get({"entry": 5}, "entry/title", "default") == "default"


@pytest.mark.parametrize("path", ["", "/entry", "entry//title", "entry/"])
def test_an_empty_name_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match="empty name"):
        put({}, path, 1)


def test_a_bare_value_is_not_overwritten_by_a_group() -> None:
    with pytest.raises(ConfigurationError, match="'title' is a bare value"):
        put({"entry": {"title": "bare"}}, "entry/title/deeper", 1)
