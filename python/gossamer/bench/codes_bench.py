"""Top-k and sparse decoding beside what torch offers, interleaved; all are verified first.

The sizes are those of a sparse autoencoder: 512 rows, 768 features, 32768 latents, 32 active.
Called as `measure()`; `table` makes the rows readable.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.bench.rivals import WrongResultError
from gossamer.codes import core
from gossamer.timing import interleaved, threads

GOSSAMER = "gossamer"


@dataclass(frozen=True)
class Sizes:
    """Rows, features, latents, and active latents a row."""

    batch: int = 512
    d: int = 768
    n: int = 32768
    k: int = 32


@dataclass(frozen=True)
class Row:
    """One entrant of one task.

    Args:
        task: what was computed.
        name: who computed it.
        threads: number of threads.
        seconds: median.
        quartiles: of the samples, in seconds.
    """

    task: str
    name: str
    threads: int
    seconds: float
    quartiles: tuple[float, float]


Entrants = dict[str, Callable[[], Any]]


def entrants(sizes: Sizes, seed: int = 0) -> dict[str, Entrants]:
    """Who computes what: task -> name -> call; the first of each task is Gossamer.

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
    code = core.top_k(pre, sizes.k)
    z, ids = code
    dense = torch.zeros_like(pre).scatter_(1, ids, z)
    weights = torch.full_like(z, 1.0 / sizes.k)

    def partial_sums() -> Tensor:
        return (g[:, None] - (z[:, :, None] * W[ids]).cumsum(1)).square().sum(2)

    def hierarchical() -> Tensor:
        _, residual = core.prefix_errors(g, code, W)
        return core.prefix_gradients(weights, residual, code, W)[0]

    def hierarchical_autograd() -> Tensor:
        leaves = z.clone().requires_grad_(), W.detach().requires_grad_()
        partial = (leaves[0][:, :, None] * leaves[1][ids]).cumsum(1)
        loss = (weights * (g[:, None] - partial).square().sum(2)).sum()
        return torch.autograd.grad(loss, leaves)[0]

    return {
        "top-k": {
            GOSSAMER: lambda: core.top_k(pre, sizes.k).values,
            "torch.topk": lambda: torch.topk(pre, sizes.k).values,
            "one pass (amax)": lambda: pre.amax(1),
        },
        "decode": {
            GOSSAMER: lambda: core.decode(code, W),
            "embedding_bag": lambda: F.embedding_bag(ids, W, per_sample_weights=z, mode="sum"),
            "gather, einsum": lambda: torch.einsum("bk,bkd->bd", z, W[ids]),
            "dense product": lambda: dense @ W,
        },
        "gradient of the codes": {
            GOSSAMER: lambda: core.dots(ids, W, g),
            "gather, einsum": lambda: torch.einsum("bd,bkd->bk", g, W[ids]),
        },
        "gradient of the dictionary": {
            GOSSAMER: lambda: core.scatter(code, g, sizes.n),
            "index_add": lambda: torch.zeros(sizes.n, sizes.d).index_add_(
                0, ids.flatten(), (z[:, :, None] * g[:, None]).flatten(0, 1)
            ),
            "dense product": lambda: dense.T @ g,
        },
        "prefix errors": {
            GOSSAMER: lambda: core.prefix_errors(g, code, W)[0],
            "cumsum": partial_sums,
        },
        "prefix errors, gradients": {
            GOSSAMER: hierarchical,
            "cumsum, autograd": hierarchical_autograd,
        },
    }


def verify(task: str, calls: Entrants) -> None:
    """Compares every entrant with the first.

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


def measure(
    sizes: Sizes | None = None, counts: Iterable[int] = (1, 2), rounds: int = 7
) -> list[Row]:
    """Measures every task with each number of threads.

    Args:
        sizes: of the problem; None for the published ones.
        counts: numbers of threads.
        rounds: of the interleaved run.

    Returns:
        A row for each entrant.
    """
    rows = []
    for task, calls in entrants(sizes or Sizes()).items():
        verify(task, calls)
        for count in counts:
            with threads(count):
                timings = interleaved(calls, repeats=rounds, warmup=1)
            rows += [Row(task, name, count, t.median, t.quartiles) for name, t in timings.items()]
    return rows


def table(rows: Iterable[Row]) -> str:
    """A Markdown table: milliseconds, and how many times Gossamer's.

    Args:
        rows: as `measure` returned them.

    Returns:
        Text.
    """
    rows = list(rows)
    own = {(r.task, r.threads): r.seconds for r in rows if r.name == GOSSAMER}
    lines = [
        "| task | threads | who | ms (quartiles) | times Gossamer's |",
        "|---|---|---|---|---|",
    ]
    for r in rows:
        low, high = (1e3 * q for q in r.quartiles)
        ratio = r.seconds / own[r.task, r.threads]
        lines.append(
            f"| {r.task} | {r.threads} | {r.name} | {1e3 * r.seconds:.2f} ({low:.2f}, {high:.2f}) "
            f"| {ratio:.2f} |"
        )
    slower = any(s > own.get((task, 1), s) for (task, count), s in own.items() if count > 1)
    if slower:
        lines += ["", "Where more threads are slower, other processes held the other cores."]
    return "\n".join(lines)


def as_json(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Plain values of the rows."""
    return [asdict(row) for row in rows]
