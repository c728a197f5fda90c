"""SampledLinear: a masked layer whose weight gradient comes from an unbiased N:M sample.

    dW = mvue(dY)^T X

Of each m consecutive tokens n stay in each column of dY, divided by the probability with which
they were chosen: right on average, and a sparse product. See `gossamer.ops.gradient_sampling`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.backend import Structure
from gossamer.nn.layers.masked import MaskedLinear
from gossamer.ops import mvue_product
from gossamer.patterns import NM, Pattern


class SampledLinear(MaskedLinear):
    """A `MaskedLinear` that may sample the gradient of its output.

    Args:
        weight: see `MaskedLinear`.
        bias: see `MaskedLinear`.
        pattern: see `MaskedLinear`.
        reselect_each_forward: see `MaskedLinear`.
        sample: n entries of each m tokens of dY; None takes all.
        seed: of the random numbers.
        index: of the layer, so that layers draw apart from one another.

    Attributes:
        draws: number of samples that were taken; it is the step of the sampler, and part of the
            state, so that a resumed training draws what it would have drawn. A 0-d buffer.
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
    ) -> None:
        super().__init__(weight, bias, pattern, reselect_each_forward)
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
