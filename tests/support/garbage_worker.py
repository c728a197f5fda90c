"""Runs the verbs on garbage structures, in a process of its own: test_structure.py looks at how it
ends. Prints the number of each piece of garbage before it, then how many calls ran, how many were
refused, and how many wrote outside their output.

    python garbage_worker.py ISA COUNT
"""

import random
import sys

import torch
from torch import Tensor

from gossamer import _core, backend
from gossamer.backend import Layout, Structure
from gossamer.errors import GossamerError

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
CANARY = 12345.0


def garbage_bytes(rng: random.Random, count: int) -> Tensor:
    top = rng.choice([1, 1, 44, 256])  # ids beyond a narrow block are refused before they are read
    return torch.tensor([rng.randrange(top) for _ in range(count)], dtype=torch.uint8)


def garbage_pointers(rng: random.Random, count: int, entries: int) -> Tensor:
    """Rising ones, which pass the check, mostly; else anything."""
    kind = rng.random()
    if kind < 0.85:
        cuts = sorted(rng.choices([0, entries, rng.randint(0, entries)], k=max(count - 2, 0)))
        return torch.tensor([0, *cuts, entries][:count] if count > 1 else [entries]).int()
    if kind < 0.95:
        pointers = sorted(rng.randint(0, entries) for _ in range(count))
        pointers[rng.randrange(count)] = rng.choice([-1, -(2**31), 2**31 - 1, entries + 1])
        return torch.tensor(pointers).int()
    return torch.tensor([rng.randint(-(2**31), 2**31 - 1) for _ in range(count)]).int()


def garbage_structure(rng: random.Random) -> Structure:
    vector = rng.choice([1, 4, 8])
    panels = rng.choice([0, 1, 2, 5, 9, 16])
    if rng.random() < 0.4:
        n, m = rng.choice([(1, 1), (2, 4), (1, 3), (5, 64), (64, 64), (7, 9)])
        cols = m * rng.choice([0, 1, 5, 70])
        layout = Layout(panels * vector, cols, vector, 256 // m * m, n, m)
        entries = cols // m * n * panels + rng.choice([0] * 14 + [1, -1])
        return Structure(layout, garbage_bytes(rng, max(entries, 0)), None)
    cols = rng.choice([0, 1, 44, 256, 257, 300, 513])
    layout = Layout(panels * vector, cols, vector, 256)
    entries = rng.choice([0, 1, 100, 3000])
    count = layout.blocks * panels + 1 + rng.choice([0] * 30 + [1, -1])
    return Structure(
        layout, garbage_bytes(rng, entries), garbage_pointers(rng, max(count, 1), entries)
    )


class Calls:
    """Counts what became of them."""

    def __init__(self) -> None:
        self.ran = self.refused = self.spilled = 0

    def __call__(
        self, verb: str, arguments: list[object], shape: tuple[int, ...], like: Tensor
    ) -> None:
        """One call whose output lies in the middle of a field of canaries."""
        size = torch.Size(shape).numel()
        field = torch.full((size + 2000,), CANARY, dtype=like.dtype)
        untouched = field[:1000].clone()
        output = field[1000 : 1000 + size].view(shape)
        try:
            getattr(_core.products, verb)(*arguments, output)
        except GossamerError:
            self.refused += 1
        else:
            self.ran += 1
        ends = torch.equal(field[:1000], untouched) and torch.equal(field[-1000:], untouched)
        self.spilled += not ends


def main(isa: str, count: int) -> None:
    backend.use_isa(isa)
    torch.set_num_threads(1)
    rng = random.Random(isa)
    call = Calls()
    for number in range(count):
        print(number, flush=True)
        s = garbage_structure(rng)
        rows, cols = s.layout.rows, s.layout.cols
        dtype, batch = rng.choice(DTYPES), rng.choice([1, 2, 5, 9, 17, 33, 70, 150])
        values = torch.randn(s.nnz).to(dtype)
        x, g = torch.randn(batch, cols).to(dtype), torch.randn(batch, rows).to(dtype)
        bias = rng.choice([None, torch.randn(rows).to(dtype)])
        call("spmm", [x, values, *s, bias], (batch, rows), x)
        call("spmm_t", [g, values, *s], (batch, cols), g)
        call("sddmm", [g, x, *s], (s.nnz,), x)
        # A transpose of the right size, with garbage inside.
        blocks = -(-rows // 256)
        turned = Structure(
            Layout(cols, rows, 1, 256),
            garbage_bytes(rng, s.nnz),
            garbage_pointers(rng, blocks * cols + 1, s.nnz),
        )
        perm = torch.randint(-(2**31), 2**31 - 1, (s.nnz,), dtype=torch.int32)
        call("spmm_t_packed", [g, values, *s, *turned, perm], (batch, cols), g)
    print(call.ran, call.refused, call.spilled)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
