"""Build, check and time on a GPU: `python -m bench.gpu --out FOLDER`, under 8 minutes.

Stages have a budget each and run one after another. `gpu.json` is written after each record, so a
run that is cut off leaves what it has. A stage that fails is recorded, and the next begins.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from bench.gpu.stages import STAGES, Setup


def main(arguments: list[str] | None = None) -> int:
    """Run the stages; returns 1 if one of them failed or found something wrong."""
    parser = argparse.ArgumentParser("python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the results")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes of a test")
    parser.add_argument("--seconds", type=float, default=480.0, help="for all stages together")
    parser.add_argument("--only", nargs="*", choices=list(STAGES), default=list(STAGES))
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("bench.gpu: torch finds no GPU here; --device cpu --tiny shows that the script works")
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + given.seconds
    results: dict[str, Any] = {}
    for name in given.only:
        budget, stage = STAGES[name]
        found: dict[str, Any] = {"records": [], "seconds": 0.0, "failed": None}
        results[name] = found
        start = time.monotonic()
        limit = min(start + budget, end)
        if start >= end:
            found["failed"] = "no time was left"
            continue
        try:
            for record in stage(Setup(given.device, given.tiny, given.out)):
                found["records"].append(record)
                found["seconds"] = time.monotonic() - start
                _write(given.out, results)
                print(name, json.dumps(record)[:400], flush=True)
                if time.monotonic() > limit:
                    found["failed"] = "cut off by its budget"
                    break
        except Exception:
            found["failed"] = traceback.format_exc()[-2000:]
            print(name, found["failed"], flush=True)
        found["seconds"] = time.monotonic() - start
        _write(given.out, results)
    wrong = [
        name
        for name, found in results.items()
        if found["failed"] or any(r.get("wrong") or r.get("status") for r in found["records"])
    ]
    print("all stages passed" if not wrong else f"look at: {', '.join(wrong)}")
    return int(bool(wrong))


def _write(folder: Path, results: dict[str, Any]) -> None:
    (folder / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
