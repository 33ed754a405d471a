"""Memory of the service, and queries, after a million small messages.

    python benchmarks/memory.py [--rounds 5] [--quick] [--read-all] [--folder DIR] [--markdown | --json]

The same as ``firstlight bench --only memory,query``. Run it on an idle machine: other load shows.
"""

from __future__ import annotations

import sys

from firstlight.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "--only", "memory,query", *sys.argv[1:]]))
