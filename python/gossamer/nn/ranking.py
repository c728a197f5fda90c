"""How the entries of a layer are ranked before a mask is chosen: what `score=` stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from gossamer.errors import PatternError
from gossamer.masks import magnitude_mask, mask_from_score, random_mask
from gossamer.nn.layers.filters import matrix_of
from gossamer.patterns import Pattern, score_of

__all__ = ["Score", "mask_by", "ranking"]

Score: TypeAlias = str | Callable[[str, Tensor], Tensor] | Mapping[str, Tensor]


def ranking(
    score: Score,
    names: Sequence[str],
    weight: Tensor,
    stored: Sequence[int],
    pattern: Pattern,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the mask of a layer if the score is a draw, and its scores if they are no magnitudes.

    Args:
        score: see `gossamer.sparsify`.
        names: of the layer, of which a mapping needs one.
        weight: [out, in], the layer's, detached.
        stored: the shape in which the layer stores it; scores may have it.
        pattern: the layer's.

    Raises:
        PatternError: the score is unknown, or has nothing of this layer.
    """
    if isinstance(score, str):
        score = score_of(score) or score
    scores: Tensor | None = None
    if isinstance(score, Mapping):
        found = [score[name] for name in names if name in score]
        if not found:
            raise PatternError("score= has no entry of this name; add one or exclude the layer")
        scores = found[0]
    elif callable(score):
        scores = score(names[0], weight)
    elif score == "random":
        seed = int(torch.randint(2**63 - 1, (), device="cpu"))
        return random_mask(tuple(weight.shape), pattern, seed), None
    elif score != "magnitude":
        raise PatternError(
            f"score={score!r} was given; use 'magnitude', 'random', a name that "
            "gossamer.patterns.register_sparsifier knows, a function or a mapping"
        )
    if isinstance(scores, Tensor) and scores.shape == torch.Size(stored) != weight.shape:
        scores = matrix_of(scores)
    return None, scores


def mask_by(
    score: Score, name: str, weight: Tensor, stored: Sequence[int], pattern: Pattern
) -> Tensor:
    """Return the mask of a layer by a score; arguments as in `ranking`."""
    mask, scores = ranking(score, [name], weight, stored, pattern)
    if mask is not None:
        return mask
    if scores is None:
        return magnitude_mask(weight, pattern)
    return mask_from_score(scores, pattern)
