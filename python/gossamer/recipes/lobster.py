"""Lobster: weights that the loss does not feel decay, then the smallest are pruned.

    w <- w - eta dL/dw - lambda w max(0, 1 - |dL/dw|)

as in LOBSTER (Tartaglione et al.), whose released code does the same and, when asked, divides the
sensitivity |dL/dw| by its largest value in the tensor. A weight of large gradient is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gossamer.nn import MaskedLinear
from gossamer.recipes.prune_late import PruneLate, check_positive


def insensitivity(gradient: Tensor, rescaled: bool = False) -> Tensor:
    """How little the loss feels each weight, in [0, 1].

    Args:
        gradient: dL/dw, any shape.
        rescaled: divide |dL/dw| by its largest value: 0 for the most sensitive weight.

    Example:
        >>> import torch
        >>> insensitivity(torch.tensor([0.0, -0.25, 4.0])).tolist()
        [1.0, 0.75, 0.0]
    """
    sensitivity = gradient.detach().abs()
    if rescaled:
        sensitivity = sensitivity / sensitivity.max().clamp_min(1e-30)
    return (1.0 - sensitivity).clamp_min_(0.0)


@dataclass(eq=False)
class Lobster(PruneLate):
    """Loss-based sensitivity regularisation, then prune and tune.

    The paper prunes by a threshold on the magnitude again and again; here it is once, to the
    pattern, so that the density is the one that was asked for.

    Args:
        pattern: which entries live after the pruning.
        prune_share: share of the steps before the pruning, in [0, 1].
        distribution: how layers share the sparsity, "uniform" or "erk".
        strength: lambda times the steps of the dense phase: a weight that the loss does not feel
            at all has shrunk to exp(-strength) of itself at its end, however long it is.
        rescaled: compare sensitivities with the largest of the layer, not with 1.

    Reference:
        Tartaglione et al. 2022, "LOss-Based SensiTivity rEgulaRization: towards deep sparse
        neural networks".
    """

    strength: float = 2.0
    rescaled: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.strength, "Lobster got strength")

    def press(self, t: int) -> None:
        """Decay each weight by its insensitivity; the gradients of the step are still there."""
        rate = min(self.strength / self.prune_step, 1.0)
        for _, _, layer in self.of_type(MaskedLinear):
            gradient = layer.weight.grad
            if gradient is not None and rate:
                decay = insensitivity(gradient, self.rescaled)
                layer.weight.mul_(1.0 - rate * decay)


__all__ = ["Lobster", "insensitivity"]
