"""ASAP::O: the unmodified clients of DESY's service (`asapo_producer`, `asapo_consumer`) on the streams of this one."""

from __future__ import annotations
