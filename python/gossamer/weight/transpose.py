"""The transpose that a sparse weight keeps for the gradient of its input, dX = dY W.

Kept are the structure of W^T and where its values stand among those of W, never the values: the
product gathers them, so nothing has to follow the optimizer's steps. Three kinds of backward:

    exact          dX = dY W; the transpose holds every kept entry
    double_pruned  dX = dY W^{R,C}: of each m rows of a column the n largest stay, an N:M matrix
                   along both axes; chosen anew by refresh_transpose(), saved in a state dict.
                   dW is that of every kept entry all the same
    transposable   dX = dY W, and the mask is N:M down the columns too, which is checked
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gossamer import backend
from gossamer.backend import Layout, Structure, Transposed
from gossamer.errors import PatternError, StructureError
from gossamer.masks.double_prune import double_prune
from gossamer.patterns import NM, Pattern

Transpose = Literal["packed", "none"]
Backward = Literal["exact", "double_pruned", "transposable"]

_NAMES = ("t_indices", "t_indptr", "t_perm")
_DTYPES = (torch.uint8, torch.int32, torch.int32)


class KeepsTranspose(nn.Module):
    """What `SparseWeight` knows of its transpose; it brings values, structure and pattern."""

    values: nn.Parameter
    layout: Layout
    pattern: Pattern
    transpose: Transpose
    backward: Backward
    t_indices: Tensor | None
    t_indptr: Tensor | None
    t_perm: Tensor | None

    @property
    def structure(self) -> Structure:
        """Where each value stands."""
        raise NotImplementedError

    @property
    def transposed(self) -> Transposed | None:
        """The structure of the transpose and the values' order in it, or None.

        In a double-pruned weight it lacks the entries that the second pruning took.
        """
        if self._t_layout is None:
            return None
        buffers = self._buffers
        structure = Structure(self._t_layout, buffers["t_indices"], buffers["t_indptr"])
        return Transposed(structure, buffers["t_perm"])

    @torch.no_grad()
    def refresh_transpose(self) -> None:
        """Choose the entries of a double-pruned transpose anew, by the values of this moment.

        Where `backward` is "exact" or "transposable" there is nothing to choose: no effect. A
        backward pass that waits keeps the transpose of its forward pass.
        """
        if self.backward == "double_pruned" and not self.values.is_meta:
            self._keep(self._transpose_of(self.values, self.structure))

    def _start_transpose(self, transpose: Transpose, backward: Backward) -> None:
        """Check the two arguments against the pattern and build the buffers."""
        if transpose not in ("packed", "none"):
            raise ValueError(f"transpose={transpose!r} was given; it is 'packed' or 'none'")
        if backward not in ("exact", "double_pruned", "transposable"):
            raise ValueError(
                f"backward={backward!r} was given; it is 'exact', 'double_pruned' or 'transposable'"
            )
        if backward != "exact" and not isinstance(self.pattern, NM):
            raise PatternError(
                f"backward={backward!r} was given with pattern {self.pattern}; it needs groups of "
                "rows: choose an N:M pattern such as 2:4, or backward='exact'"
            )
        if backward == "double_pruned" and transpose == "none":
            raise ValueError(
                "backward='double_pruned' was given with transpose='none'; its transpose is what "
                "the gradient is computed from: use transpose='packed'"
            )
        self.transpose = transpose
        self.backward = backward
        self._t_layout: Layout | None = None
        self.t_layout_ints: tuple[int, ...] = ()
        for name in _NAMES:
            self.register_buffer(name, None, persistent=backward == "double_pruned")
        self._pack_transpose()

    def _pack_transpose(self) -> None:
        """Build the t_ buffers anew from values and structure, which must be valid."""
        structure = self.structure
        if structure.indices.is_meta:
            return
        self._check_transposable(structure)
        packed = self._transpose_of(self.values.detach(), structure)
        if packed is not None:
            self._keep(packed)

    def _transpose_of(self, values: Tensor, structure: Structure) -> Transposed | None:
        """The transpose that this weight would keep of other values and another structure."""
        if self.backward == "double_pruned":
            return double_prune(values, structure, self.layout.n, self.layout.m)
        if self.transpose == "none" or self.layout.vector > 1:
            return None
        return backend.transpose(structure)

    def _keep(self, packed: Transposed | None) -> None:
        """Make this transpose the weight's own."""
        if packed is None:
            return
        turned, perm = packed
        fresh = dict(zip(_NAMES, (turned.indices, turned.indptr, perm), strict=True))
        for name, tensor in fresh.items():
            mine = getattr(self, name)
            # A backward pass may wait on the chosen entries of a double-pruned transpose.
            fits = mine is not None and not mine.is_meta and mine.shape == tensor.shape
            if not fits or self.backward == "double_pruned":
                setattr(self, name, tensor)
            else:
                mine.copy_(tensor)
        self._t_layout = turned.layout
        self.t_layout_ints = tuple(turned.layout.as_ints())

    def _check_transposable(self, structure: Structure, where: str = "") -> None:
        """Raise StructureError when a transposable mask has a column group of more than n."""
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

    def _check_transpose_state(
        self, state: Mapping[str, Any], prefix: str, structure: Structure, where: str
    ) -> None:
        """Raise StructureError unless the t_ tensors given are a double pruning of `structure`."""
        given = {name: state[prefix + name] for name in _NAMES if prefix + name in state}
        if self.backward != "double_pruned" or not given:
            return
        missing = [name for name in _NAMES if name not in given]
        if missing:
            raise StructureError(
                f"{where} lacks {', '.join(missing)}; the three parts of a transpose belong "
                "together: load the whole file, or leave out all three to choose it anew"
            )
        for name, dtype in zip(_NAMES, _DTYPES, strict=True):
            tensor = given[name]
            if not isinstance(tensor, Tensor) or tensor.is_meta or tensor.dtype != dtype:
                kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise StructureError(f"{where}: {name} is {kind} or holds nothing, not {dtype}")
            if tensor.dim() != 1:
                raise StructureError(f"{where}: {name} is {tuple(tensor.shape)}, not a vector")
        if structure.indices.is_meta:
            raise StructureError(f"{where} leaves the structure on the meta device")
        indices, indptr, perm = (given[name].cpu().contiguous() for name in _NAMES)
        try:
            turned = Structure(_turned(structure.layout), indices, indptr)
            backend.validate(turned, perm.numel())
            self._check_perm(perm, turned, structure)
        except StructureError as error:
            raise StructureError(f"{where}: transpose: {error}") from None

    def _check_perm(self, perm: Tensor, turned: Structure, structure: Structure) -> None:
        """Raise StructureError unless each value is where the transpose says, n in a group."""
        if perm.numel() and not 0 <= int(perm.min()) <= int(perm.max()) < structure.nnz:
            raise StructureError(
                f"perm is not inside the {structure.nnz} values of the weight: it was changed or "
                "damaged; load a sound file, or leave out the t_ tensors"
            )
        rows, cols = structure.layout.rows, structure.layout.cols
        at = backend.coordinates(structure)[perm.long()]
        if not torch.equal(at % cols * rows + at // cols, backend.coordinates(turned)):
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

    def _make_room(self, state: Mapping[str, Any], prefix: str) -> bool:
        """Give the t_ buffers the sizes of those in a state dict; False when it has none."""
        if self.backward != "double_pruned" or prefix + "t_perm" not in state:
            return False
        for name, dtype in zip(_NAMES, _DTYPES, strict=True):
            shape = state[prefix + name].shape
            mine = getattr(self, name)
            if mine is None or mine.shape != shape:
                setattr(self, name, torch.empty(shape, dtype=dtype, device=self.values.device))
        turned = _turned(self.layout)
        self._t_layout, self.t_layout_ints = turned, tuple(turned.as_ints())
        return True


def _turned(layout: Layout) -> Layout:
    """The layout of the transpose: one row a panel, counted by pointers."""
    return Layout(layout.cols, layout.rows, 1, 256)


def _column_counts(coordinates: Tensor, layout: Layout, m: int) -> Tensor:
    """How many of the entries stand in each group of m rows of each column, groups first."""
    rows, cols = layout.rows, layout.cols
    groups = coordinates // (cols * m) * cols + coordinates % cols
    return torch.bincount(groups, minlength=-(-rows // m) * cols)
