"""The dense formulas that results are tested against, in float64, and how far off they may be."""

import torch
from torch import Tensor

from gossamer.patterns import parse_pattern

# One text for each way in which the layout can look: V = 1, 4, 8, fixed counts and pointers.
PATTERNS = ["2:4", "2:4:v4", "1:8:v8", "3:5", "90%", "75%:v4", "block 4x4 50%", "block 16x16 50%"]
# Tiles higher than a panel: runs of panels with equal lists of columns.
WIDE = ["1:4:v16", "75%:v32", "2:4:v64", "50%:v128", "block 32x4 50%", "block 64x1 75%"]
WIDE += ["block 128x8 50%"]


# --8<-- [start:oracle]
def spmm(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Y = X W^T + b of a dense W with zeros."""
    y = x.double() @ weight.double().T
    return y if bias is None else y + bias.double()
    # --8<-- [end:oracle]


def spmm_t(g: Tensor, weight: Tensor) -> Tensor:
    """G W."""
    return g.double() @ weight.double()


def sddmm(g: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """G^T X where the mask is True, as a dense matrix with zeros."""
    g, x = g.double().reshape(-1, g.shape[-1]), x.double().reshape(-1, x.shape[-1])
    return (g.T @ x) * mask


def tolerance(magnitudes: Tensor, dtype: torch.dtype) -> Tensor:
    """How far each result may be off: rounding of its terms, of their sum, and of itself.

    Args:
        magnitudes: the same formula on absolute values, in float64.
        dtype: of the inputs and outputs; bfloat16 is summed in float32.
    """
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    return (torch.finfo(dtype).eps + 32 * torch.finfo(sums).eps) * magnitudes


def assert_close(got: Tensor, expected: Tensor, magnitudes: Tensor) -> None:
    """Compare with the oracle; an oracle of nothing but zeros proves nothing and fails.

    Args:
        got: the result, any dtype.
        expected: the oracle's, float64.
        magnitudes: the oracle on absolute values.
    """
    assert got.shape == expected.shape
    assert expected.any() or not expected.numel(), "every expected number is zero"
    off = (got.double() - expected).abs() - tolerance(magnitudes, got.dtype)
    assert bool((off <= 0).all()), (
        f"off by up to {float((got.double() - expected).abs().max()):.3g}"
    )


def sizes(pattern: str) -> tuple[int, int]:
    """A small (rows, cols) that fits a text of PATTERNS or WIDE."""
    if pattern in WIDE:
        return 2 * parse_pattern(pattern).tile[0], 32
    return {"3:5": (7, 15), "90%": (7, 43), "2:4": (7, 12), "block 16x16 50%": (16, 64)}.get(
        pattern, (16, 32)
    )
