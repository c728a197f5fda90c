"""Plant faults in the kernels of a GPU, one at a time, and count how many the emulation finds.

    python tests/gpu/faults.py [NAME ...]

Each is an edit of one source, compiled into the program of check.cpp. A survivor is named; those in
HARMLESS have a reason.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-std=c++20", "-O1", "-U_FORTIFY_SOURCE", "-w"]
# For what reads behind an array without a trace in the result.
ADDRESS = ["-fsanitize=address", "-g"]


class Fault(NamedTuple):
    """A text of a file below csrc, and what stands in its place."""

    file: str
    text: str
    instead: str


GATHER = "products/cuda/spmm_gather.cuh"
ROWS = "products/cuda/spmm_rows.cuh"
COPIES = "products/cuda/copies.cuh"
LISTS = "products/cuda/lists.cuh"

FAULTS = {
    "gather: no barrier before a stage is read": Fault(
        GATHER, "__syncthreads();  // all copies", "// all copies"
    ),
    "gather: no barrier after it": Fault(GATHER, "__syncthreads();  // nobody", "// nobody"),
    "gather: waits for too few copies": Fault(GATHER, "copies_wait<1>()", "copies_wait<2>()"),
    "gather: the first copies are in no group": Fault(
        GATHER,
        "Shape::fetch(shared, a, 0, token0);\n  copies_commit();",
        "Shape::fetch(shared, a, 0, token0);",
    ),
    "gather: no row of zeros": Fault(
        GATHER,
        "id < 0 ? zero + mine * 16 : place(stage, id, mine)",
        "place(stage, id < 0 ? 0 : id, mine)",
    ),
    "gather: zeros are not written": Fault(
        GATHER, "if (thread < Shape::eights) std::memset(zero + thread * 16, 0, 16);", ""
    ),
    "gather: a barrier in a branch": Fault(
        GATHER, "if (active) warp.add", "if (active) __syncthreads(), warp.add"
    ),
    "gather: halves of a fragment change places": Fault(
        GATHER,
        "f[k * 2 + 1] = load32(top + list * 8 + at)",
        "f[k * 2 + 1] = f[k * 2], f[k * 2] = load32(top + list * 8 + at)",
    ),
    "gather: values are not turned": Fault(
        GATHER, "w[t][i] = turn_matrix(next[t][i])", "w[t][i] = next[t][i]"
    ),
    "gather: tokens behind the last are written": Fault(
        GATHER, "if (token >= a.y.rows) continue;", ""
    ),
    "gather: copies lie elsewhere than reads": Fault(
        GATHER,
        "copy16(place(stage, col, eight), from, valid)",
        "copy16(stage + (col * eights + eight) * 16, from, valid)",
    ),
    "gather: one stage": Fault(GATHER, "stages = 2", "stages = 1"),
    "gather: one entry too many": Fault(
        GATHER, "e < list.count ? ids[e] : -1", "e <= list.count ? ids[e] : -1"
    ),
    "gather: values behind the list": Fault(GATHER, "if (e >= list) continue;", ""),
    "gather: the next block into this stage": Fault(
        GATHER, "(block + 1) % Shape::stages", "block % Shape::stages"
    ),
    "gather: columns behind the block": Fault(
        GATHER, "const bool valid = col < width &&", "const bool valid ="
    ),
    "gather: the list of another panel": Fault(
        GATHER, "list_of(a.weight, block, panel0,", "list_of(a.weight, block, 0,"
    ),
    "rows: no fence for the tensor cores": Fault(ROWS, "fence_shared_for_tensor_cores();", ""),
    "rows: no barrier": Fault(ROWS, "__syncthreads();", ""),
    "rows: the product is not waited for": Fault(ROWS, "wgmma_wait<0>()", "wgmma_wait<1>()"),
    "rows: copies are waited for too late": Fault(
        ROWS, "copies_wait<Shape::stages - 2>()", "copies_wait<Shape::stages - 1>()"
    ),
    "rows: strides change places": Fault(
        ROWS,
        "Shape::a_bytes + k * 256, 128, Shape::depth * 16",
        "Shape::a_bytes + k * 256, Shape::depth * 16, 128",
    ),
    "rows: steps of 8 entries": Fault(ROWS, "Shape::a_bytes + k * 256", "Shape::a_bytes + k * 128"),
    "rows: both groups read one half": Fault(ROWS, "group * (8 * Shape::depth * 16)", "0"),
    "rows: copies one step ahead": Fault(ROWS, "step + Shape::stages - 1", "step + Shape::stages"),
    "rows: two stages": Fault(ROWS, "stages = 3", "stages = 2"),
    "rows: the last block is a whole one": Fault(ROWS, "behind < full ? behind : full", "full"),
    "rows: the list of the first panel": Fault(
        ROWS, "w.indices[list.place(entry, panel0)]", "w.indices[list.place(entry, 0)]"
    ),
    "rows: columns are not checked": Fault(ROWS, "&& col < w.cols", ""),
    "rows: entries behind the list": Fault(
        ROWS, "const bool valid = entry < list.total;", "const bool valid = true;"
    ),
    "scatter: no barrier after the marks": Fault(
        COPIES, "__syncthreads();  // the marks", "// the marks"
    ),
    "scatter: no barrier after the places": Fault(
        COPIES, "__syncthreads();  // all entries", "// all entries"
    ),
    "scatter: no zeros": Fault(COPIES, "entry_of[c] = -1;", ""),
    "scatter: rows of a panel change places": Fault(
        COPIES, "values[e * w.vector + row];", "values[e * w.vector + w.vector - 1 - row];"
    ),
    "gather: ids are not checked": Fault(COPIES, "id < width ? id : width - 1", "id"),
    "turn: no barrier": Fault(COPIES, "__syncthreads();  // the tile", "// the tile"),
    "turn: no zeros behind the tokens": Fault(
        COPIES, "token < a.x.rows && col < a.x.cols", "col < a.x.cols"
    ),
    "turn: not turned": Fault(COPIES, "tile[x * stride + i]", "tile[i * stride + x]"),
    "lists: not cut to the array": Fault(
        LISTS, "if (found.count > left / panels) found.count = left / panels;", ""
    ),
    "lists: negative ones": Fault(LISTS, "if (found.begin < 0 || left < 0) return {0, 0};", ""),
}

HARMLESS = {
    "rows: two stages": "a step waits for its product before the barrier that lets the next "
    "copies in; the third stage hides how long they take",
}


def outcome(fault: Fault, folder: Path, *flags: str) -> str:
    """Return what the program says of a fault, or an empty text where it finds none."""
    csrc = folder / "csrc"
    shutil.copytree(ROOT / "csrc", csrc, dirs_exist_ok=True)
    source = csrc / fault.file
    before = source.read_text()
    if fault.text not in before:
        return "NOT PLANTED"
    source.write_text(before.replace(fault.text, fault.instead, 1))
    program, here = folder / "check", Path(__file__).parent
    command = ["g++", *FLAGS, *flags, f"-I{csrc}", f"-I{here}", str(here / "check.cpp")]
    made = subprocess.run(
        [*command, "-o", str(program)], capture_output=True, text=True, check=False
    )
    source.write_text(before)
    if made.returncode:
        return "DOES NOT COMPILE: " + made.stderr[:200]
    try:
        ran = subprocess.run([program], capture_output=True, text=True, check=False, timeout=300)
    except subprocess.TimeoutExpired:
        return "hangs"
    if ran.returncode == 0:
        return ""
    said = [line for line in (ran.stdout + ran.stderr).splitlines() if line.strip("= ")]
    return (said or [f"signal {-ran.returncode}"])[0]


def main() -> int:
    """Plant all faults, or those that are named."""
    names, survivors = sys.argv[1:] or list(FAULTS), []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            said = outcome(FAULTS[name], Path(folder))
            said = said or outcome(FAULTS[name], Path(folder), *ADDRESS)
            print(f"{name}: {said or 'SURVIVES'}", flush=True)
            if not said or said.startswith(("NOT", "DOES NOT")):
                survivors.append(name)
    print(f"{len(survivors)} of {len(names)} survive: {', '.join(survivors)}")
    return bool(set(survivors) - set(HARMLESS))


if __name__ == "__main__":
    sys.exit(main())
