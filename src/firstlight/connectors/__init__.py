"""Sources of data: each module speaks a detector's protocol on one side and sends messages on the other."""

from __future__ import annotations

from firstlight.connectors._cbor import item_end as cbor_item_end
from firstlight.connectors._cbor import loads as cbor_loads
from firstlight.connectors._eiger2 import DecoderCounts, Eiger2Decoder, Frame, SeriesEnd, SeriesStart
from firstlight.connectors._eiger2_run import ConnectorEvent, ConnectorStats, run_eiger2
from firstlight.connectors._endpoint import check_endpoint
from firstlight.connectors._sink import Output, Producing

__all__ = [
    "ConnectorEvent",
    "ConnectorStats",
    "DecoderCounts",
    "Eiger2Decoder",
    "Frame",
    "Output",
    "Producing",
    "SeriesEnd",
    "SeriesStart",
    "cbor_item_end",
    "cbor_loads",
    "check_endpoint",
    "run_eiger2",
]
