"""A running pipeline by HTTP: views as they change, parameters, state; for pages, programs and viewers of HDF5 files.

::

    with run(saxs, Live(stream="scan_0042"), on=Processes(4)) as running, serve(running, port=8420) as server:
        print(server.url)
        running.join()
"""

from __future__ import annotations

from firstlight.live._frames import pack_view, unpack_view
from firstlight.live._parameters import Tunable
from firstlight.live._server import Server, serve
from firstlight.live._snapshots import Follows, Shown, Snapshot, Snapshots, ViewNow
from firstlight.live._tree import tree_of

__all__ = [
    "Follows",
    "Server",
    "Shown",
    "Snapshot",
    "Snapshots",
    "Tunable",
    "ViewNow",
    "pack_view",
    "serve",
    "tree_of",
    "unpack_view",
]
