"""Averages of weights whose mask moves: an average takes the mask of the model, by coordinate.

torch averages the values of a sparse weight by position. Once a mask has moved, a position stands
for another entry, so that the average has to move first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import swa_utils

from gossamer.arguments import check
from gossamer.errors import ArgumentError
from gossamer.nn import MaskedLayer
from gossamer.weight import SparseWeight


class AveragedModel(swa_utils.AveragedModel):
    """torch's `AveragedModel`, which follows masks that move.

    Before each update the average takes the model's masks. An entry that both have keeps its
    average; one that died leaves; one that grew begins at 0, which it was in the model until then.
    So an average over masks that moved is that of the dense weights at the entries which live now,
    but for what a new entry was before it last died. Everything else (`avg_fn`, `multi_avg_fn`,
    `use_buffers`, `update_bn`, the state dict) is torch's.

    The arguments are torch's. The model is copied; masks are never averaged, also with
    `use_buffers=True`.

    Reference:
        Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization".

    Example:
        >>> import gossamer
        >>> model = gossamer.SparseLinear(8, 4, pattern="2:4")
        >>> average = AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
        >>> model.weight.set_mask(torch.tensor([[False, True] * 4] * 4))
        >>> average.update_parameters(model)
        >>> torch.equal(average.module.mask(), model.mask())
        True
    """

    def update_parameters(self, model: nn.Module) -> None:
        """Take the masks of the model, then average the parameters.

        Raises:
            ArgumentError: the models have other layers; nothing changes.
        """
        follow_masks(self.module, model)
        super().update_parameters(model)


@torch.no_grad()
def follow_masks(average: nn.Module, model: nn.Module) -> None:
    """Give a model the masks of another, by coordinate; for averages of one's own.

    Call it before an average over a state dict or over parameters is updated.

    Args:
        average: the model that changes: values of entries that both have stay, others begin at 0.
        model: the model with the masks, of the same layers.

    Raises:
        ArgumentError: the models have other layers or sizes; nothing changes.

    Example:
        >>> import copy, gossamer
        >>> model = gossamer.SparseLinear(8, 4, pattern="2:4")
        >>> average = copy.deepcopy(model)
        >>> model.weight.set_mask(torch.tensor([[False, True] * 4] * 4))
        >>> follow_masks(average, model)
        >>> torch.equal(average.mask(), model.mask())
        True
    """
    check(follow_masks, locals())
    mine = dict(average.named_modules())
    pairs: list[tuple[Any, Any]] = []
    for name, theirs in model.named_modules():
        dense = isinstance(theirs, MaskedLayer) and theirs.sparse_weight is None
        if not (dense or isinstance(theirs, SparseWeight)):
            continue
        own: Any = mine.get(name)
        if type(own) is not type(theirs) or _sizes(own) != _sizes(theirs):
            raise ArgumentError(
                f"follow_masks: {name!r} is {type(theirs).__name__} {_sizes(theirs)} in the model "
                f"and {type(own).__name__} {_sizes(own)} in the average; give equal layers"
            )
        pairs.append((own, theirs))
    for own, theirs in pairs:
        if isinstance(theirs, SparseWeight):
            _move(own, theirs)
        else:
            parameters = {name: p.detach() for name, p in own.named_parameters()}
            own.load_state_dict({**theirs.state_dict(), **parameters})


def _move(own: SparseWeight, theirs: SparseWeight) -> None:
    # Of equal sizes: two masks of as many entries differ in these at least.
    same = own.pattern == theirs.pattern and all(
        (a is None and b is None)
        or (isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b))
        for a, b in zip(own.structure[1:], theirs.structure[1:], strict=True)
    )
    if not same:
        own.set_mask(theirs.structure, pattern=theirs.pattern)


def _sizes(module: Any) -> list[int]:
    if isinstance(module, MaskedLayer):
        return [module.out_features, module.in_features]
    return list(module.shape) if isinstance(module, SparseWeight) else []


__all__ = ["AveragedModel", "follow_masks"]
