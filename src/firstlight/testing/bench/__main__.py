"""A process of a run: ``python -m firstlight.testing.bench ROLE TASK``, started by `Child`; of no use by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import msgspec

from firstlight.errors import FirstlightError
from firstlight.testing.bench import _limits, _peers, _roles
from firstlight.testing.bench._children import Talk

_ROLES: dict[str, tuple[type[msgspec.Struct], Callable[[Any, Talk], None]]] = {
    "produce": (_roles.ProduceTask, _roles.produce),
    "consume": (_roles.ConsumeTask, _roles.consume),
    "pace": (_roles.PaceTask, _roles.produce_paced),
    "watch": (_roles.WatchTask, _roles.follow_paced),
    "tcp-send": (_limits.TcpTask, _limits.tcp_send),
    "zmq-produce": (_peers.ZmqTask, _peers.zmq_produce),
    "zmq-proxy": (_peers.ZmqTask, _peers.proxy),
    "zmq-consume": (_peers.ZmqTask, _peers.zmq_consume),
}


def _main(name: str, task: str) -> int:
    kind, run = _ROLES[name]
    try:
        run(msgspec.json.decode(task, type=kind), Talk())
    except FirstlightError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
