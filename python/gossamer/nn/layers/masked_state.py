"""The mask of a masked layer: selected; checked in a state dict before the layer changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gossamer import backend
from gossamer.backend import Layout, Structure, Transposed
from gossamer.errors import StructureError
from gossamer.masks import magnitude_mask
from gossamer.masks.n_of_m import select_nm
from gossamer.patterns import NM, Pattern
from gossamer.weight import descriptor
from gossamer.weight.positions import check_fit

if TYPE_CHECKING:
    from gossamer.nn.layers.masked import MaskedLinear

STRUCTURE = ("indices", "indptr", "descriptor")


def saved_mask(
    layer: MaskedLinear, state_dict: dict[str, Any], prefix: str
) -> tuple[Structure, Pattern] | None:
    """Return a copy of the mask that a state dict holds for a layer, and its pattern.

    Args:
        layer: that will load the state; it does not change.
        state_dict: the state; the buffer's name in checkpoints of version 0.1 is replaced.
        prefix: of the layer's names in it.

    Returns:
        The structure and the pattern; None if the state holds no mask.

    Raises:
        StructureError: the mask is damaged, or is not the layer's.
    """
    if prefix + "softness" in state_dict:
        state_dict[prefix + "masked_weight_share"] = state_dict.pop(prefix + "softness")
    given = {name: state_dict.get(prefix + name) for name in STRUCTURE}
    if all(part is None for part in given.values()):
        return None
    where = f"{prefix}* of the state dict"
    if given["descriptor"] is None or given["indices"] is None:
        raise StructureError(
            f"{where} holds a part of a mask, without its descriptor or indices; load what was "
            "saved from this layer"
        )
    try:
        pattern, layout = descriptor.read(given["descriptor"])
        structure = Structure(layout, given["indices"], given["indptr"])
        check_fit(structure, pattern)
        descriptor.check(given["descriptor"], structure)
    except (AttributeError, TypeError, ValueError) as error:
        raise StructureError(f"{where}: {error}; load what was saved from this layer") from None
    _check_rest(layer, state_dict, prefix, layout)
    indices, indptr = (None if t is None else t.clone() for t in structure[1:])
    return Structure(layout, indices, indptr), pattern


def _check_rest(
    layer: MaskedLinear, state_dict: Mapping[str, Any], prefix: str, layout: Layout
) -> None:
    where = f"{prefix}* of the state dict"
    if (layout.rows, layout.cols) != (layer.out_features, layer.in_features):
        raise StructureError(
            f"{where} holds a weight of {layout.rows} x {layout.cols}, the layer's is "
            f"{layer.out_features} x {layer.in_features}; build the model that was saved"
        )
    for name, own in (("weight", layer.weight), ("bias", layer.bias)):
        found = state_dict.get(prefix + name)
        if isinstance(found, Tensor) and own is not None and found.shape != own.shape:
            raise StructureError(
                f"{where}: {name} has shape {tuple(found.shape)}, the layer's "
                f"{tuple(own.shape)}; build the model that was saved"
            )
    found = state_dict.get(prefix + "masked_weight_share")
    if isinstance(found, Tensor) and not (found.numel() == 1 and 0.0 <= found.item() <= 1.0):
        raise StructureError(
            f"{where}: masked_weight_share is {found.tolist()!r:.80}; a number in [0, 1] is "
            "needed: load what was saved from this layer"
        )


def select(weight: Tensor, pattern: Pattern) -> tuple[Tensor, Structure]:
    """Select the largest magnitudes of a weight; return them and their structure."""
    if isinstance(pattern, NM):
        return select_nm(weight, pattern)
    mask = magnitude_mask(weight, pattern)
    structure = backend.encode(mask, pattern.panel, *pattern.group)
    return backend.gather(weight, structure), structure


def nbytes(transposed: Transposed | None) -> int:
    """Return the bytes of a transpose."""
    if transposed is None:
        return 0
    structure, perm = transposed
    tensors = (structure.indices, structure.indptr, perm)
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def describe(layer: MaskedLinear, anew: bool = False) -> None:
    """Write pattern, layout and checksum of a layer's mask into its descriptor.

    Args:
        layer: the layer.
        anew: whether to write them although they have not changed.
    """
    now = (layer._pattern, layer._layout, layer._guard.checksum)
    if anew or layer.__dict__.get("_described") != now:
        layer._described, layer.descriptor = now, descriptor.describe(*now)
