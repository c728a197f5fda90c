"""profile(): times the layers of a model, dense and under patterns, side by side."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from gossamer.arguments import Count, check
from gossamer.errors import ArgumentError, DTypeError, PatternError
from gossamer.nested import tensors
from gossamer.nn.left_dense import BY_DESIGN, dense_kinds
from gossamer.patterns import Nonzeros, Pattern, parse_pattern
from gossamer.profiling.calls import record, step_of, untouched
from gossamer.profiling.kinds import Kind
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
    """Time each layer of a model that `sparsify` takes, dense and sparse, and the whole step.

    The model runs on the example, in evaluation mode and as it stands (also under a surrounding
    `torch.autocast`). Then each linear layer and convolution that was called is timed with random
    weights, on random input of the size, dtype and memory format that it received: forward, and
    the gradients that it has to compute. Attention, recurrences, bilinear maps, experts and other
    modules that multiply by their own parameters, and hold no layers besides, are timed as a
    whole, as copies on copies of their arguments. Dense and all patterns take turns. Layers of one
    shape are timed once. A line per kind names the weights that are not timed. The model, its
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
        ArgumentError: the model has no such layer that the example reaches, or `rounds` is
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
                "profile found no call of a layer that sparsify takes; the model has none, or none "
                "that this example reaches: nn.Linear, convolutions, attention, recurrences, "
                "experts and Gossamer's layers are known"
            )
        whole = interleaved({"step": step}, rounds, 1)["step"].median
        layers = [_timed(kind, names, wanted, backward, rounds) for kind, names in calls.items()]
    return Profile(
        tuple(layers),
        tuple(map(str, wanted)),
        whole,
        backward,
        torch.get_num_threads(),
        tuple(_untimed(model, {name for names in calls.values() for name in names})),
    )


def _untimed(model: nn.Module, timed: Collection[str]) -> list[str]:
    """Return one line per kind of weights that are not timed."""

    def is_timed(name: str) -> bool:
        parts = name.split(".")
        return any(".".join(parts[:i]) in timed for i in range(len(parts) + 1))

    kinds = dense_kinds(model, lambda name: not is_timed(name))
    return [str(kind) for kind in kinds if kind.what not in BY_DESIGN]


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
            refused[str(pattern)] = str(error).partition("\n")[0]
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
        kind=kind.what,
    )


def _step(kind: Kind, pattern: Pattern | None, backward: bool) -> Callable[[], object]:
    layer, (args, kwargs) = kind.make(pattern)
    inputs = {id(t): t for t in tensors((args, kwargs)) if t.requires_grad}
    wanted = [*inputs.values(), *(p for p in layer.parameters() if p.requires_grad)]
    wanted = wanted if backward else []
    grads: list[Tensor] = []

    def step() -> None:
        cast = torch.autocast("cpu", kind.autocast) if kind.autocast else nullcontext()
        with torch.set_grad_enabled(bool(wanted)), cast:
            outputs = list(tensors(layer(*args, **kwargs)))
        if wanted:
            ends = [y for y in outputs if y.requires_grad]
            if not grads:
                grads.extend(torch.randn_like(y) for y in ends)
            torch.autograd.grad(ends, wanted, grads, allow_unused=True)

    return step
