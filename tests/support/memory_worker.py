"""Makes sparse layers in a process of its own and prints, one line of JSON each, by how many bytes
the resident memory rose at most meanwhile, and how many bytes the layer has.

    python memory_worker.py SIZE PATTERN…

The pattern "dense 2:4" makes the layer of 2:4 by way of a dense matrix: what a test must notice.
"""

import gc
import json
import sys
from pathlib import Path

import torch

from gossamer.nn import SparseLinear
from gossamer.weight import SparseWeight


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def make(size: int, pattern: str) -> SparseLinear:
    if pattern.startswith("dense "):
        dense = torch.randn(size, size)
        weight = SparseWeight.from_dense(dense, pattern.removeprefix("dense "))
        return SparseLinear.of_parts(weight, None)
    return SparseLinear(size, size, pattern=pattern)


if __name__ == "__main__":
    size, *patterns = sys.argv[1:]
    torch.set_num_threads(1)
    for pattern in patterns:
        make(64, pattern)
    for pattern in patterns:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from now
        before = resident("VmRSS")
        layer = make(int(size), pattern)
        print(json.dumps([resident("VmHWM") - before, layer.weight.nbytes]), flush=True)
        del layer
