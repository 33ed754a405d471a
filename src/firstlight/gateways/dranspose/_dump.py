"""Recordings as dranspose makes them, of scans whose streams come through its ingester classes.

The parameter ``dump_prefix`` asks for them: ``PREFIXSTREAM-ingester-UUID.cbors`` for each stream, ``PREFIXmapping-UUID.json``,
and ``PREFIXparameters-UUID.json`` (``.cbor`` if a value has zero bytes).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cbor2
import msgspec

from firstlight.errors import ConfigurationError
from firstlight.gateways.dranspose._generators import encoded
from firstlight.gateways.dranspose._map import ScanMap

__all__ = ["DUMP_PREFIX", "Dump", "dump_scan"]

logger = logging.getLogger(__name__)

DUMP_PREFIX = "dump_prefix"


class Dump:
    """The recording of one stream.

    Parameters
    ----------
    event_of
        The number of the event, from 0, that a message belongs to; None if to none.

    Raises
    ------
    ConfigurationError
        If the file cannot be made.
    """

    def __init__(self, prefix: str, stream: str, uuid: str, event_of: Callable[[int], int | None]) -> None:
        self._stream = stream
        self._event_of = event_of
        self._path = Path(f"{prefix}{stream}-ingester-{uuid}.cbors")
        try:
            self._file = self._path.open("xb")
        except OSError as error:
            raise ConfigurationError(
                f"{DUMP_PREFIX} {prefix!r}: cannot write {self._path}: {error.strerror}", path=str(self._path)
            ) from error

    def write(self, number: int, data: Any) -> None:
        """Record message `number`; a disk that fails ends the recording, not the scan."""
        event = self._event_of(number)
        if event is None or self._file.closed:
            return
        try:
            self._file.write(encoded(event, {self._stream: data}))
        except OSError as error:
            logger.error("the recording %s ends at event %d: %s", self._path, event, error)
            self.close()

    def close(self) -> None:
        """End the recording."""
        try:
            self._file.close()
        except OSError as error:
            logger.error("the recording %s is not complete: %s", self._path, error)


def dump_scan(prefix: str, scan: ScanMap, parameters: Mapping[str, bytes]) -> None:
    """Write down the map and the parameters of a scan.

    Raises
    ------
    ConfigurationError
        If the files cannot be written.
    """
    binary = any(b"\0" in data for data in parameters.values())
    values = [
        {"name": name, "data": data if binary else data.decode(errors="replace")} for name, data in parameters.items()
    ]
    written = cbor2.dumps(values) if binary else msgspec.json.encode(values)
    files = {
        f"{prefix}mapping-{scan.uuid}.json": msgspec.json.encode(scan.to_json()),
        f"{prefix}parameters-{scan.uuid}.{'cbor' if binary else 'json'}": written,
    }
    for name, content in files.items():
        try:
            Path(name).write_bytes(content)
        except OSError as error:
            raise ConfigurationError(f"{DUMP_PREFIX} {prefix!r}: cannot write {name}: {error.strerror}") from error
