"""A new layer beside a new `nn.Linear`: its mask and values cost what its entries cost."""

from collections.abc import Iterator
from functools import partial

from torch import nn

from bench.harness.bars import Bar
from bench.harness.contest import WrongResultError
from bench.harness.plan import Calls, Job, Plan, time_together
from bench.harness.record import GOSSAMER, Key, Record
from bench.masks.selection import Scope
from gossamer import SparseLinear, parse_pattern
from gossamer.masks import check_mask

GROUP = "making"
MAKE = "SparseLinear()"
NN_LINEAR = "nn.Linear()"
PATTERNS = ("2:4", "2:4:v4", "1:16:v4", "90%", "99%", "99%:v4", "block 16x16 95%")
BARS = (Bar(MAKE, (NN_LINEAR,), 1.0, patterns=("99%*",), words=f"no slower than {NN_LINEAR}"),)


def jobs(plan: Plan[Scope]) -> Iterator[Job]:
    """One job per number of threads: all patterns take turns with the dense layer."""
    size = plan.scope.make
    for threads in plan.threads:
        keys: list[Key] = [(MAKE, f"{size}x{size}", p, "float32", threads) for p in PATTERNS]
        measure = partial(_measure, plan, keys)
        yield Job(GROUP, f"{MAKE}, threads: {threads}", threads, keys, measure)


def _measure(plan: Plan[Scope], keys: list[Key], errors: list[str]) -> list[Record]:
    size = plan.scope.make
    calls: Calls = {NN_LINEAR: partial(nn.Linear, size, size)}
    for text in PATTERNS:
        verify(min(size, 256), text)
        calls[text] = partial(SparseLinear, size, size, pattern=text)
    timings = time_together(plan, calls)
    return [
        Record.timed(
            key,
            {GOSSAMER: timings[key[2]], NN_LINEAR: timings[NN_LINEAR]},
            density=parse_pattern(key[2]).count(size, size) / size**2,
        )
        for key in keys
    ]


def verify(size: int, text: str) -> None:
    """Check the mask and the values of a new layer.

    Args:
        size: rows and columns of its weight.
        text: of the pattern.

    Raises:
        WrongResultError: values are outside the bound of their law, or all equal.
        StructureError: the mask does not obey the pattern.
    """
    weight = SparseLinear(size, size, pattern=text).weight
    check_mask(weight.mask(), text)
    bound = (size * weight.density) ** -0.5
    spread = weight.values.detach().abs() / bound
    if not 0.9 < float(spread.max()) <= 1 or float(spread.min()) > 0.1:
        raise WrongResultError(f"{MAKE} {text}: values do not fill [-{bound:.3g}, {bound:.3g}]")
