"""PopupLinear: frozen values, of which trained scores choose a part.

    W~ = M * C,  M the largest |S|,   dS = sign(S) * C * (dY^T X)

C never changes. The gradient goes straight through the selection to all scores.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gossamer import backend
from gossamer.backend import Structure
from gossamer.errors import PatternError
from gossamer.nn.layers.masked import MaskedLinear
from gossamer.nn.layers.masked_state import select
from gossamer.nn.layers.products import ROWS, RowProduct, parts_of
from gossamer.patterns import Pattern, parse_pattern

Constants = Literal["signed", "initial"]


class PopupLinear(MaskedLinear):
    """A layer or convolution that trains a score per weight, and never the weights.

    `weight` holds the scores, so that the mask is one of their magnitudes, and `constants` the
    values that are multiplied by.

    Args:
        weight: [out_features, in_features], the scores; the Parameter that is trained.
        bias: [out_features], or None.
        pattern: pattern of the mask.
        constants: [out_features, in_features], the values; None is zeros, for a state to load.
        product: see `MaskedLinear`.

    Attributes:
        constants: a buffer.
    """

    constants: Tensor

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        pattern: str | Pattern,
        constants: Tensor | None = None,
        product: RowProduct = ROWS,
    ) -> None:
        super().__init__(weight, bias, pattern, product=product)
        given = torch.zeros_like(weight) if constants is None else constants
        self.register_buffer("constants", given.detach().clone())

    @classmethod
    def from_dense(
        cls,
        linear: nn.Module,
        pattern: str | Pattern,
        constants: Constants = "signed",
        generator: torch.Generator | None = None,
    ) -> PopupLinear:
        """Make a layer from a dense one, whose bias it shares.

        Args:
            linear: a linear layer or a convolution.
            pattern: a pattern or its text.
            constants: "signed" takes the signs of the weight, times sqrt(2 / (d in_features)) at
                density d; "initial" takes the weight itself.
            generator: draws the scores, uniform in +-1 / sqrt(in_features); None is torch's own.
        """
        pattern = parse_pattern(pattern)
        matrix, product = parts_of(linear)
        values = matrix.detach()
        fan_in = max(values.shape[1], 1)
        if constants == "signed":
            size = math.sqrt(2.0 / (fan_in * max(pattern.density, 1.0 / fan_in)))
            values = torch.where(values < 0, -size, size).to(values.dtype)
        drawn = torch.rand(values.shape, generator=generator, dtype=torch.float64, device="cpu")
        scores = nn.Parameter(((2.0 * drawn - 1.0) / math.sqrt(fan_in)).to(values))
        bias: Any = linear.bias
        return cls(scores, bias, pattern, values, product)

    def pack(self) -> tuple[Tensor, Structure]:
        """Return the constants [nnz] whose scores are largest, and their structure."""
        if self.reselect_each_forward:
            _, structure = select(self.weight.detach(), self._pattern)
            self._fix_mask(structure, self._pattern)
        return backend.gather(self.constants, self._fixed), self._fixed

    def kept_values(self) -> Tensor:
        """Return the kept constants [nnz]; detached."""
        values: Tensor = backend.gather(self.constants, self.structure)
        return values

    def set_dense(self) -> None:
        """Refuse: the scores are no weight.

        Raises:
            PatternError: always.
        """
        raise PatternError(
            "set_dense was called on a PopupLinear, whose trained scores are no weight: call "
            "to_sparse() or to_dense() for its values"
        )

    def weight_gradient(self, grad_output: Tensor, x: Tensor, structure: Structure) -> Tensor:
        """Return dS [out_features, in_features], straight through the selection."""
        of_weight = super().weight_gradient(grad_output, x, structure)
        return of_weight * self.constants.to(of_weight.dtype) * self.weight.detach().sign()


__all__ = ["Constants", "PopupLinear"]
