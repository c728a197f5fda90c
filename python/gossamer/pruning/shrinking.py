"""shrink(): a smaller, ordinary model without the channels that contribute nothing.

Zero neurons, filters and heads are removed, with everything that only feeds or only reads them.
Constant ones are removed too; their contribution moves into the next bias. The output stays the
same up to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor, fx, nn

from gossamer.arguments import check
from gossamer.errors import GossamerError
from gossamer.pruning.analysis import INSIDE, Analysis, Known, UnknownError
from gossamer.pruning.attention import without_dead_heads
from gossamer.pruning.calibration import called
from gossamer.pruning.channels import cut
from gossamer.pruning.functions import function_rule
from gossamer.pruning.layers import module_rule
from gossamer.pruning.report import ShrinkReport, compare
from gossamer.pruning.trace import trace

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}


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

    Dependencies are followed through Linear, Conv1d, Conv2d (also depthwise), BatchNorm, pools,
    dropout, activations, flatten and views, sums, products and concatenations. A neuron or filter
    is removed if its output is zero or constant, or if nothing reads it; in a residual sum, if this
    holds for all branches. A constant moves into the bias of the layers that read it (which get a
    bias if they have none), except before a convolution with zero padding. Attention with the
    modules `qkv` and `out` and a number `heads`, as in the demo's GPT, loses its dead heads.

    These keep all features: inputs and outputs of the model; LayerNorm and similar layers, which
    take moments over all features; `SparseLinear`; embeddings; shared weights and modules called
    twice; modules with hooks; operations without a rule or that cannot be traced (the report names
    them). Every layer keeps at least one feature. Branches that depend on the shape of the input
    are followed for the example's shape.

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
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        still = _copied(model).eval()
        smaller = _copied(model)
        notes = _remove(still, smaller, inputs)
        modes = {name: module.training for name, module in smaller.named_modules()}
        smaller.eval()
        still = _copied(model).eval()
        for probe in (inputs, _noise(inputs)):
            _check(called(still, _fresh(probe), "shrink"), smaller, probe)
        found = compare(still, smaller, _fresh(inputs), notes) if report else None
        for name, module in smaller.named_modules():
            module.training = modes[name]
    return smaller if found is None else (smaller, found)


def _remove(still: nn.Module, smaller: nn.Module, inputs: Sequence[Any]) -> list[str]:
    """Cut the smaller copy and return the notes; `still` is a throw-away copy for tracing."""
    reference = called(still, _fresh(inputs), "shrink")
    try:
        traced = trace(still, _fresh(inputs))
    except Exception as error:  # a forward that fx cannot follow may raise anything
        return [f"the model cannot be traced ({str(error).strip():.200}): nothing is removed"]
    analysis = Analysis(traced)
    for node in traced.graph.nodes:
        if node.op == "output":
            followed = fx.node.map_arg(node.args[0], traced.values.__getitem__)
            if _distance(reference, followed) is not None:
                return ["what was traced is not what the model computes: nothing is removed"]
        try:
            known = _rule(analysis, node)
        except UnknownError as why:
            known = None
            analysis.hold(node, str(why))
        analysis.settle(node, known)
    cut(smaller, analysis.layers, analysis.channels)
    by_name = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    for name, heads in traced.heads.items():
        module = smaller.get_submodule(name)
        parts = (name, f"{name}.qkv", f"{name}.out")
        shared = any(analysis.frozen.get(part, INSIDE) != INSIDE for part in parts)
        if shared or not {parts[1], parts[2]}.isdisjoint(by_name):
            continue
        fewer = without_dead_heads(module, heads)
        if fewer is not None:
            smaller.set_submodule(name, fewer)
    return list(analysis.notes)


def _rule(analysis: Analysis, node: fx.Node) -> Known:
    if node.op == "call_module":
        return module_rule(analysis, node)
    if node.op in ("call_function", "call_method"):
        return function_rule(analysis, node)
    if node.op == "output":
        raise UnknownError("")
    return None


def _copied(model: nn.Module) -> nn.Module:
    """Return a deep copy, even if a hook has stored a forward result in a module."""
    held = [value for module in model.modules() for value in vars(module).values()]
    computed = [value for value in held if isinstance(value, Tensor) and not value.is_leaf]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})


def _fresh(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Return copies of the inputs, because a model may write into them."""
    return tuple(given.detach().clone() if isinstance(given, Tensor) else given for given in inputs)


def _noise(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Return random numbers for floating inputs, because the example may be all zeros."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(given.shape, generator=generator).to(given)
        if isinstance(given, Tensor) and given.is_floating_point()
        else given
        for given in inputs
    )


def _check(expected: Any, smaller: nn.Module, inputs: Sequence[Any]) -> None:
    """Raise GossamerError unless the smaller model gives the expected output."""
    try:
        distance = _distance(expected, smaller(*_fresh(inputs)))
    except (RuntimeError, ValueError, IndexError) as error:  # sizes that no longer fit
        distance = f"an error ({str(error).strip():.200})"
    if distance is not None:
        raise GossamerError(
            f"the smaller model differs from the model by {distance}; they must be equal up to "
            "rounding: avoid fixed numbers of features in the forward, or report a bug of shrink"
        )


def _distance(expected: Any, found: Any) -> str | None:
    """Return the difference of two outputs as text; None if they are equal up to rounding."""
    if isinstance(expected, Tensor):
        if not isinstance(found, Tensor) or expected.shape != found.shape:
            return "its shape"
        if not expected.is_floating_point():
            return None if torch.equal(expected, found) else "whole numbers"
        scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
        tolerance = _TOLERANCE.get(expected.dtype, 1e-5) * scale
        if torch.allclose(expected, found, rtol=0, atol=tolerance, equal_nan=True):
            return None
        return f"{float((expected.double() - found.double()).abs().max()):.3g}"
    if isinstance(expected, dict):
        if not isinstance(found, dict) or expected.keys() != found.keys():
            return "its keys"
        parts = [(expected[key], found[key]) for key in expected]
    elif isinstance(expected, tuple | list):
        if not isinstance(found, tuple | list) or len(expected) != len(found):
            return "its length"
        parts = list(zip(expected, found, strict=True))
    else:
        return None
    return next((d for d in (_distance(a, b) for a, b in parts) if d is not None), None)
