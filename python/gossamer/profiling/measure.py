"""profile(): times the linear layers of a model, dense and under patterns, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import nn

from gossamer.arguments import Count, check
from gossamer.errors import ArgumentError, DTypeError, PatternError
from gossamer.nn.layers.linear import SparseLinear
from gossamer.patterns import Nonzeros, Pattern, parse_pattern
from gossamer.profiling.calls import Kind, record, step_of, untouched
from gossamer.profiling.report import DENSE, LayerTimes, Profile
from gossamer.timing import interleaved

PATTERNS = ("2:4:v4", "1:4:v4", "90%")
ROUNDS, WARMUP = 7, 2


def profile(
    model: nn.Module,
    example: object,
    patterns: str | Pattern | Sequence[str | Pattern] = PATTERNS,
    *,
    backward: bool = True,
    rounds: Count = ROUNDS,
) -> Profile:
    """Time each linear layer of a model, dense and sparse, and the whole step.

    The model runs on the example, in evaluation mode and as it stands (also under a surrounding
    `torch.autocast`). Then each layer that was called is timed with random weights, on random
    input of the size and dtype that it received: forward, and the gradients that it has to
    compute. Dense and all patterns take turns. Layers of one shape are timed once. The model, its
    gradients and torch's random state do not change.

    Args:
        model: any module on the CPU, dense or sparse.
        example: its input: a tensor, a tuple or list of arguments, or a mapping of keyword
            arguments. Batch and length should be those of the training.
        patterns: one pattern or several, such as "2:4:v4" or "90%".
        backward: whether the backward pass counts; False for inference.
        rounds: measured calls of each layer under each pattern, at least 1.

    Returns:
        The times; `print` shows a table.

    Raises:
        ArgumentError: the model has no linear layer that the example reaches, or `rounds` is
            below 1.
        DTypeError: an argument has another type.
        PatternError: a text is no pattern.
        DeviceError: the model is not on the CPU.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 64))
        >>> found = profile(model, torch.randn(32, 64), ["2:4:v4"], rounds=1)
        >>> [layer.names for layer in found.layers]
        [('0',), ('1',)]
    """
    check(profile, locals())
    wanted = _parsed(patterns)
    step = step_of(model, example, backward)
    with untouched(model):
        calls = record(model, step)
        if not calls:
            raise ArgumentError(
                "profile found no call of a linear layer; the model has none, or none that this "
                "example reaches: nn.Linear, transformers' Conv1D and Gossamer's layers are known"
            )
        whole = interleaved({"step": step}, rounds, 1)["step"].median
        layers = [_timed(kind, names, wanted, backward, rounds) for kind, names in calls.items()]
    return Profile(tuple(layers), tuple(map(str, wanted)), whole, backward, torch.get_num_threads())


def _parsed(patterns: str | Pattern | Sequence[str | Pattern]) -> list[Pattern]:
    given = [patterns] if isinstance(patterns, str | Pattern) else list(patterns)
    found = list(dict.fromkeys(map(parse_pattern, given)))
    if not found:
        raise ArgumentError("profile got no pattern; give at least one, such as '2:4:v4'")
    for pattern in found:
        if isinstance(pattern, Nonzeros):
            raise PatternError(
                "profile got the pattern 'nonzeros', which depends on a layer's own zeros; give a "
                "pattern with a sparsity, such as '90%'"
            )
    return found


def _timed(
    kind: Kind, names: Sequence[str], patterns: Sequence[Pattern], backward: bool, rounds: int
) -> LayerTimes:
    steps: dict[str, Callable[[], object]] = {DENSE: _step(kind, None, backward)}
    refused: dict[str, str] = {}
    for pattern in dict.fromkeys([*([kind.pattern] if kind.pattern else []), *patterns]):
        if kind.fixed:
            refused[str(pattern)] = f"sparsify leaves dense: {kind.fixed}"
            continue
        try:
            steps[str(pattern)] = _step(kind, pattern, backward)
        except (PatternError, DTypeError) as error:
            refused[str(pattern)] = str(error)
    times = interleaved(steps, rounds, WARMUP)
    return LayerTimes(
        names=tuple(dict.fromkeys(names)),
        calls=len(names),
        out_features=kind.out_features,
        in_features=kind.in_features,
        rows=kind.rows,
        dtype=str(kind.autocast or kind.dtype).removeprefix("torch."),
        pattern=DENSE if kind.pattern is None else str(kind.pattern),
        seconds={name: timing.median for name, timing in times.items()},
        refused=refused,
    )


def _step(kind: Kind, pattern: Pattern | None, backward: bool) -> Callable[[], object]:
    sizes = kind.in_features, kind.out_features, kind.bias
    layer: nn.Module
    if pattern is None:
        layer = nn.Linear(*sizes, dtype=kind.dtype)
    else:
        layer = SparseLinear(*sizes, dtype=kind.dtype, pattern=pattern)
    x = torch.randn(kind.rows, kind.in_features).to(kind.dtype).requires_grad_(kind.passes)
    grad = torch.randn(kind.rows, kind.out_features).to(kind.autocast or kind.dtype)
    layer.requires_grad_(kind.trains)
    wanted = [t for t in (x, *layer.parameters()) if t.requires_grad] if backward else []

    def step() -> None:
        cast = torch.autocast("cpu", kind.autocast) if kind.autocast else nullcontext()
        with torch.set_grad_enabled(bool(wanted)), cast:
            y = layer(x)
        if wanted:
            torch.autograd.grad(y, wanted, grad.to(y.dtype))

    return step
