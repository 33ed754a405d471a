"""Messages of 1 kB in batches, through the index and a consumer group that acknowledges.

    python benchmarks/small_messages.py [--rounds 5] [--quick] [--read-all] [--folder DIR] [--markdown | --json]

The same as ``firstlight bench --only small``. Run it on an idle machine: other load shows.
"""

from __future__ import annotations

import sys

from firstlight.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "--only", "small", *sys.argv[1:]]))
