"""prune(): a smaller, ordinary model without its least important channels, heads and neurons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, overload

import torch
from torch import Tensor, nn

from gossamer.arguments import Count, Range, check
from gossamer.errors import ArgumentError, GossamerError
from gossamer.nn.globs import Globs, as_globs, check_globs
from gossamer.pruning.analysis import Analysis
from gossamer.pruning.calibration import called
from gossamer.pruning.choosing import chosen
from gossamer.pruning.comparing import copied, differs, fresh, noise
from gossamer.pruning.following import BRANCHED, check_followable, followed, resize_all
from gossamer.pruning.groups import Budget, Groups
from gossamer.pruning.report import ShrinkReport, compare, cost_of

_NOT_REACHED = (
    "the example does not reach it in evaluation, so it does not change; where training calls it, "
    "it may no longer fit"
)

Keep = Annotated[float, Range(lambda v: 0 < v <= 1, "above 0 and at most 1")]


@overload
def prune(
    model: nn.Module,
    example: Any,
    keep: Keep = 0.5,
    *,
    budget: Budget = "flops",
    round_to: Count = 1,
    exclude: Globs = (),
    report: Literal[False] = False,
) -> nn.Module: ...
@overload
def prune(
    model: nn.Module,
    example: Any,
    keep: Keep = 0.5,
    *,
    budget: Budget = "flops",
    round_to: Count = 1,
    exclude: Globs = (),
    report: Literal[True],
) -> tuple[nn.Module, ShrinkReport]: ...
def prune(
    model: nn.Module,
    example: Any,
    keep: Keep = 0.5,
    *,
    budget: Budget = "flops",
    round_to: Count = 1,
    exclude: Globs = (),
    report: bool = False,
) -> nn.Module | tuple[nn.Module, ShrinkReport]:
    """Remove the smallest channels, hidden neurons and attention heads, down to a budget.

    What belongs together is found from one call on the example: the branches of a sum, both
    factors of a gate, a convolution with its BatchNorm and depthwise convolutions, the parts of a
    concatenation, a key and value head with all its query heads. Each such group is removed as a
    whole. Of every layer the same share of groups stays, those with the largest parameters: the sum
    of squares of what makes and of what reads the group, relative to the mean of each layer.

    The result is an ordinary model with the same module names. It computes what the model computes
    whose removed groups are zero, which is checked on the example and on random input. An
    `nn.MultiheadAttention` that loses heads becomes a `FewerHeads`, which has the same parameters.

    What keeps its size: inputs and outputs of the model, the stream of a transformer (LayerNorm
    takes moments over all its features), shared weights, and operations that cannot be followed;
    the report names them. Every layer keeps at least one group.

    Args:
        model: any module; it does not change.
        example: a tensor, or a tuple of the positional arguments of its forward; a batch of one is
            enough. All results of the call are held, and two more copies of the model.
        keep: share of the cost that stays at most, in (0, 1].
        budget: what costs: "flops", the operations of Linear layers, convolutions, attention
            projections and experts on the example; or "bytes", those of the parameters.
        round_to: the numbers of features that layers keep are multiples of it where the layer has
            so many, for example 8 for tensor cores.
        exclude: globs of modules that do not change, for example "layers.0.*".
        report: whether to return a report too.

    Returns:
        A new model in the training mode of the model; with `report`, the pair of this model and a
        `ShrinkReport`. The parameters are new: give them to a new optimizer.

    Raises:
        DTypeError: the model is not an `nn.Module`.
        ArgumentError: the model cannot become that small, or does not take the example.
        PatternError: a glob matches nothing.
        GossamerError: the smaller model computes something else.

    Reference:
        Li et al. 2017, "Pruning filters for efficient convnets", for filters by their size; Fang et
        al. 2023, "DepGraph: towards any structural pruning", for groups of coupled parameters.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> prune(model, torch.ones(1, 4), keep=0.5)
        Sequential(
          (0): Linear(in_features=4, out_features=32, bias=True)
          (1): ReLU()
          (2): Linear(in_features=32, out_features=2, bias=True)
        )
    """
    check(prune, locals())
    inputs = example if isinstance(example, tuple) else (example,)
    globs = as_globs(exclude, "exclude")
    check_globs(model, {"exclude": globs}, "modules", [n for n, _ in model.named_children()])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        groups, total = groups_of(model, inputs, budget, round_to, globs, "prune")
        smaller = fitted(model, groups, inputs, keep * total, "prune")
        found = None
        if report:
            found = compare(
                copied(model).eval(), smaller, fresh(inputs), all_notes(model, groups), "prune"
            )
        as_before(model, smaller)
    return smaller if found is None else (smaller, found)


def groups_of(
    model: nn.Module,
    inputs: Sequence[Any],
    budget: Budget,
    round_to: int,
    exclude: Sequence[str],
    who: str,
) -> tuple[Groups, int]:
    """Return the groups of a model, and what the whole model costs."""
    check_followable(model, who)
    still = copied(model).eval()
    total = called(still, fresh(inputs), who, lambda *x: cost_of(still, x, budget))
    if total == 0:
        raise ArgumentError(
            f"{who} got a model and an example that have no {budget}; give an example with at "
            "least one row, and a model with Linear layers or convolutions"
        )
    analysis = followed(still, inputs, who)
    analysis.forget()
    return Groups(analysis, still, budget, total, round_to, exclude), total


def fitted(
    model: nn.Module, groups: Groups, inputs: Sequence[Any], target: float, who: str
) -> nn.Module:
    """Return the smaller model within a budget; families that turn out not to fit are held.

    Raises:
        ArgumentError: the model cannot become that small.
        GossamerError: the smaller model computes something else, and no family explains it.
    """
    sizes = groups.sizes(model)
    while True:
        kept = chosen(groups, sizes, target, who, all_notes(model, groups))
        smaller, problem = smaller_of(model, groups, kept, inputs)
        if problem is None:
            return smaller
        changed = [i for i, f in enumerate(groups.families) if not bool(kept[f.groups].all())]

        def fails(places: Sequence[int], kept: Tensor = kept) -> bool:
            some = torch.ones_like(kept)
            for place in places:
                gone = groups.families[place].groups
                some[gone] = kept[gone]
            return smaller_of(model, groups, some, inputs)[1] is not None

        guilty = _guilty(changed, fails)
        if not guilty:
            raise GossamerError(
                f"{who}: the smaller model differs from the pruned one by {problem}, and no layer "
                f"alone explains it: exclude layers with exclude=, or report a bug of {who}"
            )
        why = f"without some of these features the model fails ({problem})"
        groups.hold([groups.families[place] for place in guilty], why)


def smaller_of(
    model: nn.Module, groups: Groups, kept: Tensor, inputs: Sequence[Any]
) -> tuple[nn.Module, str | None]:
    """Return a copy of the model, in evaluation, without all other groups.

    Returns:
        The copy, and how it differs from the model whose other groups are zero, or None.
    """
    zeroed = copied(model).eval()
    groups.zero_(zeroed, kept)
    smaller = copied(zeroed)
    resize_all(smaller, groups.analysis, groups.alive(kept))
    for unit, ids in groups.analysis.units:
        stays = groups.alive(kept)[ids]
        if not bool(stays.all()):
            unit.cut(smaller, stays)
    for probe in (inputs, noise(inputs)):
        problem = differs(zeroed, smaller, probe, "prune")
        if problem is not None:
            return smaller, problem
    return smaller, None


def _guilty(places: list[int], fails: Callable[[Sequence[int]], bool]) -> list[int]:
    """Return the places that fail alone, by halving."""
    if not places or not fails(places):
        return []
    if len(places) == 1:
        return places
    half = len(places) // 2
    return _guilty(places[:half], fails) + _guilty(places[half:], fails)


def all_notes(model: nn.Module, groups: Groups) -> list[str]:
    """Return what keeps its size, and why."""
    analysis = groups.analysis
    decided = [f"{name}: {why}" for name, why in analysis.traced.decided.items() if name]
    direct = []
    if analysis.read:
        direct = [f"{', '.join(analysis.read)}: functions read it, outside of a layer with a rule"]
    branched = [f"{name or 'the model'}: {BRANCHED}" for name in analysis.traced.branched]
    return [*groups.notes(model), *direct, *_never_called(model, analysis), *decided, *branched]


def as_before(model: nn.Module, smaller: nn.Module) -> None:
    """Give a smaller model the training mode of each module of the model."""
    for name, module in smaller.named_modules():
        module.training = model.get_submodule(name).training


def _never_called(model: nn.Module, analysis: Analysis) -> list[str]:
    """Return a note per module with parameters that the example does not reach."""
    notes: list[str] = []
    idle: list[str] = []
    for name, module in model.named_modules():
        own = [n for n, _ in module.named_parameters(prefix=name, remove_duplicate=False)]
        if any(name.startswith(f"{other}.") for other in idle) or not own or not name:
            continue
        if analysis.reached.isdisjoint(own):
            idle.append(name)
            notes.append(f"{name}: {_NOT_REACHED}")
    return notes
