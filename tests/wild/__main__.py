"""`python tests/wild --calls 10000 --seed 0`: wild calls, a table, and the exit status."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> int:
    """Make the calls that the command line asks for; return 0 if the bar holds, else 1."""
    from wild.run import run

    parser = argparse.ArgumentParser(prog="python tests/wild", description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    given = parser.parse_args()
    tally = run(given.calls, given.seed, given.first, told=30.0)
    print(tally.table())
    return 0 if tally.holds else 1


if __name__ == "__main__":
    sys.exit(main())
