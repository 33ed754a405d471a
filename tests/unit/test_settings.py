"""Settings: what wins, what is refused and in which words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import pytest

from firstlight.broker import BrokerSettings, ServerSettings
from firstlight.broker._service import HttpSettings, ServiceSettings
from firstlight.errors import ConfigurationError
from firstlight.model import Keep, Policy, WhenFull
from firstlight.settings import (
    HttpSection,
    PolicySection,
    ServerSection,
    Settings,
    StorageSection,
    load_settings,
    parse_duration,
    parse_size,
)
from firstlight.storage import StorageSettings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "firstlight.toml"


def refused(file: Path | None, environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigurationError) as error:
        load_settings(file, environ=environ)
    assert "\n" not in error.value.text
    return error.value.text


def test_without_anything_the_service_gets_the_defaults_of_its_components() -> None:
    settings = load_settings(None).settings
    assert settings.service() == ServiceSettings(
        Path("firstlight-data"), BrokerSettings(), ServerSettings(), HttpSettings()
    )


@pytest.mark.parametrize(
    ("section", "component"),
    [
        (StorageSection, StorageSettings),
        (ServerSection, ServerSettings),
        (HttpSection, HttpSettings),
        (PolicySection, Policy),
    ],
)
def test_every_field_of_a_component_can_be_set_and_is_described(section: type, component: type) -> None:
    assert list(section.model_fields) == [field.name for field in fields(component)]  # type: ignore[attr-defined]
    assert all(field.description for field in section.model_fields.values())  # type: ignore[attr-defined]


def test_options_win_over_the_environment_and_that_over_the_file(file: Path) -> None:
    file.write_text('data = "/from/file"\nlog_level = "debug"\n[server]\nport = 1\nhost = "::1"\n[http]\nport = 2\n')
    loaded = load_settings(
        file,
        environ={"FIRSTLIGHT_SERVER__PORT": "3", "FIRSTLIGHT_HTTP__PORT": "4"},
        options={"http.port": 5, "data": None},
    )
    settings = loaded.settings
    assert (settings.server.port, settings.http.port, settings.data) == (3, 5, Path("/from/file"))
    origins = {setting.key: setting.origin for setting in loaded}
    assert origins["data"] == str(file)
    assert origins["server.host"] == str(file)
    assert origins["server.port"] == "FIRSTLIGHT_SERVER__PORT"
    assert origins["http.port"] == "option"
    assert origins["http.host"] == "default"
    assert loaded.file == file


def test_the_environment_of_the_process_is_not_read_behind_the_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTLIGHT_SERVER__PORT", "3")
    assert load_settings(None).settings.server.port == ServerSettings().port


def test_policies_by_pattern_begin_with_the_general_one(file: Path) -> None:
    file.write_text(
        '[policy]\nkeep = "memory"\nwhen_full = "block"\n[sources."eiger*"]\nkeep = "durable"\nretention_s = "30d"\n'
        '[sources.motor]\nfields = ["meta.x"]\n'
    )
    loaded = load_settings(file)
    broker = loaded.settings.service().broker
    assert broker.policy == Policy(Keep.MEMORY, WhenFull.BLOCK)
    assert list(broker.policies) == ["eiger*", "motor"]
    assert broker.policies["eiger*"] == Policy(Keep.DURABLE, WhenFull.BLOCK, retention_s=30 * 86400.0)
    assert broker.policies["motor"] == Policy(Keep.MEMORY, WhenFull.BLOCK, fields=("meta.x",))
    origins = {setting.key: setting.origin for setting in loaded}
    assert origins['sources."eiger*".keep'] == str(file)
    assert origins['sources."eiger*".when_full'] == "[policy]"


def test_lists_and_tables_in_the_environment_are_json() -> None:
    environ = {"FIRSTLIGHT_POLICY__FIELDS": '["meta.hits"]', "FIRSTLIGHT_SOURCES": '{"pilatus": {"keep": "memory"}}'}
    broker = load_settings(None, environ=environ).settings.service().broker
    assert broker.policy.fields == ("meta.hits",)
    assert broker.policies["pilatus"] == Policy(Keep.MEMORY, fields=("meta.hits",))


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("4096", 4096), ("512 MiB", 512 << 20), ("2GiB", 2 << 30), ("2GB", 2_000_000_000), ("1.5kib", 1536), (7, 7)],
)
def test_sizes(text: object, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90.0), ("500ms", 0.5), ("15 min", 900.0), ("2h", 7200.0), ("30d", 2592000.0), ("3", 3.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "GiB", "2 GiBi", "-1", "1e9", "2m", "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size; write it like 512MiB"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "m", "5 weeks", "-1s", "inf"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration; write it like 500ms"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("[server]\nprot = 1", "there is no setting 'server.prot' ({file}); did you mean server.port"),
        ("prot = 1", "there is no setting 'prot' ({file}); did you mean server.port or http.port or asapo.port?"),
        (
            "[sevrer]\nport = 1",
            "there is no setting 'sevrer.port' ({file}); did you mean server.port or http.port or asapo.port?",
        ),
        (
            "[nothing]\nlike_it = 1",
            "there is no setting 'nothing.like_it' ({file}); `firstlight config show` lists all",
        ),
        (
            '[sources."e*"]\nkep = 1',
            """there is no setting 'sources."e*".kep' ({file}); did you mean sources."e*".keep?""",
        ),
        (
            '[sources]\nkeep = "disk"',
            """sources."keep" ({file}) does not say for which sources; write a pattern first""",
        ),
        ('[server]\nport = "abc"', "server.port = 'abc' ({file}): Input should be a valid integer"),
        ("[server]\nport = 65536", "server.port = 65536 ({file}): Input should be less than or equal to 65535"),
        ("server = 3", "server = 3 ({file}): "),
        ('[storage]\nmemory_bytes = "2 GiBi"', "storage.memory_bytes = '2 GiBi' ({file}): '2 GiBi' is not a size"),
        ("[storage]\nmemory_bytes = -1", "storage.memory_bytes = -1 ({file}): "),
        (
            '[policy]\nkeep = "dsk"',
            "policy.keep = 'dsk' ({file}): Input should be 'memory', 'disk', 'durable' or 'keep'",
        ),
        ('[sources."e*"]\nkeep = "dsk"', """sources."e*".keep = 'dsk' ({file}): Input should be"""),
        ("[server", "{file} is not TOML: "),
    ],
)
def test_mistakes_in_the_file_are_named_with_their_place(file: Path, toml: str, expected: str) -> None:
    file.write_text(toml)
    assert refused(file).startswith(expected.format(file=file))


def test_a_file_that_cannot_be_read_is_named(file: Path) -> None:
    assert refused(file) == f"cannot read the settings in {file}: No such file or directory"
    file.write_bytes(b"data = '\xff'")
    assert refused(file).startswith(f"{file} is not TOML: ")


_AS_JSON = """lists and tables in the environment are written as JSON, a list like '["a", "b"]'"""


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (
            "FIRSTLIGHT_SERVER__PROT",
            "1",
            "there is no setting 'server.prot' (FIRSTLIGHT_SERVER__PROT); did you mean server.port",
        ),
        ("FIRSTLIGHT_SEVER__PORT", "1", "there is no setting 'sever.port' (FIRSTLIGHT_SEVER__PORT); did you mean"),
        ("FIRSTLIGHT_DATTA", "/x", "there is no setting 'datta' (FIRSTLIGHT_DATTA); did you mean data?"),
        (
            "FIRSTLIGHT_SERVER__PORT",
            "x",
            "server.port = 'x' (FIRSTLIGHT_SERVER__PORT): Input should be a valid integer",
        ),
        ("FIRSTLIGHT_SOURCES", '{"e', f"{_AS_JSON}: Unterminated string"),
        ("FIRSTLIGHT_ASAPO__ALWAYS_ALLOWED", "bt1", _AS_JSON),
    ],
)
def test_mistakes_in_the_environment_are_named(name: str, value: str, expected: str) -> None:
    assert refused(None, {name: value}).startswith(expected)


def test_variables_that_others_set_with_our_prefix_are_left_alone() -> None:
    environ = {
        "FIRSTLIGHT_PORT": "tcp://10.0.0.1:8410",
        "FIRSTLIGHT_SERVICE_HOST": "10.0.0.1",
        "FIRSTLIGHT_URL": "firstlight://elsewhere",
        "PATH": "/bin",
    }
    assert load_settings(None, environ=environ).settings == Settings()
