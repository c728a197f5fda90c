"""SampledLinear: a masked layer whose weight gradient comes from an unbiased N:M sample.

    dW = mvue(dY)^T X

In each column of dY, n of every m consecutive tokens are kept and divided by the probability of
their selection: the estimate is unbiased, and the product is sparse.
See `gossamer.ops.gradient_sampling`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.backend import Structure
from gossamer.errors import PatternError
from gossamer.nn.layers.masked import MaskedLinear
from gossamer.nn.layers.products import ROWS, RowProduct
from gossamer.ops import mvue_product
from gossamer.patterns import NM, Pattern


class SampledLinear(MaskedLinear):
    """A `MaskedLinear` that may sample the gradient of its output.

    Args:
        weight: see `MaskedLinear`.
        bias: see `MaskedLinear`.
        pattern: see `MaskedLinear`.
        reselect_each_forward: see `MaskedLinear`.
        sample: n:m pattern of the sample of dY along the tokens; None takes all tokens.
        seed: seed of the random numbers.
        index: index of the layer, so that layers draw independently.
        product: see `MaskedLinear`; a convolution takes no sample.

    Raises:
        PatternError: a convolution with a sample.

    Attributes:
        draws: number of samples taken, which is the step of the sampler; a 0-d buffer, so that a
            resumed training draws the same samples.
    """

    draws: Tensor

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        pattern: str | Pattern,
        reselect_each_forward: bool = True,
        sample: NM | None = None,
        seed: int = 0,
        index: int = 0,
        product: RowProduct = ROWS,
    ) -> None:
        super().__init__(weight, bias, pattern, reselect_each_forward, product=product)
        if sample is not None and not product.takes_rows:
            raise PatternError(
                f"{type(self).__name__} got a convolution with sample={sample}; a sample of tokens "
                "is taken in linear layers only: give None, or exclude the layer (exclude=...)"
            )
        self.sample, self.seed, self.index = sample, seed, index
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def weight_gradient(self, grad_output: Tensor, x: Tensor, structure: Structure) -> Tensor:
        """Return dW [out_features, in_features] for dY [batch, out_features] and x [batch, in]."""
        if self.sample is None:
            return super().weight_gradient(grad_output, x, structure)
        n, m, step = self.sample.n, self.sample.m, int(self.draws)
        self.draws += 1
        return mvue_product(grad_output, x, n, m, seed=self.seed, step=step, layer=self.index)


__all__ = ["SampledLinear"]
