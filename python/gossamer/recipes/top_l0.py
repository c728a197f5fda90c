"""TopL0: projected gradient on the l0 ball: after every step only the k largest weights stay."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from gossamer.masks import mask_from_score
from gossamer.masks.together import top_masks
from gossamer.nn import MaskedLinear
from gossamer.patterns import Block, Pattern, Unstructured, parse_pattern
from gossamer.recipes.base.checks import check_share
from gossamer.recipes.base.recipe import Recipe


@dataclass(eq=False)
class TopL0(Recipe):
    """Project all layers together onto the l0 ball of the pattern after every step.

    The gradient is dense, so a zeroed weight returns when one step makes it large enough. With
    small steps that is rare, so training starts dense. Training decides how many entries each
    layer keeps; their sum is exact. With N:M patterns each layer is projected by itself.

    Args:
        pattern: its density is that of all layers together; each layer then has a pattern of the
            same class with its own sparsity.
        distribution: how layers share the sparsity before the first projection.
        begin_share: point, as a share of the steps, at which projections begin; training is dense
            before.

    Raises:
        RecipeError: a share outside [0, 1].

    Reference:
        Seo et al. 2024, "TEDDY: Trimming Edges with Degree-based Discrimination strategY", the
        projection of its weights; Blumensath and Davies 2009, "Iterative hard thresholding".
    """

    begin_share: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.begin_share, "TopL0 got begin_share")

    def takes_convolutions(self) -> bool:
        """Yes: their weight is dense too."""
        return True

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A layer that computes densely until its first mask; its gradient is dense."""
        layer = MaskedLinear.from_dense(linear, pattern, reselect_each_forward=False)
        layer.set_dense()
        return layer

    def start(self) -> None:
        """Project the initial weights if training does not start dense."""
        if not round(self.begin_share * self.total_steps):
            self._project()

    def after_step(self, t: int) -> None:
        """Project, beginning with the last dense step."""
        if t + 1 >= round(self.begin_share * self.total_steps):
            self._project()

    def _project(self) -> None:
        whole = parse_pattern(self.pattern)
        layers = [layer for _, _, layer in self.of_type(MaskedLinear)]
        if isinstance(whole, Unstructured | Block):
            masks = top_masks([layer.weight for layer in layers], whole)
        else:
            masks = [mask_from_score(m.weight.double().square(), whole) for m in layers]
        for layer, mask in zip(layers, masks, strict=True):
            pattern: Pattern = whole
            if isinstance(pattern, Unstructured | Block):
                kept = int(mask.sum()) / max(mask.numel(), 1)
                pattern = replace(pattern, sparsity=1.0 - kept)
            layer.set_mask(mask, pattern)
            layer.weight.masked_fill_(~mask, 0.0)


__all__ = ["TopL0"]
