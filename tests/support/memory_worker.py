"""Makes sparse layers in a process of its own and prints, one line of JSON each, by how many bytes
the resident memory rose at most meanwhile, and how many bytes the layer has.

    python memory_worker.py SIZE PATTERN…

The pattern "dense 2:4" makes the layer of 2:4 by way of a dense matrix: what a test must notice.
"csr 2:4" makes it by way of torch's CSR and back; csc, coo, bsr and scipy likewise.
"""

import gc
import json
import sys
import warnings
from pathlib import Path

import torch

from gossamer.nn import SparseLinear
from gossamer.weight import SparseWeight


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def make(size: int, text: str) -> SparseLinear:
    route, _, pattern = text.partition(" ")
    if route == "dense":
        dense = torch.randn(size, size)
        return SparseLinear.of_parts(SparseWeight.from_dense(dense, pattern))
    if route == "scipy":
        weight = SparseLinear(size, size, pattern=pattern).weight
        return SparseLinear.of_parts(SparseWeight.from_scipy(weight.to_scipy()))
    if route in ("csr", "csc", "coo", "bsr"):
        weight = SparseLinear(size, size, pattern=pattern).weight
        matrix = weight.to_torch_sparse(getattr(torch, f"sparse_{route}"))
        return SparseLinear.of_parts(SparseWeight.from_torch_sparse(matrix))
    return SparseLinear(size, size, pattern=text)


if __name__ == "__main__":
    size, *patterns = sys.argv[1:]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch calls its compressed layouts beta
    for pattern in patterns:
        make(64, pattern)
    for pattern in patterns:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from now
        before = resident("VmRSS")
        layer = make(int(size), pattern)
        print(json.dumps([resident("VmHWM") - before, layer.weight.nbytes]), flush=True)
        del layer
