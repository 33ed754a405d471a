"""Runs in OM's environment: reads frames through OM's own source of ASAP::O, and prints a line of JSON for each.

    PYTHON_OF_OM om_reader.py follow CONFIG BEAMTIME[:STREAM]
    PYTHON_OF_OM om_reader.py fetch CONFIG BEAMTIME EVENT_ID...

``follow`` does what a processing node of OM does, ``fetch`` what its programs do that look at single frames.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from om.data_retrieval_layer import EigerAsapoDataRetrieval, OmEventDataRetrieval
from om.lib.parameters import MonitorParameters


def follow(parameters: MonitorParameters, source: str) -> Iterator[dict[str, Any]]:
    """The calls of ``om.parallelization_layer.multiprocessing._om_processing_node``, in their order."""
    handler = EigerAsapoDataRetrieval(monitor_parameters=parameters, source=source).get_data_event_handler()
    handler.initialize_event_handling_on_processing_node(node_rank=1, node_pool_size=2)
    for event in handler.event_generator(node_rank=1, node_pool_size=2):
        handler.open_event(event=event)
        yield handler.extract_data(event=event)
        handler.close_event(event=event)


def fetch(parameters: MonitorParameters, source: str, event_ids: list[str]) -> Iterator[dict[str, Any]]:
    retrieval = OmEventDataRetrieval(monitor_parameters=parameters, source=source)
    for event_id in event_ids:
        yield retrieval.retrieve_event_data(event_id)


def told(data: dict[str, Any]) -> str:
    frame = data["detector_data"]
    facts = {
        "event_id": data["event_id"],
        "timestamp": float(data["timestamp"]),
        "beam_energy_ev": float(data["beam_energy"]),
        "detector_distance_mm": float(data["detector_distance"]),
        "dtype": frame.dtype.str,
        "shape": frame.shape,
        "sha256": hashlib.sha256(np.ascontiguousarray(frame).tobytes()).hexdigest(),
    }
    return json.dumps(facts)


def main(verb: str, config: str, source: str, *event_ids: str) -> None:
    parameters = MonitorParameters(config=config)
    frames = follow(parameters, source) if verb == "follow" else fetch(parameters, source, list(event_ids))
    for data in frames:
        sys.stdout.write(told(data) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
