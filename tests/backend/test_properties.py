"""Random weights, shapes, strides, dtypes and tables against the float64 formulas.

`derandomize`: the same cases on every run, so a failure in CI is one anywhere. To search further,
set GOSSAMER_FUZZ to a number of cases a property: they are then random ones.
"""

import os
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer import backend
from support.kernel_cases import (
    DTYPES,
    VERBS,
    Weight,
    check,
    expected_verb,
    random,
    run_verb,
    same_bits,
    weight_of_mask,
)

FUZZ = int(os.environ.get("GOSSAMER_FUZZ", "0"))


def cases(number: int) -> settings:
    return settings(max_examples=FUZZ or number, derandomize=not FUZZ, database=None)


pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Operand:
    """How a [batch, features] matrix lies in memory."""

    row_step: int
    col_step: int
    offset: int
    turned: bool
    repeat_rows: bool
    repeat_cols: bool

    def make(self, batch: int, features: int, dtype: torch.dtype, seed: int) -> Tensor:
        rows, cols = (features, batch) if self.turned else (batch, features)
        shape = (self.offset + self.row_step * rows, self.offset + self.col_step * cols)
        wide = random(*shape, dtype=dtype, seed=seed)
        view = wide[self.offset :: self.row_step, self.offset :: self.col_step][:rows, :cols]
        view = view.T if self.turned else view
        if self.repeat_rows and batch:
            view = view[:1].expand(batch, features)
        if self.repeat_cols and features:
            view = view[:, :1].expand(batch, features)
        return view


rarely = st.sampled_from([False] * 7 + [True])
operand_kinds = st.builds(
    Operand, st.integers(1, 3), st.integers(1, 3), st.integers(0, 3), st.booleans(), rarely, rarely
)


@st.composite
def shapes_of_nm(draw: st.DrawFn) -> tuple[int, int, int]:
    """(n, m, columns): groups of every size, up to a few blocks of columns."""
    m = draw(st.one_of(st.integers(1, 8), st.integers(1, 64)))
    n = draw(st.integers(1, m))
    cols = m * draw(st.integers(0, max(1, 600 // m)))
    return n, m, cols


@st.composite
def weights(draw: st.DrawFn, dtypes: tuple[str, ...] = tuple(DTYPES)) -> Weight:
    """Any vector and dtype; N:M or a mask of any density, with some rows and columns emptied."""
    vector = draw(st.sampled_from([1, 4, 8]))
    panels = draw(st.integers(0, 40 // vector + 2))
    dtype = DTYPES[draw(st.sampled_from(dtypes))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    if draw(st.booleans()):
        n, m, cols = draw(shapes_of_nm())
        score = torch.rand(panels, cols // m, m, generator=generator)
        lists = (score.argsort(-1).argsort(-1) < n).view(panels, cols)
        kind = f"{n}:{m}"
    else:
        cols = draw(st.one_of(st.integers(0, 40), st.integers(200, 600)))
        density = draw(st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)))
        lists = torch.rand(panels, cols, generator=generator) < density
        lists[:: draw(st.integers(2, 50))] &= draw(st.booleans())
        lists[:, :: draw(st.integers(2, 50))] &= draw(st.booleans())
        kind = "mask"
    mask = lists.repeat_interleave(vector, 0)
    return weight_of_mask(mask, vector, kind, dtype, seed=draw(st.integers(0, 999)))


batches = st.one_of(st.integers(0, 20), st.integers(21, 140))
tables = st.sampled_from(backend.isas())


def a_verb_is_its_formula(
    verb: str,
    weight: Weight,
    batch: int,
    isa: str,
    x_kind: Operand,
    g_kind: Operand,
    with_bias: bool,
) -> None:
    dtype = weight.values.dtype
    x = x_kind.make(batch, weight.cols, dtype, seed=batch)
    g = g_kind.make(batch, weight.rows, dtype, seed=batch + 1)
    bias = random(weight.rows, dtype=dtype, seed=5) if with_bias else None
    expected = expected_verb(verb, weight, x, g, bias)
    backend.use_isa(isa)
    for way, result in run_verb(verb, weight, x, g, bias).items():
        check(f"{isa} {way}", result, expected)


CALLS = {
    "weight": weights(),
    "batch": batches,
    "isa": tables,
    "x_kind": operand_kinds,
    "g_kind": operand_kinds,
    "with_bias": st.booleans(),
}


@pytest.mark.parametrize("verb", VERBS)
@cases(100)
@given(**CALLS)
def test_a_verb_is_its_formula(verb: str, **call: Any) -> None:
    a_verb_is_its_formula(verb, **call)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.slow
@cases(500)
@given(**CALLS)
def test_a_verb_is_its_formula_in_many_cases(verb: str, **call: Any) -> None:
    a_verb_is_its_formula(verb, **call)


@cases(100)
@given(weight=weights(("float64",)), batch=st.integers(1, 70), isa=tables)
def test_the_verbs_are_each_others_transposes(weight: Weight, batch: int, isa: str) -> None:
    # <G, X W^T> = <G W, X> = <G^T X, W>: each verb is a gradient of the others.
    backend.use_isa(isa)
    x = random(batch, weight.cols, dtype=torch.float64, seed=1)
    g = random(batch, weight.rows, dtype=torch.float64, seed=2)
    s, values = weight.structure, weight.values
    forward = (backend.spmm(x, values, s) * g).sum()
    scale = 1e-13 * ((g.abs().T @ x.abs()) * weight.dense.abs()).sum()
    for transposed in (None, weight.transposed):
        assert abs(forward - (backend.spmm_t(g, values, s, transposed) * x).sum()) <= scale
    assert abs(forward - backend.sddmm(g, x, s) @ values) <= scale


@cases(200)
@given(weight=weights(), seed=st.integers(0, 999))
def test_structure_round_trips(weight: Weight, seed: int) -> None:
    s, mask = weight.structure, weight.mask
    layout = s.layout
    backend.validate(s, nvalues=len(weight.values))
    assert s.nnz == len(weight.values) == int(mask.sum())

    at = backend.coordinates(s)
    assert torch.equal(at.sort().values, mask.flatten().nonzero().flatten())
    assert torch.equal(weight.dense.flatten()[at], weight.values)
    assert same_bits(backend.scatter(weight.values, s), weight.dense)
    assert same_bits(backend.gather(weight.dense, s), weight.values)
    # gather takes the kept entries of any matrix, and nothing else.
    other = random(*mask.shape, dtype=weight.values.dtype, seed=seed)
    assert same_bits(backend.scatter(backend.gather(other, s), s), other.masked_fill(~mask, 0))

    again = backend.encode(
        backend.scatter(weight.values, s) != 0, layout.vector, layout.n, layout.m
    )
    assert again.layout == layout
    assert torch.equal(again.indices, s.indices)
    assert (s.indptr is None) == (layout.m != 0)
    if s.indptr is not None:
        assert torch.equal(again.indptr, s.indptr)


@cases(200)
@given(weight=weights())
def test_order_in_memory(weight: Weight) -> None:
    # Block of columns, panel, column, row in the panel: what csrc/layouts/panels.hpp draws.
    layout = weight.structure.layout
    at = backend.coordinates(weight.structure)
    row, col = at // max(layout.cols, 1), at % max(layout.cols, 1)
    block, panel, inside = col // layout.block_cols, row // layout.vector, row % layout.vector
    key = ((block * layout.panels + panel) * layout.cols + col) * layout.vector + inside
    assert (key.diff() > 0).all()
    assert torch.equal(
        weight.structure.indices.repeat_interleave(layout.vector).long(), col % layout.block_cols
    )


@cases(200)
@given(weight=weights())
def test_transpose_is_the_transpose(weight: Weight) -> None:
    turned, perm = weight.transposed
    backend.validate(turned, nvalues=len(weight.values))
    assert (turned.layout.rows, turned.layout.cols) == (weight.cols, weight.rows)
    assert turned.layout.vector == 1
    assert torch.equal(perm.long().sort().values, torch.arange(len(weight.values)))
    assert same_bits(backend.scatter(weight.values[perm.long()], turned), weight.dense.T)
    there_and_back = backend.transpose(turned)
    assert torch.equal(
        perm.long()[there_and_back.perm.long()].sort().values, perm.long().sort().values
    )
    back = backend.scatter(
        weight.values[perm.long()][there_and_back.perm.long()], there_and_back.structure
    )
    assert same_bits(back, weight.dense)
