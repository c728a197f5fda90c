"""Sparse activations in the runs of `gossamer train`: the MLPs, the recipe, and their time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gossamer.activations import Weights
from gossamer.nn import ActivationSparseFFN
from gossamer.recipes import ActivationL1
from gossamer.train.model import GPT, MLP


def use_sparse_activations(model: GPT) -> None:
    """Replace the MLPs of a GPT by ones with a ReLU that compute live activations only.

    The weights stay the same. The gate is computed in float32 at every step: the fastest form would
    depend on the clock, and a resumed run would not be bit-equal.
    """
    for name, mlp in list(model.named_modules()):
        if isinstance(mlp, MLP):
            down = nn.Parameter(mlp.down.weight.detach().t().contiguous())
            if mlp.gate is None:
                weights = Weights(mlp.up.weight, None, down)
            else:
                weights = Weights(mlp.gate.weight, mlp.up.weight, down)
            layer = ActivationSparseFFN.of_parts(weights, gate="float32")
            model.get_submodule(name.rpartition(".")[0]).mlp = layer


def lower_gates(model: nn.Module, tokens: Tensor, share: float) -> None:
    """Give the gates biases that leave a share of the activations alive; for measurements.

    Args:
        model: a model with `ActivationSparseFFN` layers; it is of no other use afterwards.
        tokens: an input of the model.
        share: share of live activations.
    """

    def lower(layer: Any, args: tuple[Tensor, ...]) -> None:
        gates = (args[0].flatten(0, -2)[:256] @ layer.gate.t()).flatten()
        count = round((1.0 - share) * (len(gates) - 1)) + 1
        bias = -gates.kthvalue(count).values
        layer.gate_bias = nn.Parameter(bias.expand(layer.hidden).clone())

    with torch.no_grad():
        layers = ActivationSparseFFN.find_in(model).values()
        hooks = [layer.register_forward_pre_hook(lower) for layer in layers]
        model(tokens)
        for hook in hooks:
            hook.remove()


def mean_seconds(recipe: ActivationL1, first: tuple[float, float], last: float) -> float:
    """Return the mean time of a step of a training along the recipe's ramp.

    Args:
        recipe: recipe with a target.
        first: the share before the ramp, and the time of a step there.
        last: time of a step at the target. Between the two the time is linear in the share.
    """
    share, seconds = first
    target = recipe.target_share
    if target is None or share <= target:
        return last
    slope = (seconds - last) / (share - target)
    return last + slope * (recipe.mean_share(share) - target)
