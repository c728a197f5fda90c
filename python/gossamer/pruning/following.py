"""What is known of all channels of a model, from one call on an example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import ArgumentError
from gossamer.pruning.analysis import Analysis, Known, UnknownError
from gossamer.pruning.calibration import called
from gossamer.pruning.channels import cut
from gossamer.pruning.comparing import fresh
from gossamer.pruning.functions import function_rule
from gossamer.pruning.layers import module_rule
from gossamer.pruning.trace import Node, Trace, mapped, trace

BRANCHED = "it branches on values of the inputs; the example's branch is followed"


def check_followable(model: nn.Module, who: str) -> None:
    """Raise ArgumentError if the calls of a model cannot be written down.

    Args:
        model: the model that a user has given.
        who: the function that was called.
    """
    for name, module in model.named_modules():
        given = None
        if isinstance(module, torch.jit.ScriptModule):
            given = "a module of torch.jit"
        elif hasattr(module, "_orig_mod"):
            given = "a module of torch.compile"
        elif any(p.is_meta for p in module.parameters(recurse=False)):
            given = "parameters on the device meta"
        if given is not None:
            raise ArgumentError(
                f"{who} got {given}{f' ({name})' if name else ''}; give the ordinary model, with "
                "memory, and compile the smaller one"
            )


def followed(still: nn.Module, inputs: Sequence[Any], who: str) -> Analysis:
    """Call a model, and return what is known of its channels.

    Args:
        still: a throw-away copy of the model in evaluation mode.
        inputs: positional arguments of the forward pass.
        who: the function that a user has called, for errors.

    Raises:
        ArgumentError: the model raises an error for the inputs.
    """
    traced: Trace = called(still, fresh(inputs), who, lambda *given: trace(still, given))
    analysis = Analysis(traced)
    for branching in traced.branched:
        analysis.note(branching, BRANCHED)
    for decided, reason in traced.decided.items():
        analysis.note(decided, reason)
    for node in traced.nodes:
        scope = _deciding(traced, node)
        analysis.place = node.module or node.scope or "the forward of the model"
        try:
            if scope is not None:
                raise UnknownError(traced.decided[scope])
            known = _rule(analysis, node)
        except UnknownError as why:
            known = None
            analysis.hold(node, str(why), scope or "")
            if node.module is not None and str(why):
                analysis.skipped[node.module] = str(why)
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            known = None  # arguments that a rule does not expect
            analysis.hold(node, f"{node.name} cannot be followed ({error!s:.80})")
        analysis.settle(node, known)

    def keep(leaf: Any) -> None:
        if (found := analysis.features(leaf)) is not None:
            analysis.channels.pin(found.ids, "they are outputs of the model")

    mapped(traced.output, keep)
    return analysis


def resize_all(smaller: nn.Module, analysis: Analysis, alive: Tensor) -> None:
    """Remove channels from the layers of a copy of the model, in place.

    Args:
        smaller: the copy.
        analysis: what is known of the model.
        alive: bool by number of the channel, True where it stays.
    """
    cut(smaller, analysis.layers, alive)
    for scope, name, ids in analysis.attributes:
        setattr(smaller.get_submodule(scope), name, int(alive[ids].sum()))


def _rule(analysis: Analysis, node: Node) -> Known:
    return module_rule(analysis, node) if node.module is not None else function_rule(analysis, node)


def _deciding(traced: Trace, node: Node) -> str | None:
    """Return the module around a node whose forward depends on the values of data, or None."""
    for scope in traced.decided:
        if not scope or f"{node.scope}.".startswith(f"{scope}."):
            return scope
    return None
