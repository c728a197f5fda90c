"""Count the instructions of each verb and compare them with the committed figures.

    python tests/counts/count.py PROGRAM            compare with counts.json
    python tests/counts/count.py PROGRAM --update   write counts.json

PROGRAM is `gossamer_count`, built from count.cpp. callgrind counts the instructions inside
`gossamer::run_*`, on one thread and with the AVX2 tables, so that other load, clock speed and
memory do not matter. Figures of one compiler say nothing about another one, so a comparison across
compilers is skipped.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COMMITTED = Path(__file__).with_name("counts.json")
TOLERANCE = 0.05


def count(program: Path) -> dict[str, Any]:
    """Run the program under callgrind.

    Returns:
        ``compiler``, and ``instructions`` by case.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "callgrind.out")
        command = [
            "valgrind", "--tool=callgrind", f"--callgrind-out-file={out}",
            "--collect-atstart=no", "--toggle-collect=gossamer::run_*",
            "--dump-before=finish_case", str(program),
        ]  # fmt: skip
        # LD_BIND_NOW: the loader looks names up before the first case, not inside it.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "LD_BIND_NOW": "1"}
        process = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        if process.returncode:
            sys.exit(f"make count: {program.name} failed under valgrind:\n{process.stderr[-2000:]}")
        compiler, *cases = process.stdout.splitlines()
        sums = [_total(out.with_name(f"{out.name}.{i}")) for i in range(1, len(cases) + 1)]
    return {"compiler": compiler, "instructions": dict(zip(cases, sums, strict=True))}


def _total(file: Path) -> int:
    (line,) = [line for line in file.read_text().splitlines() if line.startswith("totals:")]
    return int(line.split()[1])


def compare(before: Mapping[str, int], after: Mapping[str, int]) -> tuple[list[str], bool]:
    """Compare two sets of counts.

    Returns:
        A line for each case that changed by more than a thousandth, appeared or vanished; and
        whether all cases are within ``TOLERANCE``.

    Example:
        >>> compare({"spmm": 1000, "sddmm": 500}, {"spmm": 1100, "sddmm": 500})
        (['        1,000 ->        1,100  +10.00 %  spmm  TOO MANY'], False)
    """
    lines, good = [], True
    for case in dict.fromkeys([*before, *after]):
        if case not in before or case not in after:
            lines.append(f"{case}: {'new' if case in after else 'gone'}")
            good = False
            continue
        change = after[case] / before[case] - 1
        verdict = ""
        if abs(change) > TOLERANCE:
            verdict = "  TOO MANY" if change > 0 else "  fewer: commit the new figure"
            good = False
        if abs(change) > 1e-3:
            lines.append(
                f"{before[case]:>13,} -> {after[case]:>12,}  {change:+7.2%}".replace("%", " %")
                + f"  {case}{verdict}"
            )
    return lines, good


def main() -> int:
    """Count and compare; 1 if a case changed by more than the tolerance."""
    parser = argparse.ArgumentParser(description="Instruction counts of the verbs.")
    parser.add_argument("program", type=Path)
    parser.add_argument("--update", action="store_true", help="write the figures, do not compare")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        print("make count needs valgrind, which is not installed: install your system's package.")
        return 2
    found = count(arguments.program)
    if arguments.update:
        COMMITTED.write_text(json.dumps(found, indent=2) + "\n")
        print(f"{len(found['instructions'])} figures written to {COMMITTED.name}")
        return 0
    committed = json.loads(COMMITTED.read_text())
    if committed["compiler"] != found["compiler"]:
        print(
            f"make count: skipped. The committed figures are of {committed['compiler']}, this "
            f"build is of {found['compiler']}: use that compiler, or compare two builds of yours "
            "by --update on the first one."
        )
        return 0
    lines, good = compare(committed["instructions"], found["instructions"])
    print("\n".join(lines) or "No count changed by more than 0.1 %.")
    print(
        f"{len(found['instructions'])} cases, {found['compiler']}: "
        + (f"all within {TOLERANCE:.0%}." if good else f"not all within {TOLERANCE:.0%}.")
    )
    if not good:
        print("If the change is meant, run: make count COUNT_ARGS=--update")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
