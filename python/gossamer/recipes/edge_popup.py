"""EdgePopup: a subnetwork of a random network is searched, and no weight is trained.

    Y = X (M * C)^T,  M the largest |S|;   S <- S - lr sign(S) * C * (dY^T X)

Biases of the layers are frozen too. What is left dense, and normalisation, is trained as usual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from torch import nn

from gossamer.nn import MaskedLayer
from gossamer.nn.layers.popup import Constants, PopupLinear
from gossamer.patterns import Pattern
from gossamer.recipes.base.checks import check_choice, check_seed
from gossamer.recipes.base.recipe import Recipe


@dataclass(eq=False)
class EdgePopup(Recipe):
    """Train a score per weight of a random network; the largest take part, with frozen values.

    With `prepare(source=...)` the random network is sparse before the search (Gadhikar et al.
    2023). The layers that `finish` leaves can be trained on.

    Args:
        pattern: which entries take part: any pattern or its text.
        distribution: how layers share the sparsity: "uniform" or "erk".
        constants: "signed" freezes the signs of the initial weights, times
            sqrt(2 / (density * in_features)); "initial" freezes the weights as they are.
        seed: of the first scores.

    Raises:
        PatternError: an unknown pattern.
        RecipeError: unknown constants, or a negative seed.

    Reference:
        Ramanujan et al. 2020, "What's Hidden in a Randomly Weighted Neural Network?", equations 2
        to 5 and section 4.4 (signed constants, scaled). The paper was not at hand: numbers of
        equations and the ranking of magnitudes of scores are from memory.

    Example:
        >>> layer = EdgePopup("75%").prepare(nn.Linear(16, 4))
        >>> layer.used_weight().abs().unique()  # sqrt(2 / (0.25 * 16))
        tensor([0.0000, 0.7071])
    """

    pattern: str | Pattern = "50%"
    constants: Constants = "signed"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.constants, "EdgePopup got constants", get_args(Constants))
        check_seed(self.seed, "EdgePopup got seed")

    def takes_convolutions(self) -> bool:
        """Yes: their weights are frozen likewise."""
        return True

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A layer that trains scores."""
        random = self.generator(0, index, self.seed)
        layer = PopupLinear.from_dense(linear, pattern, self.constants, random)
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
        return layer

    def finished(self, layer: MaskedLayer) -> nn.Module:
        """Return the `SparseLinear` of the constants that take part, with a bias that trains."""
        found = layer.to_sparse()
        if found.bias is not None:
            found.bias.requires_grad_()
        return found


__all__ = ["EdgePopup"]
