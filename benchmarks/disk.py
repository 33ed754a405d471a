"""Large messages written with the policy disk and read back, beside what O_DIRECT does here.

    python benchmarks/disk.py [--rounds 5] [--quick] [--read-all] [--folder DIR] [--markdown | --json]

The same as ``firstlight bench --only disk,read-back``. Run it on an idle machine: other load shows.
"""

from __future__ import annotations

import sys

from firstlight.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "--only", "disk,read-back", *sys.argv[1:]]))
