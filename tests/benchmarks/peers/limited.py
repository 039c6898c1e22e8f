"""``limited SECONDS ARGUMENT...``: the ``ticker`` command as users run it, ended by the kernel after a while."""

from __future__ import annotations

import sys

from tests.benchmarks.peers.tick import end_after
from ticker.cli import main

if __name__ == "__main__":
    end_after(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
