"""Selection of masks at every step beside a copy: nothing can be faster than the memory.

Selection reads a dense weight and writes its kept entries. Its bar is a share of the bandwidth of
torch's `copy_` of the same weight in the same interleaved run: bytes read and written, per second.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from bench.harness.bars import Bar
from bench.harness.contest import WrongResultError
from bench.harness.plan import Calls, Job, Plan, quick, time_together
from bench.harness.record import GOSSAMER, Key, Record
from bench.harness.training import SEED
from gossamer import backend, parse_pattern
from gossamer.masks import add_pruned_, magnitude_mask, select_nm

GROUP = "select"
PATTERNS = ("2:4", "2:4:v4", "1:4", "2:8", "1:8", "1:16")
SELECT, DECAY = "select_nm", "add_pruned_"
COPY = "copy_"
# Share of the copy's bandwidth.
BARS = tuple(
    Bar(topic, (COPY,), 0.6, "bandwidth", words=f"≥ 60 % of {COPY}'s bandwidth")
    for topic in (SELECT, DECAY)
)


@dataclass(frozen=True)
class Scope:
    """How much of the mask kernels is measured.

    Args:
        select: rows and columns of the weight that is selected from.
        tiles: rows and columns of the weight for transposable masks.
        whole: the same where times are published; 0 leaves that out.
        quality: tiles per side where kept magnitude is compared with the optimum's.
        make: rows and columns of a new layer.
        update: rows and columns of a layer whose mask is updated.
    """

    select: int = 4096
    tiles: int = 2048
    whole: int = 8192
    quality: int = 12
    make: int = 4096
    update: int = 2048


FULL = Plan(Scope())
QUICK = quick(Scope(select=512, tiles=256, whole=0, quality=4, make=256, update=256))


def jobs(plan: Plan[Scope]) -> Iterator[Job]:
    """One job per number of threads: all patterns take turns with the copy."""
    for threads in plan.threads:
        keys = keys_of(plan.scope.select, threads)
        yield Job(
            GROUP, f"{SELECT}, threads: {threads}", threads, keys, partial(_measure, plan, keys)
        )


def keys_of(size: int, threads: int) -> list[Key]:
    """Keys of the records of one job.

    Args:
        size: rows and columns of the weight.
        threads: of the job.

    Returns:
        A key for each pattern, then that of the decay of pruned entries.
    """
    shape = f"{size}x{size}"
    keys: list[Key] = [(SELECT, shape, text, "float32", threads) for text in PATTERNS]
    return [*keys, (DECAY, shape, "2:4", "float32", threads)]


def _measure(plan: Plan[Scope], keys: list[Key], errors: list[str]) -> list[Record]:
    size = plan.scope.select
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(SEED))
    copy = torch.empty_like(weight)
    calls: Calls = {COPY: lambda: copy.copy_(weight)}
    moved: dict[str, float] = {COPY: 2 * weight.nbytes}
    for text in PATTERNS:
        verify(weight[:256], text)
        out = select_nm(weight, text)
        calls[f"{SELECT} {text}"] = partial(select_nm, weight, text, out)
        moved[f"{SELECT} {text}"] = weight.nbytes + out[0].nbytes + out[1].indices.nbytes
    _, structure = select_nm(weight, "2:4")
    calls[f"{DECAY} 2:4"] = lambda: add_pruned_(copy, weight, 2e-4, structure)
    moved[f"{DECAY} 2:4"] = 3 * weight.nbytes + structure.indices.nbytes
    timings = time_together(plan, calls)
    found = []
    for key in keys:
        name = f"{key[0]} {key[2]}"
        density = parse_pattern(key[2]).count(size, size) / size**2
        found.append(
            Record.timed(
                key,
                {GOSSAMER: timings[name], COPY: timings[COPY]},
                density=density,
                moved={GOSSAMER: moved[name], COPY: moved[COPY]},
            )
        )
    return found


def verify(weight: torch.Tensor, text: str) -> None:
    """Compare a selection with the mask of the largest magnitudes.

    Args:
        weight: [rows, cols].
        text: of the pattern.

    Raises:
        WrongResultError: the selection is not that of the mask.
    """
    values, structure = select_nm(weight, text)
    mask = magnitude_mask(weight, text)
    if not torch.equal(torch.as_tensor(backend.scatter(values, structure)), weight * mask):
        raise WrongResultError(f"{SELECT} {text}: not the entries of magnitude_mask")
