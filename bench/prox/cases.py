"""What the bench of the proximal operators measures, and the numbers they act on."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from bench.harness.plan import Plan, quick
from bench.harness.training import SEED

# Numbers in a group of the WGSEF tensors.
GROUP_SIZE = 8
# Groups that WGSEF keeps, as a share, and its strength: some groups saturate, some vanish.
KEPT, STRENGTH = 0.25, 0.5

# Operators of single entries: (name, parameters in the order of the penalty's arguments).
Operator = tuple[str, tuple[float, ...]]
L1, L0 = ("l1", (0.7,)), ("l0", (0.25,))
LP = tuple(("lp", (p, 0.3)) for p in (0.5, 2 / 3, 0.4))
OTHERS: tuple[Operator, ...] = (
    ("elastic net", (0.7, 0.5)),
    ("mcp", (0.7, 3.0)),
    ("scad", (0.5, 3.7)),
    ("capped l1", (0.7, 1.0)),
    ("transformed l1", (0.3, 1.0)),
    ("log-sum", (0.3, 0.5)),
)


@dataclass(frozen=True)
class Scope:
    """How much of the proximal part is measured.

    Args:
        groups: numbers of groups that WGSEF is given.
        entries: numbers of single entries for the rivals that know no groups.
        operators: of single entries, the ones with bars first.
        sizes: (entries, dtype) of the tensors they act on.
        selection: entries of top-k and of the projections.
        lists: parameter lists that the optimizers step: ``"GPT"`` or a number of entries.
    """

    groups: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    entries: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    operators: tuple[Operator, ...] = (L1, L0, *LP, *OTHERS)
    sizes: tuple[tuple[int, torch.dtype], ...] = (
        (10_000_000, torch.float32),
        (10_000_000, torch.float64),
        (100_000, torch.float32),
    )
    selection: tuple[int, ...] = (1_000_000,)
    lists: tuple[str, ...] = ("GPT", "10000000")


FULL = Plan(Scope())
# Everything once, as little as shows that it works.
QUICK = quick(
    Scope(
        groups=(1_000, 10_000),
        entries=(100,),
        sizes=((10_000, torch.float32),),
        selection=(1_000,),
        lists=("10000",),
    )
)


def operator_text(operator: Operator) -> str:
    """Name of an operator as a record has it; only lp needs its exponent to be told.

    Example:
        >>> operator_text(("lp", (0.5, 0.3))), operator_text(("mcp", (0.7, 3.0)))
        ('lp, p = 0.5', 'mcp')
    """
    name, parameters = operator
    return f"{name}, p = {parameters[0]:.3g}" if name == "lp" else name


def dtype_text(dtype: torch.dtype) -> str:
    """Name of a dtype as a record has it.

    Example:
        >>> dtype_text(torch.float32)
        'float32'
    """
    return str(dtype).removeprefix("torch.")


def kept(groups: int) -> int:
    """Groups that WGSEF keeps.

    Example:
        >>> kept(1000)
        250
    """
    return round(KEPT * groups)


@lru_cache(maxsize=1)
def normal(count: int, dtype: torch.dtype) -> Tensor:
    """Standard normal numbers, the same each time.

    Args:
        count: of them.
        dtype: of the tensor.

    Returns:
        [count]; do not write to it.
    """
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(count, dtype=dtype, generator=generator)
