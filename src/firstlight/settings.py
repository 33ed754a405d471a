"""The settings of a service: what the components declare, from a TOML file, the environment and options.

Later wins: default, file, environment, option. Keys are the same everywhere: ``server.port`` in the file stands under
``[server]``, in the environment it is ``FIRSTLIGHT_SERVER__PORT``. Sizes may be written ``"2GiB"``, durations
``"90s"``::

    data = "/var/lib/firstlight"

    [storage]
    memory_bytes = "8GiB"

    [policy]                   # for every source that nothing else says anything about
    keep = "disk"

    [sources."eiger*"]         # by pattern of source names; the first that matches wins, the rest comes from [policy]
    keep = "durable"
    retention_s = "30d"

This module only composes; which file and which environment are read is decided by the command line.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from firstlight.broker import BrokerSettings, HttpSettings, ServerSettings, ServiceSettings
from firstlight.errors import ConfigurationError
from firstlight.gateways.asapo import AsapoSettings, TokenUse
from firstlight.model import Keep, Policy, WhenFull
from firstlight.storage import StorageSettings

__all__ = [
    "ENVIRONMENT_PREFIX",
    "LoadedSettings",
    "Setting",
    "Settings",
    "load_settings",
    "parse_duration",
    "parse_size",
]

ENVIRONMENT_PREFIX = "FIRSTLIGHT_"

_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?)\s*([a-zA-Z]*)\s*")
_SIZE_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{ending}": base**power
    for power, prefix in enumerate("kmgtp", start=1)
    for ending, base in (("b", 1000), ("ib", 1024))
}
_DURATION_UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: Any) -> Any:
    """Read a size in bytes: a number, or text with a unit such as ``"512 MiB"`` (1024s) or ``"2GB"`` (1000s).

    >>> parse_size("2GiB")
    2147483648

    Anything but text is passed on unchanged, for a type check to judge.

    Raises
    ------
    ValueError
        If the text is not a size.
    """
    if not isinstance(text, str):
        return text
    return round(_quantity(text, _SIZE_UNITS, "a size", "512MiB, 2GiB or 4096"))


def parse_duration(text: Any) -> Any:
    """Read a duration in seconds: a number, or text with a unit: ``ms``, ``s``, ``min``, ``h`` or ``d``.

    >>> parse_duration("15min")
    900.0

    Raises
    ------
    ValueError
        If the text is not a duration.
    """
    if not isinstance(text, str):
        return text
    return _quantity(text, _DURATION_UNITS, "a duration", "500ms, 90s, 15min, 12h or 30d")


def _quantity(text: str, units: Mapping[str, float], what: str, examples: str) -> float:
    match = _SIZE.fullmatch(text)
    if match is None or match[2].lower() not in units:
        raise ValueError(f"{text!r} is not {what}; write it like {examples}")
    return float(match[1]) * units[match[2].lower()]


Size: TypeAlias = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]
Duration: TypeAlias = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]
Port: TypeAlias = Annotated[int, Field(ge=0, le=65535)]

# The components own their defaults; a second copy here would drift.
_STORAGE, _SERVER, _HTTP, _ASAPO, _POLICY, _BROKER = (
    StorageSettings(),
    ServerSettings(),
    HttpSettings(),
    AsapoSettings(),
    Policy(),
    BrokerSettings(),
)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StorageSection(_Section):
    """Memory and disk of the service."""

    memory_bytes: Size = Field(_STORAGE.memory_bytes, description="memory for messages, all rings together")
    segment_bytes: Size = Field(_STORAGE.segment_bytes, description="a segment file is closed when it is larger")
    checksum_blobs: bool = Field(_STORAGE.checksum_blobs, description="checksum the pixels on disk, too")


class ServerSection(_Section):
    """The native protocol."""

    host: str = Field(_SERVER.host, description="address to listen on; there are no passwords yet")
    port: Port = Field(_SERVER.port, description="TCP port; 0 takes a free one")
    shared_memory: bool = Field(_SERVER.shared_memory, description="clients on this machine use messages in place")
    stall_timeout_s: Duration = Field(_SERVER.stall_timeout_s, description="cut off a client that stopped reading, s")


class HttpSection(_Section):
    """HTTP: health, metrics, state."""

    enabled: bool = Field(_HTTP.enabled, description="serve HTTP at all")
    host: str = Field(_HTTP.host, description="address to listen on; there are no passwords yet")
    port: Port = Field(_HTTP.port, description="TCP port; 0 takes a free one")


class AsapoSection(_Section):
    """Clients of ASAP::O."""

    enabled: bool = Field(_ASAPO.enabled, description="serve them at all")
    host: str = Field(_ASAPO.host, description="address to listen on")
    port: Port = Field(_ASAPO.port, description="TCP port of their endpoint (HTTP); 0 takes a free one")
    data_port: Port | None = Field(_ASAPO.data_port, description="TCP port for messages; none: the one behind port")
    folder: Path | None = Field(_ASAPO.folder, description="tokens, beamlines, beamtimes; none: asapo below data")
    beamlines_folder: Path | None = Field(_ASAPO.beamlines_folder, description="current beamtime of each beamline")
    beamtimes_folder: Path | None = Field(_ASAPO.beamtimes_folder, description="core folders of the beamtimes")
    tokens: TokenUse = Field(_ASAPO.tokens, description="auto (not on loopback), required, off")
    secret_file: Path | None = Field(_ASAPO.secret_file, description="its first line signs tokens; none: in folder")
    always_allowed: tuple[str, ...] = Field(_ASAPO.always_allowed, description="beamtimes that need no token")
    check_beamtime_every_s: Duration = Field(
        _ASAPO.check_beamtime_every_s, description="look for a new beamtime so often, s"
    )
    to_file_bytes: Size = Field(_ASAPO.to_file_bytes, description="larger messages go straight to a file")


class PolicySection(_Section):
    """What a source promises about its messages."""

    keep: Keep = Field(_POLICY.keep, description="where messages are kept: memory, disk, durable, keep (on demand)")
    when_full: WhenFull = Field(
        _POLICY.when_full, description="when memory is full (keep=memory): evict, block, refuse"
    )
    retention_s: Duration | None = Field(
        _POLICY.retention_s, description="delete segments older than this, s; none: never"
    )
    retention_bytes: Size | None = Field(
        _POLICY.retention_bytes, description="most bytes on disk of a source; none: any"
    )
    fields: tuple[str, ...] = Field(_POLICY.fields, description="metadata fields with an index of their own")


class Settings(BaseSettings):
    """All settings of a service; see the module for where they come from."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    data: Path = Field(Path("firstlight-data"), description="data directory, made when absent")
    retention_every_s: Duration = Field(_BROKER.retention_every_s, description="how often retention is enforced, s")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="what is written to the log")
    storage: StorageSection = StorageSection()
    server: ServerSection = ServerSection()
    http: HttpSection = HttpSection()
    asapo: AsapoSection = AsapoSection()
    policy: PolicySection = PolicySection()
    sources: dict[str, PolicySection] = Field({}, description="policies by pattern of source names")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what the constructor gets: `load_settings` reads the rest, to tell where each value comes from."""
        return (init_settings,)

    def service(self) -> ServiceSettings:
        """The settings as the service takes them."""
        own = {name: self.policy.model_copy(update=_given(section)) for name, section in self.sources.items()}
        broker = BrokerSettings(
            storage=StorageSettings(**self.storage.model_dump()),
            policy=_policy(self.policy),
            policies={pattern: _policy(section) for pattern, section in own.items()},
            retention_every_s=self.retention_every_s,
        )
        server, http = ServerSettings(**self.server.model_dump()), HttpSettings(**self.http.model_dump())
        return ServiceSettings(data=self.data, broker=broker, server=server, http=http)

    def asapo_gateway(self) -> AsapoSettings:
        """The settings as the gateway for clients of ASAP::O takes them."""
        return AsapoSettings(**self.asapo.model_dump())


def _given(section: PolicySection) -> dict[str, Any]:
    return {name: getattr(section, name) for name in section.model_fields_set}


def _policy(section: PolicySection) -> Policy:
    return Policy(**section.model_dump())


@dataclass(frozen=True, slots=True)
class Setting:
    """One value and where it came from.

    Attributes
    ----------
    key
        ``server.port``
    value, default
        As used; the default of a policy by pattern is the value in ``[policy]``.
    origin
        ``default``, the path of the file, the name of the environment variable, or ``option``.
    """

    key: str
    value: Any
    default: Any
    origin: str
    description: str


@dataclass(frozen=True)
class LoadedSettings:
    """Settings together with their origins.

    Attributes
    ----------
    file
        The file that was read; None if there was none.
    origins
        By key, for everything that is not a default.
    """

    settings: Settings
    file: Path | None
    origins: Mapping[str, str]

    def __iter__(self) -> Iterator[Setting]:
        """Every value, in the order of the sections."""
        for name, field in Settings.model_fields.items():
            value = getattr(self.settings, name)
            if name == "sources":
                for pattern, section in value.items():
                    used = self.settings.policy.model_copy(update=_given(section))
                    yield from self._section(f'sources."{pattern}"', used, self.settings.policy, "[policy]")
            elif isinstance(value, _Section):
                yield from self._section(name, value, type(value)(), "default")
            else:
                yield Setting(name, value, field.default, self.origins.get(name, "default"), field.description or "")

    def _section(self, name: str, used: _Section, default: _Section, fallback: str) -> Iterator[Setting]:
        for key, field in type(used).model_fields.items():
            path = f"{name}.{key}"
            value, usual = getattr(used, key), getattr(default, key)
            yield Setting(path, value, usual, self.origins.get(path, fallback), field.description or "")


def load_settings(
    file: Path | None, *, environ: Mapping[str, str] | None = None, options: Mapping[str, Any] | None = None
) -> LoadedSettings:
    """Read the settings.

    Parameters
    ----------
    file
        A TOML file; None reads none.
    environ
        Environment variables; those that begin with ``FIRSTLIGHT_`` and name a setting count.
    options
        What the command line says, by key (``server.port``); None means that nothing was said.

    Raises
    ------
    ConfigurationError
        If the file cannot be read, a key does not exist, or a value cannot be used; it says which, from where, and
        what comes close.
    """
    environ = environ or {}
    layers: list[tuple[dict[str, Any], dict[str, str]]] = []
    if file is not None:
        values = _read_toml(file)
        layers.append((values, {key: str(file) for key in _leaves(values)}))
    _check_variables(environ)
    values = _from_environment(environ)
    layers.append((values, {key: _variable(key) for key in _leaves(values)}))
    values = _nested({key: value for key, value in (options or {}).items() if value is not None})
    layers.append((values, dict.fromkeys(_leaves(values), "option")))
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for values, from_where in layers:
        for key in from_where:
            _check_key(key, from_where[key])
        merged = _merge(merged, values)
        origins |= from_where
    return LoadedSettings(_validated(merged, origins), file, origins)


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        with open(file, "rb") as opened:
            return tomllib.load(opened)
    except OSError as error:
        raise ConfigurationError(f"cannot read the settings in {file}: {error.strerror}", path=str(file)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} is not TOML: {error}", path=str(file)) from error


class _Environment(EnvSettingsSource):
    """Reads from a mapping that it is given, not from the environment of the process."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = {name.lower(): value for name, value in environ.items()}
        super().__init__(Settings)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return self._environ


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    try:
        return _Environment(environ)()
    except SettingsError as error:
        how = """lists and tables in the environment are written as JSON, a list like '["a", "b"]'"""
        raise ConfigurationError(f"{how}: {error.__cause__ or error}; {error}") from error


def _check_variables(environ: Mapping[str, str]) -> None:
    """Refuse variables that were meant for us and name nothing.

    Not everything with our prefix is: Kubernetes sets FIRSTLIGHT_PORT and more in every container when a Service is
    called firstlight. So only sections (with ``__``) and near misses of the plain keys are judged.
    """
    plain = [name for name, field in Settings.model_fields.items() if not _is_section(field.annotation)]
    for name in environ:
        key = name.removeprefix(ENVIRONMENT_PREFIX).lower()
        if not name.startswith(ENVIRONMENT_PREFIX) or key in Settings.model_fields:
            continue
        near_miss = "__" not in key and difflib.get_close_matches(key, plain, n=1, cutoff=0.8)
        if near_miss or ("__" in key and key.split("__")[0] not in Settings.model_fields):
            _check_key(key.replace("__", "."), name)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, _Section)


def _variable(key: str) -> str:
    return ENVIRONMENT_PREFIX + ("SOURCES" if key.startswith("sources.") else key.upper().replace(".", "__"))


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        inner = found
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return found


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys; a pattern of source names stands in quotes, as it does in the file."""
    for key, value in values.items():
        path = f'{prefix}"{key}"' if prefix == "sources." else f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}.")
        else:
            yield path


def _merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        before = merged.get(key)
        merged[key] = _merge(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return merged


def _known_keys() -> list[str]:
    found = []
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, _Section):
            found += [f"{name}.{key}" for key in section.model_fields]
        elif name != "sources":
            found.append(name)
    return found


def _check_key(key: str, origin: str) -> None:
    """Refuse a key that does not exist, before pydantic complains in its own words."""
    if key in Settings.model_fields:
        return  # a section that is not a table: its value is refused later
    prefix, known, asked = "", _known_keys(), key
    if key.startswith("sources."):
        prefix, _, asked = key.rpartition('".')
        prefix, known = f'{prefix}".', list(PolicySection.model_fields)
        if prefix == '".':
            text = f'{key} ({origin}) does not say for which sources; write a pattern first, as in [sources."eiger*"]'
            raise ConfigurationError(text, key=key, origin=origin)
    if asked not in known:
        near = [prefix + name for name in _near(asked, known)]
        hint = f"did you mean {' or '.join(near)}?" if near else "`firstlight config show` lists all"
        raise ConfigurationError(f"there is no setting {key!r} ({origin}); {hint}", key=key, origin=origin)


def _near(asked: str, known: list[str]) -> list[str]:
    """Known keys that come close, as a whole or in their last word."""
    ending = asked.rpartition(".")[2]
    endings = {name: name.rpartition(".")[2] for name in known}
    near = [name for name in known if endings[name] == ending] or difflib.get_close_matches(asked, known, n=3)
    if near:
        return near
    close = difflib.get_close_matches(ending, list(endings.values()), n=3)
    return [name for name in known if endings[name] in close]


def _validated(values: dict[str, Any], origins: Mapping[str, str]) -> Settings:
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = [str(part) for part in first["loc"]]
        if place[0] == "sources" and len(place) > 1:
            place[1] = f'"{place[1]}"'
        key = ".".join(place)
        origin = origins.get(key) or next((at for name, at in origins.items() if key.startswith(name)), "default")
        text = first["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"{key} = {first['input']!r} ({origin}): {text}", key=key, origin=origin) from error
