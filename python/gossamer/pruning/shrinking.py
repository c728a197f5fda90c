"""shrink(): a smaller, ordinary model without the channels that contribute nothing.

Zero neurons, filters and heads are removed, with everything that only feeds or only reads them.
Constant ones are removed too; their contribution moves into the next bias. The output stays the
same up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import nn

from gossamer.arguments import check
from gossamer.errors import GossamerError
from gossamer.pruning.attention import without_dead_heads
from gossamer.pruning.channels import Mixing
from gossamer.pruning.comparing import copied, differs, fresh, noise
from gossamer.pruning.following import check_followable, followed, resize_all
from gossamer.pruning.report import ShrinkReport, compare
from gossamer.pruning.units import FusedUnits


@overload
def shrink(
    model: nn.Module, example_input: Any, *, report: Literal[False] = False
) -> nn.Module: ...
@overload
def shrink(
    model: nn.Module, example_input: Any, *, report: Literal[True]
) -> tuple[nn.Module, ShrinkReport]: ...
def shrink(
    model: nn.Module, example_input: Any, *, report: bool = False
) -> nn.Module | tuple[nn.Module, ShrinkReport]:
    """Remove zero and constant channels from a model; its output in evaluation stays the same.

    Dependencies are followed through Linear, convolutions (also in groups), BatchNorm, pools,
    dropout, activations, flatten and views, sums, products, chunks and concatenations. A neuron or
    filter is removed if its output is zero or constant, or if nothing reads it; in a residual sum,
    if this holds for all branches. A constant moves into the bias of the layers that read it (which
    get a bias if they have none), except before a convolution with zero padding. Attention with the
    modules `qkv` and `out` and a number `heads`, as in the demo's GPT, loses its dead heads.

    These keep all features: inputs and outputs of the model; LayerNorm and similar layers, which
    take moments over all features; `SparseLinear`; embeddings; shared weights and modules called
    twice; modules with hooks; modules whose forward depends on values of the data; operations
    without a rule (the report names them). Every layer keeps at least one feature. Branches that
    depend on the shape of the input are followed for the example's shape.

    Args:
        model: any module; it does not change.
        example_input: a tensor, or a tuple of the positional arguments of its forward.
        report: whether to return a report too.

    Returns:
        A new model with the same module names and training mode; with `report`, the pair of this
        model and a `ShrinkReport`. The parameters are new: give them to a new optimizer.

    Raises:
        DTypeError: the model is not an `nn.Module`.
        GossamerError: the outputs of the two models differ on the example or on random input of
            its shape.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> model[0].weight.data[3:] = 0
        >>> shrink(model, torch.ones(1, 4))
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
          (1): ReLU()
          (2): Linear(in_features=3, out_features=2, bias=True)
        )
    """
    check(shrink, locals())
    check_followable(model, "shrink")
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        still = copied(model).eval()
        smaller = copied(model)
        notes = _remove(still, smaller, inputs)
        modes = {name: module.training for name, module in smaller.named_modules()}
        smaller.eval()
        still = copied(model).eval()
        for probe in (inputs, noise(inputs)):
            distance = differs(still, smaller, probe, "shrink")
            if distance is not None:
                raise GossamerError(
                    f"the smaller model differs from the model by {distance}; they must be equal "
                    "up to rounding: avoid fixed numbers of features in the forward, or report a "
                    "bug of shrink"
                )
        found = compare(still, smaller, fresh(inputs), notes) if report else None
        for name, module in smaller.named_modules():
            module.training = modes[name]
    return smaller if found is None else (smaller, found)


def _remove(still: nn.Module, smaller: nn.Module, inputs: Sequence[Any]) -> list[str]:
    """Cut the smaller copy and return the notes; `still` is a throw-away copy for tracing."""
    analysis = followed(still, inputs, "shrink")
    alive = analysis.channels.alive([n for n in analysis.layers if isinstance(n, Mixing)])
    resize_all(smaller, analysis, alive)
    for unit, _ in analysis.units:
        if isinstance(unit, FusedUnits):
            fewer = without_dead_heads(smaller.get_submodule(unit.name), unit.known)
            if fewer is not None:
                smaller.set_submodule(unit.name, fewer)
    return list(analysis.notes)
