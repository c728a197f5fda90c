"""An optimizer's step with a penalty beside torch's fused AdamW without one."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.harness.contest import Contest, Entrant
from bench.harness.record import GOSSAMER, Key
from bench.harness.training import SEED, VOCABULARY
from bench.prox.bars import FUSED, PLAIN, SHRUNK, STEP
from gossamer import optim, prox
from gossamer.train import DEMO, Run

GPT_LIST = "GPT"
LAM = 0.1
SETTINGS: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
# Gradients stay away from zero, where the first step is not defined by its formula.
LEAST_GRADIENT = 0.1

Build = Callable[[Key], Contest]


def step_contests(lists: Sequence[str], threads: int) -> Iterator[tuple[Key, Build]]:
    """One contest for each parameter list.

    Args:
        lists: texts, see `sizes_of`.
        threads: of the records.

    Yields:
        The key of a record, and what makes its contest.
    """
    for text in lists:
        yield (STEP, text, "l1", "float32", threads), partial(_step, text)


def sizes_of(text: str) -> list[torch.Size]:
    """Shapes of a parameter list.

    Args:
        text: ``"GPT"``, the list of the demo's model, or a number of entries.

    Returns:
        One shape per parameter.

    Example:
        >>> sizes_of("10")
        [torch.Size([10])]
    """
    if text == GPT_LIST:
        return [p.shape for p in Run("dense", DEMO, VOCABULARY).parameters]
    return [torch.Size([int(text)])]


def parameters_of(shapes: Sequence[torch.Size]) -> list[torch.nn.Parameter]:
    """Parameters with gradients, the same each time."""
    generator = torch.Generator().manual_seed(SEED)
    found = []
    for shape in shapes:
        values, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
        found.append(torch.nn.Parameter(values))
        found[-1].grad = gradient + LEAST_GRADIENT * gradient.sign()
    return found


def first_change(parameters: Sequence[torch.nn.Parameter]) -> Tensor:
    """By formula: the first step of AdamW, then soft thresholding in AdamW's metric.

    Args:
        parameters: before the step.

    Returns:
        How much each entry changes, float64, all in one row.
    """
    p = _row(parameters)
    g = torch.cat([q.grad.flatten() for q in parameters if q.grad is not None]).double()
    # In the first step the moments, corrected for their bias, are g and g^2.
    pace = SETTINGS["lr"] / (g.abs() + SETTINGS["eps"])
    moved = p * (1 - SETTINGS["lr"] * SETTINGS["weight_decay"]) - pace * g
    after: Tensor = moved.sign() * (moved.abs() - pace * LAM).clamp(min=0)
    return after - p


def _row(parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat([q.detach().flatten() for q in parameters]).double()


def _step(text: str, at: Key) -> Contest:
    shapes = sizes_of(text)
    start = parameters_of(shapes)

    def ours(penalty: prox.Penalty | None) -> Entrant:
        own = parameters_of(shapes)
        groups = [{"params": own, "penalty": penalty}]
        step = optim.ProxAdamW(groups, fused=True, **SETTINGS).step
        return Entrant(step, judged=penalty is not None, answer=lambda _: _row(own) - _row(start))

    def fused(threshold: float) -> Entrant:
        own = parameters_of(shapes)
        optimizer = torch.optim.AdamW(own, fused=True, **SETTINGS)

        @torch.no_grad()
        def step() -> None:
            optimizer.step()
            for parameter in own if threshold else ():
                parameter.copy_(torch.nn.functional.softshrink(parameter, threshold))

        return Entrant(step, judged=False)

    entrants = {
        GOSSAMER: lambda: ours(prox.L1(LAM)),
        PLAIN: lambda: ours(None),
        FUSED: lambda: fused(0.0),
        SHRUNK: lambda: fused(SETTINGS["lr"] * LAM),
    }
    return Contest(at, entrants, lambda: first_change(start))
