"""ThresholdLinear: a layer whose output channels learn their pruning thresholds.

    w~ = sign(w) max(|w| - sigmoid(s), 0),   dw = dw~ f,   ds = -sigmoid'(s) sum of dw~ sign(w) f

where f = 1 for kept weights and f = alpha for pruned ones.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from gossamer import backend
from gossamer.backend import Structure
from gossamer.masks import mask_from_score
from gossamer.nn.layers.known_numbers import number_in
from gossamer.nn.layers.masked import MaskedLinear
from gossamer.nn.layers.products import ROWS, RowProduct
from gossamer.nn.layers.straight_through import Parameters
from gossamer.patterns import Pattern, Unstructured


class ThresholdLinear(MaskedLinear):
    """A linear layer whose weight is soft-thresholded by a learned threshold per output channel.

    Args:
        weight: [out_features, in_features]; the Parameter that is trained.
        bias: [out_features], or None.
        pattern: pattern of the mask after `project`; until then the mask is unstructured.
        initial: initial s; None is the s with which each threshold drops the pattern's share of
            its weights.
        per: "channel" is one threshold per output, "layer" is one threshold for all.
        product: see `MaskedLinear`.

    Attributes:
        threshold: s, [out_features, 1] or [1, 1].
        alpha: factor of a pruned weight's gradient; a 0-d buffer.
        projected: whether the mask is fixed and the threshold unused; a 0-d buffer.
    """

    threshold: nn.Parameter
    alpha: Tensor
    projected: Tensor

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        pattern: str | Pattern,
        initial: float | None = -5.0,
        per: Literal["channel", "layer"] = "channel",
        product: RowProduct = ROWS,
    ) -> None:
        super().__init__(weight, bias, pattern, product=product)
        count = self.out_features if per == "channel" else 1
        if initial is None:
            rows = weight.detach().abs().double().reshape(count, -1).sort(dim=1).values
            # Half-way between the largest dropped and the smallest kept magnitude.
            around = nn.functional.pad(rows, (1, 1))
            drop = round(rows.shape[1] * self.target.sparsity)
            cut = around[:, drop : drop + 2].mean(dim=1, keepdim=True)
            start = cut.clamp(1e-6, 1.0 - 1e-6).logit()
        else:
            start = torch.full((count, 1), float(initial))
        self.threshold = nn.Parameter(start.to(weight.dtype))
        self.register_buffer("alpha", torch.zeros((), dtype=torch.float64))
        self.register_buffer("projected", torch.zeros((), dtype=torch.bool))

    def pack(self) -> tuple[Tensor, Structure]:
        """Return the thresholded (after `project`, masked) values [nnz] and their structure."""
        weight = self.weight.detach()
        if self.projected:
            return backend.gather(weight, self._fixed), self._fixed
        margin = self.margin()
        structure = backend.encode(~(margin <= 0), 1)  # a NaN is kept
        self._fix_mask(structure, Unstructured(1.0 - structure.nnz / max(weight.numel(), 1)))
        return backend.gather(weight.sign() * margin, structure), structure

    def margin(self) -> Tensor:
        """Return |w| minus the threshold per weight; pruned weights are not above 0."""
        return self.weight.detach().abs() - self.threshold.detach().sigmoid()

    def project(self) -> Tensor:
        """Fix the target's mask of the largest entries of w~; w~ becomes the weight.

        Returns:
            The mask, bool [out_features, in_features].
        """
        margin = self.margin()
        mask = mask_from_score(margin, self.target)
        self.weight.data.copy_(self.weight.sign() * margin.clamp_min(0.0) * mask)
        self.projected.fill_(True)
        self.reselect_each_forward = False
        self.set_mask(mask, self.target)
        return mask

    def trained(self) -> Parameters:
        """The weight and the thresholds."""
        return self.weight, self.threshold

    def parameter_gradients(
        self, grad_output: Tensor, x: Tensor, structure: Structure, parameters: Parameters
    ) -> Parameters:
        """Return dw, scaled by alpha at pruned weights, and ds."""
        weight, threshold = parameters
        alpha, projected = number_in(self, "alpha"), bool(number_in(self, "projected"))
        if alpha and not projected:
            dweight = self.product.gradient(grad_output, x).to(weight.dtype)
            alive = ~(weight.abs() <= threshold.sigmoid())
            dweight.mul_(torch.where(alive, 1.0, alpha))
        else:
            at_kept = self.product.kept_gradient(grad_output, x, structure)
            dweight = backend.scatter(at_kept, structure).to(weight.dtype)
        if projected:
            return dweight, torch.zeros_like(threshold)
        s = threshold.sigmoid()
        pull = (dweight * weight.sign()).sum(1, keepdim=True).sum_to_size(s.shape)
        return dweight, -s * (1.0 - s) * pull

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Load the state, and build the transpose of a fixed mask."""
        if isinstance(projected := state_dict.get(prefix + "projected"), Tensor):
            self.reselect_each_forward = not bool(projected)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def thresholds(model: nn.Module) -> list[nn.Parameter]:
    """Return the thresholds of all `ThresholdLinear` layers of a model."""
    return [m.threshold for m in model.modules() if isinstance(m, ThresholdLinear)]


__all__ = ["ThresholdLinear", "thresholds"]
