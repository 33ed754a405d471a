"""Large messages through memory, beside memcpy and pyzmq over ipc and tcp.

    python benchmarks/paths.py [--rounds 5] [--quick] [--read-all] [--folder DIR] [--markdown | --json]

The same as ``firstlight bench --only local,tcp-local,tcp-tcp``. Run it on an idle machine: other load shows.
"""

from __future__ import annotations

import sys

from firstlight.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "--only", "local,tcp-local,tcp-tcp", *sys.argv[1:]]))
