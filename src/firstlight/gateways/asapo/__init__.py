"""ASAP::O: the unmodified clients of DESY's service (`asapo_producer`, `asapo_consumer`) on the streams of this one.

`_http` answers discovery, authorizer, broker and file transfer; `_data_server` takes messages from producers and gives data
to consumers. `_records` and `_notes` translate what is stored, `_groups` what was read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from firstlight.gateways.asapo._errors import Refusal
from firstlight.gateways.asapo._settings import DEFAULT_PORT, AsapoSettings, TokenUse

if TYPE_CHECKING:
    from firstlight.gateways.asapo._gateway import AsapoGateway
    from firstlight.gateways.asapo._tokens import Access, Claims, Tokens, claims_of

__all__ = [
    "DEFAULT_PORT",
    "Access",
    "AsapoGateway",
    "AsapoSettings",
    "Claims",
    "Refusal",
    "TokenUse",
    "Tokens",
    "claims_of",
]

# The settings are read by everybody; the rest is loaded by whoever serves, or makes tokens.
_LAZY = {"AsapoGateway": "_gateway"} | dict.fromkeys(("Access", "Claims", "Tokens", "claims_of"), "_tokens")


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
