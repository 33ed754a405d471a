"""ASAP::O: the unmodified clients of DESY's service (`asapo_producer`, `asapo_consumer`) on the streams of this one.

`_http` answers discovery, authorizer, broker and file transfer; `_data_server` takes messages from producers and gives data
to consumers. `_records` and `_notes` translate what is stored, `_groups` what was read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from firstlight.gateways.asapo._settings import DEFAULT_PORT, AsapoSettings, TokenUse

if TYPE_CHECKING:
    from firstlight.gateways.asapo._gateway import AsapoGateway

__all__ = ["DEFAULT_PORT", "AsapoGateway", "AsapoSettings", "TokenUse"]


def __getattr__(name: str) -> Any:
    # The settings are read by everybody; the server behind them is loaded by whoever serves.
    if name != "AsapoGateway":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from firstlight.gateways.asapo._gateway import AsapoGateway

    return AsapoGateway
