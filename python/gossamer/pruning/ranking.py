"""Which entries scores compare with one another: those of a row, of a layer, or of all layers.

`gossamer.sparsify` ranks the entries of one layer. These functions change that, by other scores or
by sparsities per layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gossamer.arguments import Share, check
from gossamer.errors import ArgumentError
from gossamer.masks import top
from gossamer.patterns import Unstructured

__all__ = ["by_row", "global_shares", "kept_globally"]


def by_row(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return scores that rank within each output row, so that rows keep equally many entries.

    Where the kept entries are no multiple of the rows, some rows keep one more.

    Args:
        scores: by name, [out, ...].

    Returns:
        New scores of the same shapes in (0, 1], the same set in each row.

    Raises:
        ArgumentError: scores have fewer than two dimensions.

    Reference:
        Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models",
        section 3: weights are compared per output.

    Example:
        >>> by_row({"0": torch.tensor([[1.0, 2.0], [30.0, 20.0]])})["0"].tolist()
        [[0.5, 1.0], [1.0, 0.5]]
    """
    _check(scores, "by_row")
    found = {}
    for name, score in scores.items():
        if score.dim() < 2:
            raise ArgumentError(
                f"by_row got scores of {name!r} of shape {list(score.shape)}; it ranks within the "
                "rows of [out, ...]"
            )
        rows = score.flatten(1)
        place = rows.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        found[name] = (1.0 - place.double() / max(rows.shape[1], 1)).view(score.shape)
    return found


def global_shares(
    scores: Mapping[str, Tensor], sparsity: Share, floor: Share = 0.0
) -> dict[str, Unstructured]:
    """Return the pattern of each layer when all entries of all layers are ranked together.

    For `gossamer.sparsify(model, "90%", score=scores, overrides=global_shares(scores, 0.9))`, which
    is the published selection of SNIP, GraSP and SynFlow.

    Args:
        scores: of all layers that are cut, by name.
        sparsity: dropped share of all entries, in [0, 1].
        floor: share that a layer keeps at least, of what it would keep if all layers were equally
            sparse, in [0, 1]. With 0 a layer may lose all its entries.

    Returns:
        A pattern per name.

    Raises:
        ArgumentError: there are no scores, or a share is out of range.

    Example:
        >>> scores = {"0": torch.tensor([[1.0, 2.0, 3.0, 4.0]]), "1": torch.tensor([[3.5, 0.0]])}
        >>> {name: str(pattern) for name, pattern in global_shares(scores, 0.5).items()}
        {'0': '50%', '1': '50%'}
    """
    check(global_shares, {"sparsity": sparsity, "floor": floor})
    _check(scores, "global_shares")
    total = sum(score.numel() for score in scores.values())
    masks = kept_globally(scores, round((1.0 - sparsity) * total), floor)
    return {name: Unstructured.keeping(int(m.sum()), m.numel()) for name, m in masks.items()}


def kept_globally(scores: Mapping[str, Tensor], kept: int, floor: float = 0.0) -> dict[str, Tensor]:
    """Return the masks that keep the largest of all entries of all layers.

    Args:
        scores: by name.
        kept: number of entries to keep.
        floor: see `global_shares`.
    """
    flat = [score.detach().reshape(-1).double() for score in scores.values()]
    total = sum(map(len, flat))
    if floor:
        flat = [_safe(s, int(floor * kept / total * len(s))) for s in flat]
    mask = top(torch.cat(flat)[None], min(kept, total))[0]
    parts = torch.split(mask, [len(score) for score in flat])
    return {
        name: part.view(score.shape)
        for (name, score), part in zip(scores.items(), parts, strict=True)
    }


def _safe(score: Tensor, least: int) -> Tensor:
    """Return scores whose `least` largest rank above all others."""
    return torch.where(top(score[None], least)[0], torch.inf, score)


def _check(scores: object, who: str) -> None:
    if not (isinstance(scores, Mapping) and scores):
        raise ArgumentError(f"{who} got no scores by name; give those of wanda, snip or others")
    for name, score in scores.items():
        if not (isinstance(score, Tensor) and score.is_floating_point()):
            raise ArgumentError(f"{who} got scores of {name!r:.80} that are no real tensor")
