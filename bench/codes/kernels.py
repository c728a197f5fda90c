"""Top-k and sparse decoding beside what torch offers; all are verified first.

The sizes are those of a sparse autoencoder: 512 rows, 768 features, 32768 latents, 32 active.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness.contest import WrongResultError
from bench.harness.plan import Job, Plan, quick, time_together
from bench.harness.record import GOSSAMER, Key, Record
from bench.harness.results import Results
from bench.harness.tables import (
    Cell,
    Grid,
    Page,
    machine_line,
    shortcomings,
    versions_line,
)
from gossamer import codes, timing

GROUP = "codes"
TASKS = (
    "top-k",
    "decode",
    "gradient of the codes",
    "gradient of the dictionary",
    "prefix errors",
    "prefix errors, gradients",
)


@dataclass(frozen=True)
class Sizes:
    """Of the problem.

    Args:
        batch: rows.
        d: features.
        n: latents.
        k: active latents per row.
    """

    batch: int = 512
    d: int = 768
    n: int = 32768
    k: int = 32


FULL = Plan(Sizes())
QUICK = quick(Sizes(8, 32, 256, 4))


Entrants = dict[str, Callable[[], Tensor]]


@lru_cache(maxsize=1)
def tasks(sizes: Sizes, seed: int = 0) -> dict[str, Entrants]:
    """Calls by task and name; the first of each task is Gossamer's.

    Args:
        sizes: of the problem.
        seed: of its numbers.

    Returns:
        Calls without arguments whose results are comparable within a task.
    """
    random = torch.Generator().manual_seed(seed)
    pre = torch.randn(sizes.batch, sizes.n, generator=random)
    W = torch.randn(sizes.n, sizes.d, generator=random)
    g = torch.randn(sizes.batch, sizes.d, generator=random)
    code = codes.top_k(pre, sizes.k)
    z, ids = code
    dense = torch.zeros_like(pre).scatter_(1, ids, z)
    weights = torch.full_like(z, 1.0 / sizes.k)

    def partial_sums() -> Tensor:
        return (g[:, None] - (z[:, :, None] * W[ids]).cumsum(1)).square().sum(2)

    def hierarchical() -> Tensor:
        _, residual = codes.prefix_errors(g, code, W)
        return codes.prefix_gradients(weights, residual, code, W)[0]

    def hierarchical_autograd() -> Tensor:
        leaves = z.clone().requires_grad_(), W.detach().requires_grad_()
        partial = (leaves[0][:, :, None] * leaves[1][ids]).cumsum(1)
        loss = (weights * (g[:, None] - partial).square().sum(2)).sum()
        return torch.autograd.grad(loss, leaves)[0]

    return {
        "top-k": {
            GOSSAMER: lambda: codes.top_k(pre, sizes.k).values,
            "torch.topk": lambda: torch.topk(pre, sizes.k).values,
            "one pass (amax)": lambda: pre.amax(1),
        },
        "decode": {
            GOSSAMER: lambda: codes.decode(code, W),
            "embedding_bag": lambda: F.embedding_bag(ids, W, per_sample_weights=z, mode="sum"),
            "gather, einsum": lambda: torch.einsum("bk,bkd->bd", z, W[ids]),
            "dense product": lambda: dense @ W,
        },
        "gradient of the codes": {
            GOSSAMER: lambda: codes.dots(ids, W, g),
            "gather, einsum": lambda: torch.einsum("bd,bkd->bk", g, W[ids]),
        },
        "gradient of the dictionary": {
            GOSSAMER: lambda: codes.scatter(code, g, sizes.n),
            "index_add": lambda: torch.zeros(sizes.n, sizes.d).index_add_(
                0, ids.flatten(), (z[:, :, None] * g[:, None]).flatten(0, 1)
            ),
            "dense product": lambda: dense.T @ g,
        },
        "prefix errors": {
            GOSSAMER: lambda: codes.prefix_errors(g, code, W)[0],
            "cumsum": partial_sums,
        },
        "prefix errors, gradients": {
            GOSSAMER: hierarchical,
            "cumsum, autograd": hierarchical_autograd,
        },
    }


def verify(task: str, calls: Entrants) -> None:
    """Compare every entrant with the first.

    Raises:
        WrongResultError: one of them differs by more than float32 rounding allows.
    """
    first, *others = (name for name in calls if "amax" not in name)
    want = calls[first]()
    for name in others:
        error = float((calls[name]() - want).abs().max() / want.abs().max())
        if not error < 1e-4:
            raise WrongResultError(
                f"{task}: {name} and {first} differ by {error:.2g} of the largest"
            )


def jobs(plan: Plan[Sizes]) -> Iterator[Job]:
    """One job per task and number of threads."""
    sizes = plan.scope
    shape = f"{sizes.batch}x{sizes.d}x{sizes.n}"
    for task in TASKS:
        for threads in plan.threads:
            key = (task, shape, f"{sizes.k} active", "float32", threads)
            title = f"{task}, threads: {threads}"
            yield Job(GROUP, title, threads, [key], partial(_measure, plan, key))


def _measure(plan: Plan[Sizes], key: Key, errors: list[str]) -> list[Record]:
    calls = tasks(plan.scope)[key[0]]
    verify(key[0], calls)
    density = plan.scope.k / plan.scope.n
    return [Record.timed(key, time_together(plan, {**calls}), density=density)]


def measure_all(plan: Plan[Sizes]) -> list[Record]:
    """Run every job of a plan, and keep the records in memory.

    Args:
        plan: how much.

    Returns:
        The records.
    """
    records = []
    for job in jobs(plan):
        with timing.threads(job.threads):
            records += job.run([])
    return records


def grid(records: Sequence[Record]) -> Grid:
    """Milliseconds of each entrant, and how many times Gossamer's.

    Args:
        records: as the jobs give them.

    Returns:
        The table.
    """
    rows = []
    for r in records:
        for name, took in r.measured.items():
            ratio = r.ratios[name].median if name in r.ratios else 1.0
            ms = f"{1e3 * took.median:.2f} ({1e3 * took.low:.2f}, {1e3 * took.high:.2f})"
            texts = (r.topic, str(r.threads), name, ms, f"{ratio:.2f}")
            rows.append([Cell(text) for text in texts])
    headings = ["task", "threads", "entrant", "ms (quartiles)", "times Gossamer's"]
    return Grid("sparse codes", headings, rows)


def notes(records: Sequence[Record]) -> list[str]:
    """What a reader of the table must know."""
    own = {(r.topic, r.threads): r.measured[GOSSAMER].median for r in records}
    slower = any(s > own.get((topic, 1), s) for (topic, count), s in own.items() if count > 1)
    if slower:
        return ["Where more threads are slower, other processes held the other cores."]
    return []


def page(results: Results) -> Page:
    """Lay out the results of a run."""
    shape = results.records[0].shape if results.records else ""
    lines = [
        f"{machine_line(results)}; Gossamer's instruction set: {results.machine['isa']}",
        versions_line(results),
        f"float32; rows x features x latents: {shape}; medians of interleaved rounds; every "
        "answer was first compared with Gossamer's",
        *notes(results.records),
        *shortcomings(results),
        *(f"ERROR {error}" for error in results.errors),
    ]
    return Page([grid(results.records)] if results.records else [], lines, "no bar is set here")
