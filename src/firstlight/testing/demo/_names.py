"""Where the messages of a demonstration are in the service."""

from __future__ import annotations

__all__ = ["BEAMTIME", "GROUP", "PIPELINE", "PROCESSES", "RECONNECT_TIMEOUT_S", "SOURCE", "STREAM"]

BEAMTIME, SOURCE, STREAM = "demo", "eiger", "run_0001"
#: Name of the pipeline, and of its run: results are in ``<pipeline>.results``, stream ``<stream>.<group>``.
PIPELINE, GROUP = "crystals", "demo"
#: Those that have a log.
PROCESSES = ("service", "detector", "connector", "writer")
#: Nobody starts the service of a demonstration again: who loses it has to end.
RECONNECT_TIMEOUT_S = 0.0
