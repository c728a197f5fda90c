"""`sinkhorn_small` beside the same rounds in batched torch: forward and backward, checked first."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from bench.harness import machine
from gossamer import GossamerError, timing
from gossamer.ot import permutation_mixture, sinkhorn_small

NAME = "small-transport"
SIZES = ((4, 8192), (8, 4096), (16, 1024))  # rows and columns, problems
ROUNDS = 20
CALLS = 15


def on_logarithms(scores: Tensor) -> Tensor:
    """Rounds of Sinkhorn by logsumexp, as models have them that must not underflow."""
    for _ in range(ROUNDS):
        scores = scores - scores.logsumexp(-1, keepdim=True)
        scores = scores - scores.logsumexp(-2, keepdim=True)
    return scores.exp()


def on_exponentials(scores: Tensor) -> Tensor:
    """Rounds of Sinkhorn by divisions: faster, and it underflows for scores far apart."""
    plan = (scores - scores.amax(-1, keepdim=True)).exp()
    for _ in range(ROUNDS):
        plan = plan / plan.sum(-1, keepdim=True)
        plan = plan / plan.sum(-2, keepdim=True)
    return plan


METHODS: dict[str, Callable[[Tensor], Tensor]] = {
    "sinkhorn_small": sinkhorn_small,
    "torch, divisions": on_exponentials,
    "torch, logsumexp": on_logarithms,
}


def run(out: Path, sizes: tuple[tuple[int, int], ...] = SIZES, calls: int = CALLS) -> Path:
    """Measure all sizes; write the table.

    Args:
        out: folder of the result.
        sizes: (rows and columns, problems).
        calls: interleaved calls of each.

    Returns:
        The path of the table.

    Raises:
        GossamerError: the methods do not agree.
    """
    lines = [
        f"- {machine.cpu_name()}, one thread, float32, {ROUNDS} rounds, forward + backward; "
        f"medians of {calls} interleaved calls; × is the time of torch over ours",
        "",
        "| problems | size | sinkhorn_small | torch, divisions | torch, logsumexp "
        "| 24 permutations |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    with timing.threads(1):
        for n, problems in sizes:
            scores = torch.randn(problems, n, n, generator=torch.Generator().manual_seed(n))
            grad = torch.randn(problems, n, n, generator=torch.Generator().manual_seed(n + 1))
            methods: dict[str, Callable[[], object]] = {}
            expected: Tensor | None = None
            for name, method in METHODS.items():
                slope = _slope(method, scores, grad)
                expected = slope if expected is None else expected
                if not torch.allclose(slope, expected, atol=1e-5):
                    raise GossamerError(f"{name} has another gradient at {n}x{n}")
                methods[name] = _call(method, scores, grad)
            if n == 4:
                logits = torch.randn(problems, 24)
                methods["24"] = _call(lambda x: permutation_mixture(x, 4), logits, grad)
            ours, *others = _times(methods, calls)
            cells = [f"{1e3 * seconds:.1f} ms ({seconds / ours:.1f}×)" for seconds in others]
            cells += ["–"] * (3 - len(cells))
            lines.append(f"| {problems} | {n}×{n} | {1e3 * ours:.2f} ms | {' | '.join(cells)} |")
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{NAME}.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _slope(method: Callable[[Tensor], Tensor], scores: Tensor, grad: Tensor) -> Tensor:
    given = scores.clone().requires_grad_()
    return torch.autograd.grad(method(given), given, grad)[0]


def _call(method: Callable[[Tensor], Tensor], scores: Tensor, grad: Tensor) -> Callable[[], object]:
    return lambda: _slope(method, scores, grad)


def _times(methods: dict[str, Callable[[], object]], calls: int) -> list[float]:
    found: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(calls + 1):  # the first is not counted
        for name in timing.rotation(list(methods), turn):
            start = time.perf_counter()
            methods[name]()
            if turn:
                found[name].append(time.perf_counter() - start)
    return [median(seconds) for seconds in found.values()]
