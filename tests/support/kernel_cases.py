"""Weights, operands, exact results and tolerances for the tests of the compiled kernels.

A result is judged against products in float64 of the very numbers that the kernel was given. With
k products in a sum and unit round-off u of the type it is summed in, an element may be off by

    6 u sqrt(k) (|a * b|_2 + |sum|)      |a * b|_2: root of the sum of the squared products

The first term is what random rounding errors grow to, the second what they do when the products
are equal and so are their errors; the factor is room to spare. bfloat16 results are rounded once
more, by 2**-8 of the exact result.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gossamer import backend

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
SUM_ROUNDING = {torch.float32: 2.0**-24, torch.float64: 2.0**-53, torch.bfloat16: 2.0**-24}
VERBS = ("spmm", "spmm_t", "sddmm")
# Of bfloat16, by kernels of their own: rows that share their columns beyond a panel.
WIDE = ("v16", "v32", "v64", "v128")


def vector_of(layout: str) -> int:
    """`"v4"` -> 4."""
    return int(layout.removeprefix("v"))


def random(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Normal numbers, the same ones for a shape and a seed in every dtype (but rounded)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def make_mask(rows: int, cols: int, vector: int, kind: str, seed: int = 0) -> Tensor:
    """A bool mask [rows, cols] with equal rows in each panel.

    Args:
        kind: `"2:4"`, a density such as `"0.3"`, or `"holes"`: half dense, but the first and the
            last panel and every third column are empty.
    """
    generator = torch.Generator().manual_seed(seed)
    panels = rows // vector
    if ":" in kind:
        n, m = map(int, kind.split(":"))
        score = torch.rand(panels, cols // m, m, generator=generator)
        order = score.argsort(-1).argsort(-1)
        lists = (order < n).view(panels, cols)
    else:
        lists = torch.rand(panels, cols, generator=generator) < (
            0.5 if kind == "holes" else float(kind)
        )
        if kind == "holes":
            lists[0] = lists[-1] = False
            lists[:, ::3] = False
    return lists.repeat_interleave(vector, 0)


@dataclass(frozen=True)
class Weight:
    """A sparse weight in every form a test needs."""

    dense: Tensor  # [rows, cols] in the dtype of the values, zero where nothing is kept
    mask: Tensor
    values: Tensor
    structure: backend.Structure
    transposed: backend.Transposed

    @property
    def rows(self) -> int:
        return int(self.structure.layout.rows)

    @property
    def cols(self) -> int:
        return int(self.structure.layout.cols)


def weight_of_mask(mask: Tensor, vector: int, kind: str, dtype: torch.dtype, seed: int) -> Weight:
    n, m = map(int, kind.split(":")) if ":" in kind else (0, 0)
    structure = backend.encode(mask, min(vector, 8), n, m)  # 8: the rows of the highest panel
    dense = random(*mask.shape, dtype=dtype, seed=seed).masked_fill(~mask, 0)
    values = backend.gather(dense, structure)
    return Weight(dense, mask, values, structure, backend.transpose(structure))


@cache
def make_weight(rows: int, cols: int, vector: int, kind: str, dtype: torch.dtype) -> Weight:
    mask = make_mask(rows, cols, vector, kind, seed=rows + cols)
    return weight_of_mask(mask, vector, kind, dtype, seed=rows)


def exact(x: Any) -> Tensor:
    """An operand in float64."""
    return torch.as_tensor(np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x).double()


@dataclass(frozen=True)
class Expected:
    """The exact result of a verb and how far from it a kernel may be."""

    result: Tensor
    tolerance: Tensor


def _expected(a: Tensor, b: Tensor, bias: Tensor | None, terms: int, dtype: torch.dtype) -> Any:
    a, b = exact(a), exact(b)
    result, squares = a @ b, a.square() @ b.square()
    if bias is not None:
        result, squares = result + exact(bias), squares + exact(bias).square()
    size = squares.sqrt() + result.abs()
    tolerance = 6 * SUM_ROUNDING[dtype] * max(terms, 1) ** 0.5 * size
    if dtype == torch.bfloat16:
        tolerance = tolerance + 2.0**-8 * result.abs()
    return Expected(result, tolerance)


def expected_spmm(x: Any, weight: Weight, bias: Tensor | None = None) -> Expected:
    terms = int(weight.mask.sum(1).amax()) + 1 if weight.mask.numel() else 1
    return _expected(x, weight.dense.T, bias, terms, weight.values.dtype)


def expected_spmm_t(g: Any, weight: Weight) -> Expected:
    terms = int(weight.mask.sum(0).amax()) if weight.mask.numel() else 1
    return _expected(g, weight.dense, None, terms, weight.values.dtype)


def expected_sddmm(g: Any, x: Any, weight: Weight) -> Expected:
    """In the order of the values."""
    every = _expected(exact(g).T, x, None, len(x), weight.values.dtype)
    at = backend.coordinates(weight.structure)
    return Expected(every.result.flatten()[at], every.tolerance.flatten()[at])


def check(name: str, result: Any, expected: Expected) -> None:
    """Fails with the worst element. NaN never passes."""
    got = exact(result)
    assert got.shape == expected.result.shape, f"{name}: shape {tuple(got.shape)}"
    off = (got - expected.result).abs()
    bad = ~(off <= expected.tolerance)
    if not bad.any():
        return
    worst = tuple(int(i) for i in bad.nonzero()[0])
    raise AssertionError(
        f"{name}: {int(bad.sum())} of {bad.numel()} elements are wrong; the first at {worst}: "
        f"{got[worst]:.9g}, exact is {expected.result[worst]:.9g}, "
        f"off by {off[worst]:.3g}, allowed {expected.tolerance[worst]:.3g}"
    )


def same_bits(a: Any, b: Any) -> bool:
    """Equal bit for bit; NaN equals NaN, and -0 does not equal 0."""
    a, b = torch.as_tensor(a).contiguous(), torch.as_tensor(b).contiguous()
    return a.dtype == b.dtype and a.shape == b.shape and bytes_of(a) == bytes_of(b)


def bytes_of(x: Tensor) -> bytes:
    return x.flatten().view(torch.uint8).numpy().tobytes()


def run_verb(verb: str, weight: Weight, x: Any, g: Any, bias: Any = None) -> dict[str, Any]:
    """Every way of asking for one verb: {name: result}."""
    s, values = weight.structure, weight.values
    if isinstance(x, np.ndarray):
        values = values.numpy()
    if verb == "spmm":
        return {"spmm": backend.spmm(x, values, s, bias)}
    if verb == "spmm_t":
        return {
            "spmm_t": backend.spmm_t(g, values, s),
            "spmm_t, packed": backend.spmm_t(g, values, s, weight.transposed),
        }
    return {"sddmm": backend.sddmm(g, x, s)}


def expected_verb(verb: str, weight: Weight, x: Any, g: Any, bias: Any = None) -> Expected:
    if verb == "spmm":
        return expected_spmm(x, weight, bias)
    if verb == "spmm_t":
        return expected_spmm_t(g, weight)
    return expected_sddmm(g, x, weight)


class Products(Dataset[Tensor]):
    """spmm of a few operands: work for the workers of a DataLoader, which import it from here."""

    def __init__(self, weight: Weight, operands: list[Tensor]) -> None:
        self.weight, self.operands = weight, operands

    def __len__(self) -> int:
        return len(self.operands)

    def __getitem__(self, index: int) -> Tensor:
        if index >= len(self):
            raise IndexError
        result: Tensor = backend.spmm(
            self.operands[index], self.weight.values, self.weight.structure
        )
        return result
