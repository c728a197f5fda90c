"""The transpose that a sparse weight stores for its input gradient, dX = dY W.

It consists of the structure of W^T and the permutation that maps its values to those of W. The
values are not stored: the product gathers them, so an optimizer step needs no update. There are
three kinds of backward:

    exact          dX = dY W; the transpose holds every kept entry
    double_pruned  dX = dY W^{R,C}, where the n largest of every m rows of a column are kept: an N:M
                   matrix along both axes. refresh_transpose() selects them again, a state dict
                   saves them, and dW has every kept entry
    transposable   dX = dY W; the mask must be N:M down the columns too, which is checked
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gossamer import backend
from gossamer.backend import Layout, Structure, Transposed
from gossamer.errors import PatternError, StructureError
from gossamer.masks.double_prune import double_prune
from gossamer.patterns import NM, Pattern

Transpose = Literal["packed", "none"]
Backward = Literal["exact", "double_pruned", "transposable"]

NAMES = ("t_indices", "t_indptr", "t_perm")
DTYPES = (torch.uint8, torch.int32, torch.int32)


@dataclass(frozen=True)
class TransposeRule:
    """How a sparse weight builds, selects and checks its transpose.

    It holds no tensors: the weight owns the buffers `t_indices`, `t_indptr` and `t_perm`.

    Args:
        transpose: "packed" or "none".
        backward: "exact", "double_pruned" or "transposable".
        layout: layout of the weight.
        pattern: pattern of the weight.

    Raises:
        ValueError: a kind is unknown, or a double-pruned weight has no transpose.
        PatternError: `backward` needs an N:M pattern, and `pattern` is another.
    """

    transpose: Transpose
    backward: Backward
    layout: Layout
    pattern: Pattern

    def __post_init__(self) -> None:
        if self.transpose not in ("packed", "none"):
            raise ValueError(f"transpose={self.transpose!r} was given; it is 'packed' or 'none'")
        if self.backward not in ("exact", "double_pruned", "transposable"):
            raise ValueError(
                f"backward={self.backward!r} was given; it is 'exact', 'double_pruned' or "
                "'transposable'"
            )
        if self.backward != "exact" and not isinstance(self.pattern, NM):
            raise PatternError(
                f"backward={self.backward!r} was given with pattern {self.pattern}; it needs "
                "groups of rows: choose an N:M pattern such as 2:4, or backward='exact'"
            )
        if self.is_chosen and self.transpose == "none":
            raise ValueError(
                "backward='double_pruned' was given with transpose='none'; its transpose is what "
                "the gradient is computed from: use transpose='packed'"
            )

    @property
    def is_chosen(self) -> bool:
        """Whether the transpose depends on the values, so that a state dict saves it."""
        return self.backward == "double_pruned"

    @property
    def transposed_layout(self) -> Layout:
        """The layout of the transpose: one row per panel, with row pointers."""
        return Layout(self.layout.cols, self.layout.rows, 1, 256)

    def build(
        self, values: Tensor, structure: Structure, out: Transposed | None = None
    ) -> Transposed | None:
        """Return the transpose to store for these values and this structure, or None.

        The arrays of `out`, a transpose of as many values, are overwritten if it is exact.
        """
        if self.is_chosen:
            return double_prune(values, structure, self.layout.n, self.layout.m)
        if self.transpose == "none" or self.layout.vector > 1:
            return None
        return backend.transpose(structure, out)

    def check_structure(self, structure: Structure, where: str = "") -> None:
        """Raise StructureError if a column group of a transposable mask keeps more than n."""
        if self.backward != "transposable":
            return
        n, m, cols = self.layout.n, self.layout.m, self.layout.cols
        kept = _column_counts(backend.coordinates(structure), structure.layout, m)
        if bool((kept > n).any()):
            at = int((kept > n).to(torch.uint8).argmax())
            row, col = at // cols * m, at % cols
            raise StructureError(
                f"{where}backward='transposable' needs at most {n} of each {m} rows of a column, "
                f"and the mask keeps {int(kept[at])} of rows {row}..{row + m - 1} of column "
                f"{col}; choose it with gossamer.masks.transposable_mask, or use "
                "backward='double_pruned'"
            )

    def check_state(
        self, state: Mapping[str, Any], prefix: str, structure: Structure, where: str
    ) -> None:
        """Raise StructureError unless the t_ tensors are a double pruning of `structure`."""
        given = {name: state[prefix + name] for name in NAMES if prefix + name in state}
        if not self.is_chosen or not given:
            return
        missing = [name for name in NAMES if name not in given]
        if missing:
            raise StructureError(
                f"{where} lacks {', '.join(missing)}; the three parts of a transpose belong "
                "together: load the whole file, or leave out all three to rebuild it"
            )
        for name, dtype in zip(NAMES, DTYPES, strict=True):
            tensor = given[name]
            if not isinstance(tensor, Tensor) or tensor.is_meta or tensor.dtype != dtype:
                kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise StructureError(f"{where}: {name} is {kind} or holds nothing, not {dtype}")
            if tensor.dim() != 1:
                raise StructureError(f"{where}: {name} is {tuple(tensor.shape)}, not a vector")
        if structure.indices.is_meta:
            raise StructureError(f"{where} leaves the structure on the meta device")
        indices, indptr, perm = (given[name].cpu().contiguous() for name in NAMES)
        try:
            transposed = Structure(self.transposed_layout, indices, indptr)
            backend.validate(transposed, perm.numel())
            self._check_perm(perm, transposed, structure)
        except StructureError as error:
            raise StructureError(f"{where}: transpose: {error}") from None

    def _check_perm(self, perm: Tensor, transposed: Structure, structure: Structure) -> None:
        """Raise StructureError unless the permutation fits the indices, at most n per group."""
        if perm.numel() and not 0 <= int(perm.min()) <= int(perm.max()) < structure.nnz:
            raise StructureError(
                f"perm is not inside the {structure.nnz} values of the weight: it was changed or "
                "damaged; load a sound file, or leave out the t_ tensors"
            )
        rows, cols = structure.layout.rows, structure.layout.cols
        at = backend.coordinates(structure)[perm.long()]
        if not torch.equal(at % cols * rows + at // cols, backend.coordinates(transposed)):
            raise StructureError(
                "perm names other entries than its indices: it was changed or damaged; load a "
                "sound file, or leave out the t_ tensors"
            )
        n, m = self.layout.n, self.layout.m
        kept = _column_counts(at, self.layout, m)
        if bool((kept > n).any()):
            raise StructureError(
                f"a group of {m} rows keeps {int(kept.max())} entries of a column, more than "
                f"{n}: it was pruned for another pattern"
            )


def _column_counts(coordinates: Tensor, layout: Layout, m: int) -> Tensor:
    """Return the number of entries per group of m rows and column, [groups * columns]."""
    rows, cols = layout.rows, layout.cols
    groups = coordinates // (cols * m) * cols + coordinates % cols
    return torch.bincount(groups, minlength=-(-rows // m) * cols)
