"""Lobster: weights with a small gradient decay, then the smallest are pruned, once.

    w <- w - eta dL/dw - lambda w max(0, 1 - |dL/dw|)

as in LOBSTER (Tartaglione et al.). Their code can also divide the sensitivity |dL/dw| by its
largest value in the tensor. A weight with a large gradient does not decay.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gossamer.nn import MaskedLinear
from gossamer.recipes.base.checks import check_number
from gossamer.recipes.prune_late import PruneLate


def insensitivity(gradient: Tensor, rescaled: bool = False) -> Tensor:
    """Return max(0, 1 - |dL/dw|), how little the loss depends on each weight, in [0, 1].

    Args:
        gradient: dL/dw, any shape.
        rescaled: divide |dL/dw| by its largest value first.

    Returns:
        A tensor like `gradient`.

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
    """LOBSTER's decay of insensitive weights, then one pruning where the paper prunes repeatedly.

    The paper prunes by a threshold on the magnitude; here the weights are pruned to the pattern, so
    that the density is the requested one. It is not the decay of irrelevant weights of Bonetta et
    al. 2023, whose coefficient could not be obtained.

    Args:
        pattern: which entries are kept by the pruning.
        distribution: how layers share the sparsity: "uniform" or "erk".
        prune_share: share of the steps before the pruning, in [0, 1].
        strength: lambda times the number of dense steps, at least 0: a weight without gradient
            shrinks to exp(-strength) of itself in the dense phase, whatever its length.
        rescaled: divide sensitivities by the largest of the layer.

    Reference:
        Tartaglione et al. 2022, "LOss-Based SensiTivity rEgulaRization: towards deep sparse
        neural networks".
    """

    strength: float = 2.0
    rescaled: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.strength, "Lobster got strength")

    def regularise(self, t: int) -> None:
        """Decay each weight by its insensitivity, from the gradients of the step."""
        rate = min(self.strength / self.prune_step, 1.0)
        for _, _, layer in self.of_type(MaskedLinear):
            gradient = layer.weight.grad
            if gradient is not None and rate:
                decay = insensitivity(gradient, self.rescaled)
                layer.weight.mul_(1.0 - rate * decay)


__all__ = ["Lobster", "insensitivity"]
