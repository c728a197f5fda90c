"""AutoSparse: each channel learns the threshold that prunes it.

    w~ = sign(w) max(|w| - sigmoid(s), 0),   dw = dw~ f,   ds = -sigmoid'(s) sum of dw~ sign(w) f

with f = 1 where w~ lives and f = alpha where it is pruned. Alpha is annealed to 0, after which
pruned weights get nothing and the mask settles.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import Function

from gossamer import backend
from gossamer.backend import Structure
from gossamer.errors import RecipeError, ShapeError
from gossamer.masks import mask_from_score
from gossamer.nn import MaskedLinear
from gossamer.ops import autograd
from gossamer.ops.autocast import autocast, is_autocast
from gossamer.patterns import Pattern, Unstructured
from gossamer.recipes.prune_late import check_share, zero_outside
from gossamer.recipes.recipe import Recipe


class ThresholdLinear(MaskedLinear):
    """A linear layer whose weight is soft-thresholded by what each output channel learns.

    Args:
        weight: [out_features, in_features]; the Parameter that is trained.
        bias: [out_features], or None.
        pattern: what `project` leaves in the end; until then the mask is unstructured.
        initial: s at the start; None for the s with which each threshold drops the pattern's
            share of its weights.
        per: "channel": one threshold an output, "layer": one for all.

    Attributes:
        threshold: s, [out_features, 1] or [1, 1].
        alpha: what a pruned weight gets of its gradient; a 0-d buffer.
        projected: whether the mask is held and the threshold has no part any more; a 0-d buffer.
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
    ) -> None:
        super().__init__(weight, bias, pattern)
        self.target = self.pattern
        count = self.out_features if per == "channel" else 1
        if initial is None:
            rows = weight.detach().abs().double().reshape(count, -1).sort(dim=1).values
            # Half-way between the last to be dropped and the first to be kept.
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
        """The thresholded values [nnz], and where they stand; once projected, those of the mask."""
        weight = self.weight.detach()
        if self.projected:
            return backend.gather(weight, self.structure), self.structure
        margin = self.margin()
        structure = backend.encode(margin > 0, 1)
        self._hold(structure, Unstructured(1.0 - structure.nnz / max(weight.numel(), 1)))
        return backend.gather(weight.sign() * margin, structure), structure

    def margin(self) -> Tensor:
        """By how much each weight exceeds its threshold; below 0 where it is pruned."""
        return self.weight.detach().abs() - self.threshold.detach().sigmoid()

    def project(self) -> Tensor:
        """Hold the largest entries of w~ that the target pattern allows, as the weight itself.

        Returns:
            The mask.
        """
        margin = self.margin()
        mask = mask_from_score(margin, self.target)
        self.weight.data.copy_(self.weight.sign() * margin.clamp_min(0.0) * mask)
        self.projected.fill_(True)
        self.moving = False
        self.set_mask(mask, self.target)
        return mask

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in_features] to [..., out_features]."""
        if x.shape[-1:] != (self.in_features,):
            raise ShapeError(
                f"x has shape {tuple(x.shape)}; its last size must be {self.in_features}, the "
                "layer's in_features"
            )
        values, structure = self.pack()
        bias = self.bias
        if is_autocast(x):
            x, values, bias = autocast(x, values, bias, device=x.device.type)
        return _Thresholded.apply(x, self.weight, self.threshold, bias, values, structure, self)  # type: ignore[no-any-return, no-untyped-call]

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """As the base; a held mask gets its transpose."""
        if isinstance(projected := state_dict.get(prefix + "projected"), Tensor):
            self.moving = not bool(projected)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class _Thresholded(Function):
    """The products on the living entries; pruned ones get alpha of their gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        threshold: Tensor,
        bias: Tensor | None,
        values: Tensor,
        structure: Structure,
        layer: ThresholdLinear,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, threshold, values)
        ctx.structure, ctx.layer = structure, layer
        ctx.alpha, ctx.projected = layer.alpha.item(), bool(layer.projected)
        return autograd.run_spmm(x, values, structure, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, threshold, values = ctx.saved_tensors
        need_x, need_weight, need_threshold, need_bias = ctx.needs_input_grad[:4]
        structure, flat = ctx.structure, autograd.flatten(g)
        dweight = dthreshold = None
        if need_weight or need_threshold:
            rows = autograd.flatten(x)
            if ctx.alpha and not ctx.projected:
                dweight = (flat.t() @ rows).to(weight.dtype)
                alive = weight.abs() > threshold.sigmoid()
                dweight.mul_(torch.where(alive, 1.0, ctx.alpha))
            else:
                at_kept = backend.sddmm(flat, rows, structure)
                dweight = backend.scatter(at_kept, structure).to(weight.dtype)
            dthreshold = torch.zeros_like(threshold)
            if not ctx.projected:
                s = threshold.sigmoid()
                pull = (dweight * weight.sign()).sum(1, keepdim=True).sum_to_size(s.shape)
                dthreshold = -s * (1.0 - s) * pull
        return (
            ctx.layer.input_gradient(g, values, structure) if need_x else None,
            dweight if need_weight else None,
            dthreshold if need_threshold else None,
            flat.sum(0) if need_bias else None,
            None,
            None,
            None,
        )


@dataclass(eq=False)
class AutoSparse(Recipe):
    """Learnable thresholds with annealed gradients of what they prune.

    The pattern's sparsity is a target, not a constraint: the thresholds find their own. In the
    last steps (`finetune_share`) the weights are projected to the pattern and trained under its
    mask, which the paper does not do, so that the density is the one that was asked for.

    Args:
        pattern: of the projection in the end.
        alpha: alpha_0, the share of its gradient that a pruned weight gets at first.
        initial: s at the start (the paper's is -5, a threshold of 0.0067); None for the s with
            which each threshold drops the pattern's share of the first weights.
        per: "channel": one threshold an output, "layer": one for all.
        reset_share: share of the steps after which alpha is 0.
        finetune_share: share of the steps after the projection; 0 for none.

    Raises:
        RecipeError: a share, or alpha, outside [0, 1].

    Reference:
        Kundu et al. 2023, "AutoSparse: Towards Automated Sparse Training of Deep Neural
        Networks".
    """

    alpha: float = 0.75
    initial: float | None = -5.0
    per: Literal["channel", "layer"] = "channel"
    reset_share: float = 0.9
    finetune_share: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "reset_share", "finetune_share"):
            check_share(getattr(self, name), f"AutoSparse got {name}")
        if self.per not in ("channel", "layer"):
            raise RecipeError(f"AutoSparse got per={self.per!r}; choose 'channel' or 'layer'")

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A layer with thresholds."""
        return ThresholdLinear.from_dense(linear, pattern, self.initial, self.per)

    def parameters(self, model: nn.Module) -> Iterable[Any]:
        """Two groups: the thresholds, without weight decay, and all others."""
        own = [m.threshold for m in model.modules() if isinstance(m, ThresholdLinear)]
        ids = {id(p) for p in own}
        rest = [p for p in model.parameters() if id(p) not in ids]
        return [{"params": rest}, {"params": own, "weight_decay": 0.0}]

    def alpha_at(self, t: int) -> float:
        """Alpha at step t: the slower of a cosine and a sigmoid, 0 from the reset on."""
        share = t / self.total_steps
        if share >= self.reset_share:
            return 0.0
        cosine = (1.0 + math.cos(math.pi * share)) / 2.0
        logistic = 1.0 - 1.0 / (1.0 + math.exp(6.0 - 12.0 * share))
        return self.alpha * max(cosine, logistic)

    @property
    def project_step(self) -> int | None:
        """How many steps come before the projection; None without one."""
        if not self.finetune_share:
            return None
        return max(self.total_steps - round(self.finetune_share * self.total_steps), 1)

    def start(self) -> None:
        """The first step has alpha_0."""
        self._set_alpha(0)

    def after_step(self, t: int) -> None:
        """Anneal; project when the time has come."""
        self._set_alpha(t + 1)
        if t + 1 == self.project_step:
            for _, _, layer in self.of_type(ThresholdLinear):
                zero_outside(layer.weight, layer.project(), self.optimizer)

    def _set_alpha(self, t: int) -> None:
        for _, _, layer in self.of_type(ThresholdLinear):
            layer.alpha.fill_(self.alpha_at(t))


__all__ = ["AutoSparse", "ThresholdLinear"]
