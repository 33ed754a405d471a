"""dranspose: worker and reducer classes written for dranspose 0.2.0, unmodified, on the pipelines of this program.

`_cbors` and `_generators` are sources: its recordings, and source classes. `_payload` makes a pipeline of a worker and a
reducer class; `_worker` and `_reducer` stand between them and the engine. `_routes` answers what beamline scripts and
viewers ask; behind it `_scans` begins and ends scans, whose streams come from `_feeds`, by `_ingest` from its ingester
classes. dranspose itself is needed for the classes that payloads import; none of its services runs here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstlight.gateways.dranspose._cbors import Cbors
    from firstlight.gateways.dranspose._feeds import Ingesting, NextStreams
    from firstlight.gateways.dranspose._generators import Generators
    from firstlight.gateways.dranspose._ingest import Ingest
    from firstlight.gateways.dranspose._map import ScanMap
    from firstlight.gateways.dranspose._parameters import read_parameters
    from firstlight.gateways.dranspose._payload import Payload
    from firstlight.gateways.dranspose._recorded import EVENTS, AsRecorded
    from firstlight.gateways.dranspose._routes import LogKeeper, controller_app, reducer_app
    from firstlight.gateways.dranspose._scans import Scans, ScansShown
    from firstlight.gateways.dranspose._web import WebServer

__all__ = [
    "EVENTS",
    "AsRecorded",
    "Cbors",
    "Generators",
    "Ingest",
    "Ingesting",
    "LogKeeper",
    "NextStreams",
    "Payload",
    "ScanMap",
    "Scans",
    "ScansShown",
    "WebServer",
    "controller_app",
    "read_parameters",
    "reducer_app",
]

# Loaded by whoever runs payloads: they need an extra.
_LAZY = {
    "Cbors": "_cbors",
    "Ingesting": "_feeds",
    "NextStreams": "_feeds",
    "Generators": "_generators",
    "Ingest": "_ingest",
    "ScanMap": "_map",
    "read_parameters": "_parameters",
    "Payload": "_payload",
    "EVENTS": "_recorded",
    "AsRecorded": "_recorded",
    "LogKeeper": "_routes",
    "controller_app": "_routes",
    "reducer_app": "_routes",
    "Scans": "_scans",
    "ScansShown": "_scans",
    "WebServer": "_web",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
