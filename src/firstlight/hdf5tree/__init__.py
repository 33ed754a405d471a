"""What is in memory, as if it were an HDF5 file: a tree of groups and datasets, and the two HTTP interfaces through which
programs read such files from afar: that of h5grove (h5web) and that of HSDS (h5pyd, silx).

The tree does not care where it comes from::

    tree = Group({"map": Group({"values": Dataset(values, {"units": "photon"})}, {"NX_class": "NXdata"})})

    @contextmanager
    def opened():
        with lock:  # while something may change under a reader
            yield tree

    app = Starlette(routes=[*hsds_routes(opened), Mount("/h5grove", routes=grove_routes(opened))])
"""

from __future__ import annotations

from firstlight.hdf5tree._answers import ArrayResponse, OpenTree, Room, array_response, json_response, plain, room
from firstlight.hdf5tree._grove import grove_routes
from firstlight.hdf5tree._hsds import hsds_routes
from firstlight.hdf5tree._tree import Dataset, Group, Node, find

__all__ = [
    "ArrayResponse",
    "Dataset",
    "Group",
    "Node",
    "OpenTree",
    "Room",
    "array_response",
    "find",
    "grove_routes",
    "hsds_routes",
    "json_response",
    "plain",
    "room",
]
