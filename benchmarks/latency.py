"""Four streams of 1 kB messages at 12 kHz each, from send to delivery.

    python benchmarks/latency.py [--rounds 5] [--quick] [--read-all] [--folder DIR] [--markdown | --json]

The same as ``firstlight bench --only latency``. Run it on an idle machine: other load shows.
"""

from __future__ import annotations

import sys

from firstlight.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "--only", "latency", *sys.argv[1:]]))
