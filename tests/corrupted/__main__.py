"""Load corrupted files and states; nothing may be half loaded, silent or end by a signal.

    python tests/corrupted [--cases 2000] [--seed 0]

Each case saves a small model (sparse, masked, adapted or double-pruned layers), damages the file or
the state, and loads it into a dense model, one of the same kind, or another: by `gossamer.load`, by
a layer's `load_state_dict`, and by the checkpoints of `gossamer train`. Cases run in worker
processes, so that a signal is seen. "another" is a damaged state dict that is a valid state of the
model all the same, such as one with the mask of another layer of the same shape: a state dict has
no checksum.
"""

import argparse
import collections
import json
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from corrupted.cases import one_case

FAULTS = ("half-loaded", "silent", "unclear", "signal")
CHUNK = 250


def work(seed: int, begin: int, end: int) -> None:
    """Run some cases and print how each ended."""
    warnings.simplefilter("ignore")
    for number in range(begin, end):
        print(json.dumps({"number": number}), flush=True)
        print(json.dumps(asdict(one_case(seed, number))), flush=True)


def run(seed: int, cases: int) -> list[dict[str, str]]:
    """Run cases in worker processes; a case that ends its process is a signal."""
    endings: list[dict[str, str]] = []
    begin = 0
    while begin < cases:
        end = min(begin + CHUNK, cases)
        command = [sys.executable, str(Path(__file__).parent), "--worker", str(begin), str(end)]
        done = subprocess.run(
            [*command, "--seed", str(seed)], capture_output=True, text=True, check=False
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        endings += [line for line in lines if "verdict" in line]
        if done.returncode == 0:
            begin = end
            continue
        begin = lines[-1].get("number", begin) + 1 if lines else end
        text = f"case {begin - 1}: exit {done.returncode}: {done.stderr[-300:]}"
        endings.append({"target": "?", "damage": "?", "verdict": "signal", "text": text})
    return endings


def table(endings: list[dict[str, str]]) -> str:
    """Count the endings by target and damage."""
    verdicts = ("refused", "harmless", "another", *FAULTS)
    counts = collections.Counter((e["target"], e["damage"], e["verdict"]) for e in endings)
    rows = sorted({(e["target"], e["damage"]) for e in endings})
    lines = [f"{'target':<11}{'damage':<23}" + "".join(f"{v:>12}" for v in verdicts)]
    for target, damage in rows:
        found = "".join(f"{counts[target, damage, v]:>12}" for v in verdicts)
        lines.append(f"{target:<11}{damage:<23}{found}")
    total = collections.Counter(e["verdict"] for e in endings)
    lines.append(f"{'all':<11}{len(endings):<23}" + "".join(f"{total[v]:>12}" for v in verdicts))
    return "\n".join(lines)


def main() -> None:
    """Run, print the table, and fail on a fault."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given.seed, *given.worker)
        return
    endings = run(given.seed, given.cases)
    print(table(endings))
    faults = [ending for ending in endings if ending["verdict"] in FAULTS]
    for fault in faults[:20]:
        print(fault)
    if faults:
        sys.exit(f"{len(faults)} faults")


if __name__ == "__main__":
    main()
