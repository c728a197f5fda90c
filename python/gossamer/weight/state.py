"""Checks of a state dict before a sparse weight loads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from gossamer import backend
from gossamer.backend import Layout, Structure, check_array
from gossamer.errors import PatternError, StructureError
from gossamer.masks import check_structure
from gossamer.patterns import Pattern
from gossamer.weight import descriptor as descriptors
from gossamer.weight.checks import check_dtype
from gossamer.weight.descriptor import describe, pattern_of
from gossamer.weight.transpose import TransposeRule

_STATE = ("values", "indices", "indptr", "descriptor")


class _Stored(Protocol):
    """The members of a weight that a check needs."""

    pattern: Pattern
    layout: Layout
    shape: torch.Size
    indices: Tensor
    indptr: Tensor | None

    @property
    def nnz(self) -> int: ...


def check_state(
    weight: _Stored, rule: TransposeRule, state_dict: Mapping[str, Any], prefix: str
) -> Pattern:
    """Check the tensors of a state dict before a weight loads them.

    Args:
        weight: the weight that will load the tensors.
        rule: rule of the weight's transpose.
        state_dict: the tensors by name; some may be missing.
        prefix: prefix of the names.

    Returns:
        The pattern that the tensors describe.

    Raises:
        StructureError: the tensors do not fit the weight, or are damaged.
        DTypeError: a value is not a tensor, or has another dtype.
    """
    given = {n: state_dict[prefix + n] for n in _STATE if prefix + n in state_dict}
    where = f"{prefix}* of the state dict"
    pattern = weight.pattern
    for name, tensor in given.items():
        check_array(tensor, f"{where}: {name}")
    if "descriptor" in given:
        pattern = _check_descriptor(weight, given["descriptor"], where)
    for name, tensor in given.items():
        mine = getattr(weight, name)
        if name == "descriptor":
            continue  # compared above; its length depends on the fields of the pattern
        if mine is None or tensor.shape != mine.shape:
            own = "none" if mine is None else tuple(mine.shape)
            raise StructureError(
                f"{where}: {name} is {tuple(tensor.shape)}, the module's is {own} (pattern "
                f"{weight.pattern}); build the module with the pattern that was saved"
            )
        if name == "values":
            check_dtype(tensor.dtype, f"{where}: values")
        elif tensor.dtype != mine.dtype:
            raise StructureError(f"{where}: {name} is {tensor.dtype}, not {mine.dtype}")
    indices, indptr = given.get("indices", weight.indices), given.get("indptr", weight.indptr)
    structure = Structure(weight.layout, indices, indptr)
    if "indices" in given or "indptr" in given:
        if indices.is_meta:
            raise StructureError(f"{where} leaves the structure on the meta device")
        try:
            backend.validate(structure, weight.nnz)
            check_structure(structure, pattern)
            if "descriptor" in given and "indices" in given:
                descriptors.check(given["descriptor"], structure)
        except StructureError as error:
            raise StructureError(f"{where}: {error}") from None
        rule.check_structure(structure, f"{where}: ")
    rule.check_state(state_dict, prefix, structure, where)
    return pattern


def _check_descriptor(weight: _Stored, descriptor: Tensor, where: str) -> Pattern:
    """Return the pattern of a loaded descriptor, which must keep as many entries as the weight."""
    # Sparsities may differ if the counts agree: a repeated allocation differs in its last bit.
    rows, cols = weight.shape
    readable = descriptor.dtype == torch.int64 and not descriptor.is_meta
    theirs = descriptor.flatten().tolist() if readable else []
    expected = describe(weight.pattern, weight.layout).tolist()
    try:
        pattern = pattern_of(theirs)
        same = [theirs[0] & 0xFF, *theirs[1:5]] == expected[:5]
        if same and _equal(pattern, weight.pattern) and pattern.count(rows, cols) == weight.nnz:
            return pattern
        saved = f"{pattern} of {theirs[1]}x{theirs[2]} (blocks of {theirs[4]})"
    except PatternError as error:
        saved = f"a descriptor that cannot be read ({error})"
    raise StructureError(
        f"{where} holds {saved}; the module is {weight.pattern} of {rows}x{cols} "
        f"(blocks of {weight.layout.block_cols}); build the module with what was saved"
    )


def _equal(theirs: Pattern, mine: Pattern) -> bool:
    """Whether two patterns differ in nothing but the sparsity of an adjustable one."""
    if theirs == mine:
        return True
    alike = type(theirs) is type(mine) and mine.adjustable
    return alike and theirs.at_sparsity(mine.sparsity) == mine
