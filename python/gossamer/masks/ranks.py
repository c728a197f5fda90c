"""The rank of NaN and infinity in selections: numbers < infinity < NaN.

A NaN is kept before everything else, so that no selection hides it: the product shows it at once.
All NaNs are equal, whatever their sign and bits; of equal scores the lower index is kept.
"""

import torch
from torch import Tensor

__all__ = ["rank_keys"]


def rank_keys(score: Tensor) -> Tensor:
    """Return keys without NaN that have the order of the scores, with NaN above infinity.

    Args:
        score: float32 or float64, any shape.

    Returns:
        The scores themselves if none is NaN; otherwise int64 keys of the same shape.

    Example:
        >>> score = torch.tensor([1.0, torch.nan, -torch.inf, torch.inf])
        >>> rank_keys(score).argsort().tolist()
        [2, 0, 3, 1]
    """
    nan = torch.isnan(score)
    if not bool(nan.any()):
        return score
    # The bits of a positive float64 have the order of its value; those of a negative one, with all
    # bits but the sign inverted, too. Adding 0 makes -0 and 0 equal.
    bits = (score.double() + 0.0).contiguous().view(torch.int64)
    keys = torch.where(bits < 0, bits ^ torch.iinfo(torch.int64).max, bits)
    return keys.masked_fill_(nan, torch.iinfo(torch.int64).max)
