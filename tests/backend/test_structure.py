"""Structure that was damaged: validate() names it, the verbs survive what it does not see."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gossamer import backend
from gossamer.backend import Layout, Structure
from gossamer.errors import ShapeError, StructureError
from support import SUPPORT
from support.grids import covering
from support.kernel_cases import make_mask, weight_of_mask

COLS = 300  # two blocks, the last of 44 columns


def pointer_structure(vector: int) -> Structure:
    mask = make_mask(3 * vector, COLS, vector, "0.3", seed=1)
    return weight_of_mask(mask, vector, "0.3", torch.float32, seed=1).structure


def group_structure(vector: int) -> Structure:
    mask = make_mask(3 * vector, COLS, vector, "2:4", seed=1)
    return weight_of_mask(mask, vector, "2:4", torch.float32, seed=1).structure


def with_index(s: Structure, at: int, value: int) -> Structure:
    indices = s.indices.clone()
    indices[at] = value
    return s._replace(indices=indices)


def with_pointer(s: Structure, at: int, value: int) -> Structure:
    assert s.indptr is not None
    indptr = s.indptr.clone()
    indptr[at] = value
    return s._replace(indptr=indptr)


def swapped(s: Structure, at: int) -> Structure:
    indices = s.indices.clone()
    indices[[at, at + 1]] = indices[[at + 1, at]]
    return s._replace(indices=indices)


def last(s: Structure) -> int:
    return len(s.indices) - 1


def with_layout(s: Structure, **changes: int) -> Structure:
    names = ("rows", "cols", "vector", "block_cols", "n", "m")
    sizes = dict(zip(names, s.layout.as_ints(), strict=True)) | changes
    return s._replace(layout=Layout(*sizes.values()))


# name: (damage, words of the message)
POINTER_DAMAGE: dict[str, tuple[Callable[[Structure], Structure], str]] = {
    "index past a narrow block": (lambda s: with_index(s, last(s), 44), "out of range"),
    "index 255 in a narrow block": (lambda s: with_index(s, last(s), 255), "out of range"),
    "unsorted": (lambda s: swapped(s, 0), "sorted"),
    "unsorted at the end": (lambda s: swapped(s, last(s) - 1), "sorted"),
    "repeated": (lambda s: with_index(s, 1, int(s.indices[0])), "repeats"),
    "index too few": (lambda s: s._replace(indices=s.indices[:-1]), "number of entries"),
    "index too many": (lambda s: s._replace(indices=torch.cat([s.indices, s.indices[:1]])), "rise"),
    "no indices": (lambda s: s._replace(indices=s.indices[:0]), "number of entries"),
    "pointer too few": (lambda s: s._replace(indptr=s.indptr[:-1]), "are needed"),
    "pointer too many": (lambda s: s._replace(indptr=torch.cat([s.indptr, s.indptr[-1:]])), "7"),
    "no pointers": (lambda s: s._replace(indptr=s.indptr[:0]), "are needed"),
    "first pointer not 0": (lambda s: with_pointer(s, 0, 1), "does not rise from 0"),
    "first pointer negative": (lambda s: with_pointer(s, 0, -1), "does not rise from 0"),
    "pointer falls": (lambda s: with_pointer(s, 2, int(s.indptr[1]) - 1), "does not rise"),
    "pointer negative": (lambda s: with_pointer(s, 1, -(2**31)), "does not rise"),
    "pointer huge": (lambda s: with_pointer(s, 3, 2**31 - 1), "does not rise"),
    "last pointer low": (lambda s: with_pointer(s, -1, len(s.indices) - 1), "number of entries"),
    "last pointer high": (lambda s: with_pointer(s, -1, len(s.indices) + 1), "number of entries"),
    "pointer moved into its neighbour": (
        lambda s: with_pointer(s, 1, int(s.indptr[1]) + 1),
        "sorted",
    ),
    "more rows": (lambda s: with_layout(s, rows=s.layout.rows + s.layout.vector), "are needed"),
    "fewer rows": (lambda s: with_layout(s, rows=s.layout.rows - s.layout.vector), "are needed"),
    "one block": (lambda s: with_layout(s, cols=256), "are needed"),
    "three blocks": (lambda s: with_layout(s, cols=600), "are needed"),
    "narrower last block": (lambda s: with_layout(s, cols=257), "out of range"),
    "called 2:4": (lambda s: with_layout(s, n=2, m=4), "indptr was given"),
}
GROUP_DAMAGE: dict[str, tuple[Callable[[Structure], Structure], str]] = {
    "index past a narrow block": (lambda s: with_index(s, last(s), 44), "out of range"),
    "unsorted": (lambda s: swapped(s, 0), "sorted"),
    "repeated": (lambda s: with_index(s, 1, int(s.indices[0])), "repeats"),
    "wrong group": (lambda s: with_index(s, 1, 4), "does not keep 2"),
    "group of three": (lambda s: three_in_a_group(s), "does not keep 2"),
    "index too few": (lambda s: s._replace(indices=s.indices[:-1]), "needs"),
    "index too many": (lambda s: s._replace(indices=torch.cat([s.indices, s.indices[:1]])), "need"),
    "no indices": (lambda s: s._replace(indices=s.indices[:0]), "needs"),
    "pointers given": (lambda s: s._replace(indptr=pointer_structure(1).indptr), "pass None"),
    "more rows": (lambda s: with_layout(s, rows=s.layout.rows + s.layout.vector), "needs"),
    "more columns": (lambda s: with_layout(s, cols=COLS + 4), "needs"),
    "called 1:4": (lambda s: with_layout(s, n=1), "needs"),
    "called 3:6": (lambda s: with_layout(s, n=3, m=6, block_cols=252), "out of range"),
    "called 1:2": (lambda s: with_layout(s, n=1, m=2), "does not keep 1"),
}


def three_in_a_group(s: Structure) -> Structure:
    indices = s.indices.clone()
    indices[:4] = torch.tensor([0, 1, 2, 7])
    return s._replace(indices=indices)


@pytest.mark.parametrize("vector", [1, 4, 8])
@pytest.mark.parametrize("name", POINTER_DAMAGE)
def test_damage_is_named(name: str, vector: int) -> None:
    sound = pointer_structure(vector)
    backend.validate(sound, nvalues=sound.nnz)
    assert_refused(sound, *POINTER_DAMAGE[name])


@pytest.mark.parametrize("vector", [1, 4, 8])
@pytest.mark.parametrize("name", GROUP_DAMAGE)
def test_damage_of_groups_is_named(name: str, vector: int) -> None:
    sound = group_structure(vector)
    backend.validate(sound, nvalues=sound.nnz)
    assert_refused(sound, *GROUP_DAMAGE[name])


def assert_refused(sound: Structure, damage: Callable[[Structure], Structure], words: str) -> None:
    damaged = damage(sound)
    with pytest.raises(StructureError, match=words):
        backend.validate(damaged)
    # Nothing that walks the structure starts on a damaged one.
    dense = torch.ones(damaged.layout.rows, damaged.layout.cols)
    for walk in (
        lambda: backend.gather(dense, damaged),
        lambda: backend.scatter(torch.ones(damaged.nnz), damaged),
        lambda: backend.coordinates(damaged),
        lambda: backend.transpose(damaged),
    ):
        with pytest.raises(StructureError):
            walk()


@pytest.mark.parametrize("vector", [1, 4, 8])
@pytest.mark.parametrize("off", [-1, 1])
def test_a_wrong_number_of_values_is_named(vector: int, off: int) -> None:
    for s in (pointer_structure(vector), group_structure(vector)):
        with pytest.raises(StructureError, match=f"{s.nnz + off} values"):
            backend.validate(s, nvalues=s.nnz + off)
        x, g = torch.ones(2, COLS), torch.ones(2, s.layout.rows)
        with pytest.raises(ShapeError, match="values"):
            backend.spmm(x, torch.ones(s.nnz + off), s)
        with pytest.raises(ShapeError, match="values"):
            backend.spmm_t(g, torch.ones(s.nnz + off), s)


@pytest.mark.parametrize("vector", [1, 4, 8])
@pytest.mark.parametrize(
    ("rows", "cols", "word"),
    [(0, 0, "panel"), (0, 299, "panel"), (5, 150, "panel"), (None, 256, "keeps 3")],
)
def test_encode_refuses_what_the_layout_cannot_hold(
    vector: int, rows: int | None, cols: int, word: str
) -> None:
    mask = make_mask(3 * vector, COLS, vector, "2:4", seed=1)
    if rows is None:  # every row of a panel alike, but a group too full
        mask[:vector, cols : cols + 4] = torch.tensor([True, True, True, False])
        with pytest.raises(StructureError, match=word):
            backend.encode(mask, vector, 2, 4)
        backend.encode(mask, vector)
    elif vector > 1:
        mask[rows % vector, cols] ^= True
        with pytest.raises(StructureError, match=word):
            backend.encode(mask, vector)
        backend.encode(mask, 1)


def test_a_transpose_of_another_weight_is_refused() -> None:
    s = pointer_structure(4)
    turned, perm = backend.transpose(s)
    g, values = torch.ones(3, s.layout.rows), torch.ones(s.nnz)
    for other in (
        backend.Transposed(turned, perm[:-1]),
        backend.Transposed(turned, torch.cat([perm, perm[:1]])),
        backend.Transposed(turned._replace(indices=turned.indices[:-1]), perm),
        backend.Transposed(with_pointer(turned, 1, 999999), perm),
        backend.Transposed(s, perm),
        backend.Transposed(group_structure(1), perm),
        backend.transpose(group_structure(4)),
        backend.Transposed(with_layout(turned, rows=COLS + 1), perm),
    ):
        with pytest.raises(StructureError):
            backend.spmm_t(g, values, s, other)


def test_a_damaged_permutation_reads_inside_the_values() -> None:
    s = pointer_structure(1)
    turned, perm = backend.transpose(s)
    g = torch.ones(5, s.layout.rows)
    values = torch.full((s.nnz,), 2.0)
    for bad in (-1, s.nnz, 2**31 - 1, -(2**31)):
        damaged = perm.clone()
        damaged[::7] = bad
        # All values are equal, so a read inside them gives the right sum all the same.
        result = backend.spmm_t(g, values, s, backend.Transposed(turned, damaged))
        assert torch.equal(result, backend.spmm_t(g, values, s))


@pytest.mark.parametrize(
    ("vector", "dtype", "isa"),
    covering([1, 4, 8], [torch.float32, torch.float64, torch.bfloat16], backend.isas()),
)
def test_nothing_unwritten_reaches_a_result(vector: int, dtype: torch.dtype, isa: str) -> None:
    """Whatever the ids, a product with zeros is zero, or refused: scratch memory is never read
    before it is written.
    """
    backend.use_isa(isa)
    generator = torch.Generator().manual_seed(0)
    rows, refused = 3 * vector, 0
    # Columns in one narrow block, in a full one, in full ones of 255, in a full and a narrow one.
    for cols, n, m in ((64, 2, 4), (256, 2, 4), (510, 1, 3), (300, 2, 4), (300, 0, 0), (7, 0, 0)):
        kept = torch.arange(cols) % m < n if m else torch.arange(cols) % 3 == 0
        sound = backend.encode(kept.expand(rows, -1), vector, n, m)
        values = torch.ones(sound.nnz, dtype=dtype)
        for batch in (1, 5, 33):
            zeros = torch.zeros(batch, cols, dtype=dtype), torch.zeros(batch, rows, dtype=dtype)
            junk = torch.full((33, 512), 1e30, dtype=dtype)
            wide = backend.encode(torch.ones(8, 512, dtype=torch.bool), 1)
            narrowest = min(cols, (cols - 1) % sound.layout.block_cols + 1)
            for top in (narrowest, 256):
                ids = torch.randint(top, sound.indices.shape, generator=generator)
                ids[-1] = top - 1
                s = sound._replace(indices=ids.to(torch.uint8))
                try:
                    for verb, operands in (
                        (backend.spmm, (zeros[0], values)),
                        (backend.spmm_t, (zeros[1], values)),
                        (backend.sddmm, (zeros[1], torch.ones_like(zeros[0]))),
                        (backend.sddmm, (torch.ones_like(zeros[1]), zeros[0])),
                    ):
                        # What lies in scratch memory before.
                        backend.spmm(junk, torch.ones(wide.nnz, dtype=dtype), wide)
                        backend.sddmm(junk[:, :8], junk, wide)
                        assert not verb(*operands, s).any()
                except StructureError:
                    refused += 1
    assert refused == 15, "ids up to 255 are refused except where a block has 256 columns"


GARBAGE = 600


@pytest.mark.parametrize("isa", backend.isas())
@pytest.mark.slow
@pytest.mark.process
def test_garbage_never_kills_the_process(isa: str) -> None:
    worker = SUPPORT / "garbage_worker.py"
    done = subprocess.run(
        [sys.executable, str(worker), isa, str(GARBAGE)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    lines = done.stdout.split()
    assert done.returncode == 0, f"signal at garbage number {lines[-1:]}:\n{done.stderr}"
    ran, refused, spilled = map(int, lines[-3:])
    assert spilled == 0, "a kernel wrote outside its output"
    # The worth of the test: most garbage must get past the checks and into the kernels.
    assert ran >= 2 * GARBAGE
    assert refused >= GARBAGE // 2


def describe(s: Structure) -> Tensor:
    """Every number of a structure in one tensor, to see that nothing changed it."""
    parts = [torch.tensor(s.layout.as_ints()), s.indices.long()]
    return torch.cat(parts if s.indptr is None else [*parts, s.indptr.long()])


def test_verbs_leave_the_structure_as_it_is() -> None:
    for s in (pointer_structure(4), group_structure(1)):
        before = describe(s)
        x, g, values = torch.ones(9, COLS), torch.ones(9, s.layout.rows), torch.ones(s.nnz)
        backend.spmm(x, values, s)
        backend.spmm_t(g, values, s)
        backend.spmm_t(g, values, s, backend.transpose(s))
        backend.sddmm(g, x, s)
        assert torch.equal(describe(s), before)
        assert torch.equal(x, torch.ones_like(x))
        assert torch.equal(g, torch.ones_like(g))
        assert torch.equal(values, torch.ones_like(values))
