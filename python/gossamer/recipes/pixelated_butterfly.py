"""PixelatedButterfly: fixed blocks on a grid, and a dense term of low rank beside them.

    Y = X B^T + (X D^T) U^T + b,  B flat block butterfly, D [rank, in], U [out, rank]

Both are drawn anew: for training from scratch. Attention stays as it is (the paper makes its
matrix sparse likewise).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from gossamer.errors import PatternError, RecipeError
from gossamer.nn.layers.iso_flop import Doped, sizes
from gossamer.patterns import Pattern, parse_pattern
from gossamer.recipes.base.checks import check_share
from gossamer.recipes.base.recipe import Recipe


@dataclass(eq=False)
class PixelatedButterfly(Recipe):
    """A mask that never moves and fits the kernels best, and a low-rank term that mixes all inputs.

    At the start each of both terms has half the variance of the dense layer's output: the kept
    weights are larger than the dense ones by sqrt(columns / kept columns), times sqrt(1/2).

    Args:
        pattern: of the sparse term: "butterfly 3/16", or any other, to compare with.
        distribution: "uniform", because the pattern has one density.
        low_rank_share: share of the low-rank term in all weights of a layer, in [0, 1). The rank is
            rounded down to a multiple of 8, but is at least 1.

    Raises:
        PatternError: an unknown pattern.
        RecipeError: a share out of range.

    Reference:
        Dao et al. 2022, "Pixelated Butterfly: Simple and Efficient Sparse training for Neural
        Network Models". The two terms are summed, without a learned gate. The default share of the
        low rank is about the paper's, from memory; that initial variance is halved is ours.

    Example:
        >>> recipe = PixelatedButterfly("butterfly 3/16")
        >>> layer = recipe.prepare(nn.Linear(768, 768))
        >>> layer.down.out_features, recipe.density(768, 768)
        (24, 0.25)
    """

    pattern: str | Pattern = "butterfly 3/16"
    low_rank_share: float = 0.25

    id: ClassVar[str] = "pixelated-butterfly"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.low_rank_share, "PixelatedButterfly got low_rank_share", below_one=True)
        if parse_pattern(self.pattern).density == 0.0:
            raise RecipeError("PixelatedButterfly got a pattern that keeps nothing: keep something")

    def rank(self, in_features: int, out_features: int) -> int:
        """Return the rank of the dense term of a layer."""
        kept = parse_pattern(self.pattern).count(out_features, in_features)
        share = self.low_rank_share
        rank = int(share / (1.0 - share) * kept / (in_features + out_features) + 1e-9)
        return max(rank // 8 * 8 or rank, 1)

    def density(self, in_features: int, out_features: int) -> float:
        """Return all weights of a layer over those of the dense one."""
        kept = parse_pattern(self.pattern).count(out_features, in_features)
        low = self.rank(in_features, out_features) * (in_features + out_features)
        return (kept + low) / (in_features * out_features)

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """The sum of a sparse layer and one of low rank."""
        in_features, out_features, _ = sizes(linear)
        rank = self.rank(in_features, out_features)
        if rank > min(in_features, out_features):
            raise PatternError(
                f"PixelatedButterfly got low_rank_share={self.low_rank_share}, which is rank "
                f"{rank} for a weight of {out_features}x{in_features}: choose a smaller share"
            )
        return Doped(linear, pattern, rank)


__all__ = ["PixelatedButterfly"]
