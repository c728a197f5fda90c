"""What the layers' bench measures: shapes, patterns and the problems built from them.

A problem is one linear layer whose weight is zero outside its mask, an input and an upstream
gradient. Every candidate gets the same numbers, and the dense formula on them says what its
results must be.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.harness.plan import Plan, quick
from bench.harness.training import SEED
from gossamer import parse_pattern
from gossamer.masks import magnitude_mask


class Shape(NamedTuple):
    """Sizes of one product, ``batch x in_features x out_features``.

    Example:
        >>> str(Shape(512, 768, 3072)), Shape(2, 3, 4).flops
        ('512x768x3072', 48)
    """

    batch: int
    in_features: int
    out_features: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.in_features}x{self.out_features}"

    @property
    def flops(self) -> int:
        """Floating-point operations of the dense product."""
        return 2 * self.batch * self.in_features * self.out_features


SHAPES = (Shape(512, 768, 3072), Shape(2048, 1024, 1024), Shape(256, 4096, 4096))
NM_PATTERNS = ("2:4:v4", "1:4:v4", "1:8:v4", "1:16:v4", "2:4")
UNSTRUCTURED = ("50%", "75%", "90%", "95%", "98%")
PATTERNS = (*NM_PATTERNS, *UNSTRUCTURED)

DECODING = Shape(1, 4096, 4096)
DECODING_PATTERN = "2:4:v8"

CALL_SHAPES = (Shape(1, 8, 8), Shape(8, 8, 8))
CALL_PATTERN = "2:4:v4"

HALF_PATTERNS = ("2:4:v4", "1:4:v4", "1:8:v4", "90%", "90%:v4", "block 16x16 90%")
STATE_SHAPE = Shape(1, 768, 3072)
STATE_PATTERNS = ("2:4:v4", "2:4", "90%")

NN_LINEAR = "nn.Linear"
MASKED_DENSE, TORCH_CSR, SPARSEPROP = "masked dense", "torch CSR", "SparseProp"


@dataclass(frozen=True)
class Scope:
    """How much of the layers is measured.

    Args:
        shapes: of the layers.
        patterns: of the layers.
        train_rounds: rounds of the train step.
        calls: calls in one sample of the call overhead.
    """

    shapes: tuple[Shape, ...] = SHAPES
    patterns: tuple[str, ...] = PATTERNS
    train_rounds: int = 10
    calls: int = 300


FULL = Plan(Scope())
# Everything once, as little as shows that it works.
QUICK = quick(Scope(shapes=SHAPES[:1], patterns=("2:4:v4", "90%"), train_rounds=2, calls=50))


def rivals_of(pattern: str) -> tuple[str, ...]:
    """Rivals beside nn.Linear that a pattern is measured against.

    The time of masked dense does not depend on the pattern, so one pattern per family shows it.

    Args:
        pattern: text of a pattern.

    Returns:
        Their names.

    Example:
        >>> rivals_of("98%")
        ('torch CSR', 'SparseProp')
    """
    chosen: list[str] = []
    if pattern in ("2:4:v4", "90%"):
        chosen.append(MASKED_DENSE)
    if pattern in ("90%", "98%"):
        chosen.append(TORCH_CSR)
    if pattern in UNSTRUCTURED:
        chosen.append(SPARSEPROP)
    return tuple(chosen)


@dataclass(frozen=True)
class Case:
    """One layer to measure.

    Args:
        shape: its sizes.
        pattern: text of its pattern.
        dtype: of weight, input and gradients.
    """

    shape: Shape
    pattern: str
    dtype: torch.dtype = torch.float32

    @property
    def density(self) -> float:
        """Kept share of the weight's entries, in [0, 1]."""
        rows, cols = self.shape.out_features, self.shape.in_features
        return parse_pattern(self.pattern).count(rows, cols) / (rows * cols)

    @property
    def useful_flops(self) -> float:
        """Operations of one product at the kept entries."""
        return self.shape.flops * self.density


@dataclass(frozen=True)
class Expected:
    """What the dense formula gives, in float32.

    Args:
        output: ``X W^T + b``, [batch, out_features].
        grad_input: ``dY W``, [batch, in_features].
        grad_weight: ``dY^T X`` at the kept entries, 0 elsewhere, [out_features, in_features].
        grad_bias: sum of dY over the batch, [out_features].
    """

    output: Tensor
    grad_input: Tensor
    grad_weight: Tensor
    grad_bias: Tensor


@dataclass(frozen=True)
class Problem:
    """A case with its numbers.

    Args:
        case: what it was built from.
        linear: the dense twin; its weight is zero outside the mask.
        mask: bool [out_features, in_features], True = kept.
        x: [batch, in_features], requires a gradient.
        grad_output: [batch, out_features].
        expected: what every candidate must compute.
    """

    case: Case
    linear: nn.Linear
    mask: Tensor
    x: Tensor
    grad_output: Tensor
    expected: Expected


# The jobs of one case follow each other; the largest problem holds a third of a gigabyte.
@lru_cache(maxsize=2)
def build(case: Case) -> Problem:
    """Draw the numbers of a case; the same case gives the same numbers.

    Args:
        case: what to build.

    Returns:
        The problem.

    Example:
        >>> problem = build(Case(Shape(2, 8, 4), "2:4"))
        >>> bool((problem.linear.weight[~problem.mask] == 0).all())
        True
    """
    batch, cols, rows = case.shape
    generator = torch.Generator().manual_seed(SEED)
    weight = torch.randn(rows, cols, generator=generator) / cols**0.5
    mask = magnitude_mask(weight, case.pattern)
    linear = nn.Linear(cols, rows, dtype=case.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight * mask)
        linear.bias.copy_(torch.randn(rows, generator=generator))
    x = torch.randn(batch, cols, generator=generator).to(case.dtype).requires_grad_()
    grad_output = torch.randn(batch, rows, generator=generator).to(case.dtype)
    return Problem(case, linear, mask, x, grad_output, _expected(linear, mask, x, grad_output))


@torch.no_grad()
def _expected(linear: nn.Linear, mask: Tensor, x: Tensor, grad_output: Tensor) -> Expected:
    weight, bias = linear.weight.float(), linear.bias.float()
    x, grad_output = x.float(), grad_output.float()
    return Expected(
        output=x @ weight.T + bias,
        grad_input=grad_output @ weight,
        grad_weight=(grad_output.T @ x).mul_(mask),
        grad_bias=grad_output.sum(0),
    )
