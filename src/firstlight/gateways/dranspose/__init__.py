"""dranspose: worker and reducer classes written for dranspose 0.2.0, unmodified, on the pipelines of this program.

`_cbors` and `_generators` are sources: its recordings, and source classes. `_payload` makes a pipeline of a worker and a
reducer class; `_worker` and `_reducer` stand between them and the engine. dranspose itself is needed for the classes that
payloads import, and nothing of it runs here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstlight.gateways.dranspose._cbors import Cbors
    from firstlight.gateways.dranspose._generators import Generators
    from firstlight.gateways.dranspose._parameters import read_parameters
    from firstlight.gateways.dranspose._payload import Payload
    from firstlight.gateways.dranspose._recorded import EVENTS, AsRecorded

__all__ = ["EVENTS", "AsRecorded", "Cbors", "Generators", "Payload", "read_parameters"]

# Loaded by whoever runs payloads: they need an extra.
_LAZY = {
    "EVENTS": "_recorded",
    "AsRecorded": "_recorded",
    "Cbors": "_cbors",
    "Generators": "_generators",
    "Payload": "_payload",
    "read_parameters": "_parameters",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
