"""Masks of several weights that are ranked together: one budget, which the magnitudes share out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gossamer.masks.score import mask_from_score
from gossamer.patterns import Block, Unstructured

__all__ = ["top_masks"]


def top_masks(weights: Sequence[Tensor], pattern: Unstructured | Block) -> list[Tensor]:
    """Return the masks of the largest entries (or tiles, by norm) of several weights together.

    Args:
        weights: matrices whose sizes fit the pattern.
        pattern: its density is that of all weights together.

    Returns:
        One bool mask per weight; of equal entries the one of the earlier weight, then of the lower
        index is kept. Each weight keeps its largest, unless the density is 0.

    Example:
        >>> weights = [torch.tensor([[1.0, 9.0, 2.0, 3.0]]), torch.tensor([[5.0, 7.0, 6.0, 8.0]])]
        >>> [int(mask.sum()) for mask in top_masks(weights, Unstructured(0.25))]
        [2, 4]
    """
    high, wide = pattern.tile
    # float64: squares of small float32 entries stay different.
    scores = [w.detach().double().square() for w in weights]
    if high * wide > 1:
        sizes = [(q.shape[0] // high, high, q.shape[1] // wide, wide) for q in scores]
        scores = [q.view(size).sum((1, 3)) for q, size in zip(scores, sizes, strict=True)]
    count = sum(pattern.count(*w.shape) for w in weights) // (high * wide)
    if count:
        for score in scores:
            if score.numel():
                flat = score.view(-1)
                flat[flat.argmax()].clamp_min_(torch.inf)  # a NaN stays: it ranks above
    together = torch.cat([score.flatten() for score in scores])[None]
    chosen = mask_from_score(together, Unstructured(1.0 - count / max(together.numel(), 1)))
    parts = torch.split(chosen[0], [score.numel() for score in scores])
    return [
        part.view(score.shape).repeat_interleave(high, 0).repeat_interleave(wide, 1)
        for part, score in zip(parts, scores, strict=True)
    ]
