"""Where the messages of a demonstration are in the service."""

from __future__ import annotations

__all__ = ["BEAMTIME", "GROUP", "PIPELINE", "SOURCE", "STREAM"]

BEAMTIME, SOURCE, STREAM = "demo", "eiger", "run_0001"
#: Name of the pipeline, and of its run: results are in ``<pipeline>.results``, stream ``<stream>.<group>``.
PIPELINE, GROUP = "crystals", "demo"
