"""Rules for products of two tensors of features: attention by head."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gossamer.pruning.analysis import Analysis, UnknownError
from gossamer.pruning.channels import Features
from gossamer.pruning.trace import Node


def multiplied(analysis: Analysis, node: Node) -> Features:
    """Return the features of a batched matrix product; they lie along a batch axis or outside.

    Sums over features have no weights that could be zero, so they need all features.
    """
    if node.kwargs or len(node.args) != 2:
        raise UnknownError("a product with options")
    total: Tensor = analysis.value(node)
    found: Features | None = None
    for side, summed in zip(node.args, (-1, -2), strict=True):
        known, value = analysis.features(side), analysis.value(side)
        if known is None:
            continue
        axis = known.axis - value.dim()
        if value.dim() < 2 or axis == summed:
            raise UnknownError("a product that takes sums over its features")
        found = _joined(analysis, found, known.varying(axis + total.dim()))
    if found is None:
        raise UnknownError("a product of unknown features")
    for side in node.args:  # one that is not known may differ by feature
        value = analysis.value(side)
        axis = found.axis - total.dim()
        batched = analysis.features(side) is None and axis < -2 and value.dim() >= -axis
        if batched and value.shape[axis] > 1:
            raise UnknownError("a product with a tensor that differs by feature")
    return found


def attended(analysis: Analysis, node: Node) -> Features:
    """Return the features of scaled dot-product attention: one channel per head."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | node.kwargs
    total: Tensor = analysis.value(node)
    found: Features | None = None
    for name in ("query", "key", "value"):
        known = analysis.features(given[name])
        if known is None or known.axis != total.dim() - 3:
            raise UnknownError("an attention whose features are not heads")
        ids, constant = known.ids, known.constant
        if given.get("enable_gqa") and name != "query":
            each = total.shape[-3] // len(ids)
            ids, constant = ids.repeat_interleave(each), constant.repeat_interleave(each)
        found = _joined(analysis, found, Features(known.axis, ids, constant))
    mask = given.get("attn_mask")
    if mask is not None:
        value = analysis.value(mask)
        if value.dim() > 2 and value.shape[-3] > 1:
            raise UnknownError("an attention with a mask per head")
    # The last is the value. The shares of a head sum to 1: a constant value is the result.
    return found  # type: ignore[return-value]


def _joined(analysis: Analysis, found: Features | None, other: Features) -> Features:
    if found is None:
        return other
    if found.axis != other.axis or len(found.ids) != len(other.ids):
        raise UnknownError("a product of different layouts")
    analysis.channels.join(found.ids, other.ids)
    return other
