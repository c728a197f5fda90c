"""Unbiased N:M samples of least variance, for gradients.

Dropping the small entries of a gradient is biased, and training with it fails. An entry that is
kept with probability p and divided by p is unbiased. Groups run down the columns of
`[tokens, features]`, because the product dW = dY^T X sums over tokens: the sample is the N:M matrix
dY^T `[features, tokens]`, and the product runs on the kernel of a sparse weight.
"""

from typing import Literal

import torch

from gossamer import backend
from gossamer.backend import Layout, Structure, check_array
from gossamer.backend import masks as kernels
from gossamer.backend.arrays import FLOATS
from gossamer.errors import DTypeError, PatternError, ShapeError
from gossamer.patterns import NM, as_integer

__all__ = ["MvueMethod", "mvue", "mvue_product"]

MvueMethod = Literal["exact", "approximate"]


def mvue(
    x: torch.Tensor,
    n: int,
    m: int,
    *,
    seed: int,
    step: int = 0,
    layer: int = 0,
    method: MvueMethod = "exact",
) -> tuple[torch.Tensor, Structure]:
    """Return a random N:M sample of x down its columns, whose mean is x.

    "exact" keeps entry a_i with probability p_i = min(1, c |a_i|), where sum p = n sets c. This has
    the least variance of all unbiased choices, sum a_i^2 (1 / p_i - 1). "approximate" draws two
    entries without replacement in proportion to |a|, so that
    p_i = |a_i|/S (1 + sum over j != i of |a_j| / (S - |a_j|)) with S = sum |a|, as published code
    does for 2:4; on Gaussian groups its variance is 6 % higher. For n = 1 both are the same.

    A group with at most n non-zero entries is kept bit for bit, and filled up with zeros from its
    lowest rows. Infinities and NaN are always kept first, so that a loss scaler detects them.
    Probabilities are multiples of 2^-30; bfloat16 rounds the quotient. The result depends on the
    arguments only, not on the number of threads or the instruction set.

    Args:
        x: float32, float64 or bfloat16 `[tokens, features]` on the CPU, any strides.
        n: Entries kept per group.
        m: Rows per group, 1 <= n <= m <= 64. Missing rows of the last group count as zeros.
        seed: 0 <= seed < 2**64; `seed`, `step` and `layer` determine the random numbers.
        step: Training step, 0 <= step < 2**64, so that every step draws other numbers.
        layer: Index of the layer, 0 <= layer < 2**64, so that layers draw independently.
        method: "exact", or "approximate" where n <= 2.

    Returns:
        The values `[features * padded * n / m]` in the dtype of x, and the structure of the sampled
        x^T `[features, padded]`; padded is tokens rounded up to a multiple of m.

    Raises:
        PatternError: `n`, `m`, `seed`, `step` or `layer` is out of range, or the method is unknown.
        DTypeError: x is not a tensor of these dtypes, or a number is not an integer.
        ShapeError: x is not of rank 2.

    Reference:
        Chmiel et al. 2022, "Minimum Variance Unbiased N:M Sparsity for the Neural Gradients".

    Example:
        >>> values, structure = mvue(torch.tensor([[3.0], [0.0], [0.0], [-1.0]]), 2, 4, seed=0)
        >>> values, structure.layout.rows, structure.layout.cols
        (tensor([ 3., -1.]), 1, 4)
    """
    pattern = NM(n, m)
    x = check_array(x, "mvue: x", rank=2, dtypes=FLOATS)
    if method not in ("exact", "approximate"):
        raise PatternError(f'mvue got method={method!r}; choose "exact" or "approximate"')
    if method == "approximate" and pattern.n > 2:
        raise PatternError(
            f'mvue got method="approximate" with {pattern}; two draws pick n <= 2: '
            'choose method="exact"'
        )
    seed, step, layer = (
        _key(number, f"mvue got {name}")
        for name, number in (("seed", seed), ("step", step), ("layer", layer))
    )
    tokens, features = x.shape
    width = 256 // pattern.m * pattern.m  # block of whole groups whose column ids fit a byte
    padded = -(-tokens // pattern.m) * pattern.m
    layout = Layout(features, padded, 1, width, pattern.n, pattern.m)
    return kernels.mvue_sample(x, layout, method == "approximate", seed, step, layer)


def mvue_product(
    grad_output: torch.Tensor,
    x: torch.Tensor,
    n: int,
    m: int,
    *,
    seed: int,
    step: int = 0,
    layer: int = 0,
    method: MvueMethod = "exact",
) -> torch.Tensor:
    """Return an unbiased estimate of dW = dY^T X from an N:M sample of dY along the tokens.

    Args:
        grad_output: `[tokens, out_features]`, float32, float64 or bfloat16, any strides.
        x: `[tokens, in_features]`, the same dtype; padded if tokens is not a multiple of m.
        n: Entries of dY kept per group of m tokens.
        m: Tokens per group.
        seed: See `mvue`.
        step: See `mvue`.
        layer: See `mvue`.
        method: See `mvue`.

    Returns:
        `[out_features, in_features]`, contiguous.

    Raises:
        ShapeError: The two numbers of tokens differ.
        DTypeError: The two dtypes differ.
        PatternError: See `mvue`.

    Example:
        >>> mvue_product(torch.eye(2), torch.eye(2), 2, 4, seed=0)
        tensor([[1., 0.],
                [0., 1.]])
    """
    grad_output = check_array(grad_output, "mvue_product: grad_output", rank=2, dtypes=FLOATS)
    x = check_array(x, "mvue_product: x", rank=2, dtypes=FLOATS)
    if x.shape[0] != grad_output.shape[0]:
        raise ShapeError(
            f"mvue_product got grad_output of {grad_output.shape[0]} tokens and x of {x.shape[0]}; "
            "they must have the same: flatten both to [tokens, features]"
        )
    if x.dtype != grad_output.dtype:
        raise DTypeError(
            f"mvue_product got grad_output of {grad_output.dtype} and x of {x.dtype}; they must "
            "have one dtype: convert one of them"
        )
    values, structure = mvue(grad_output, n, m, seed=seed, step=step, layer=layer, method=method)
    missing = structure.layout.cols - x.shape[0]
    if missing:
        x = torch.nn.functional.pad(x, (0, 0, 0, missing))
    product: torch.Tensor = backend.spmm(x.t(), values, structure)
    return product.t().contiguous()


def _key(value: int, what: str) -> int:
    number = as_integer(value, what)
    if not 0 <= number < 2**64:
        raise PatternError(f"{what}={number}; it must be in [0, 2**64): pass a number such as 0")
    return number
