"""The mask of a flat block butterfly, which depends on the shape alone.

Dao et al. 2022, "Pixelated Butterfly".
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.patterns import Butterfly, register_sparsifier

__all__ = ["flat_butterfly"]


@register_sparsifier(Butterfly)
def flat_butterfly(score: Tensor, pattern: Butterfly) -> Tensor:
    """Keep the blocks (r, c) with c = r, or c = r xor 2^i for i < kept - 1.

    Args:
        score: [slots of rows, columns], of which the shape and the device count.
        pattern: the pattern.
    """
    slots, cols = score.shape
    row = torch.arange(slots, device=score.device) * pattern.grid // max(slots, 1)
    col = torch.arange(cols, device=score.device) * pattern.grid // max(cols, 1)
    apart = row[:, None] ^ col[None, :]
    kept = apart == 0
    for i in range(pattern.kept - 1):
        kept |= apart == 1 << i
    return kept
