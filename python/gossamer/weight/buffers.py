"""The integer buffers of a sparse weight: the positions of its values, and their transpose.

Each is checked when it is built or loaded, and again when its bytes have changed since: see
`gossamer.weight.guard`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.backend import Layout, Structure, Transposed
from gossamer.masks import random_structure
from gossamer.patterns import Pattern
from gossamer.weight.descriptor import describe as descriptor_of
from gossamer.weight.guard import Guard, has_bytes
from gossamer.weight.sharding import whole
from gossamer.weight.transpose import DTYPES, NAMES, TransposeRule

_ANEW = "draw the layer anew with reset_parameters()"


class StructureBuffers(nn.Module):
    """Holds the buffers `indices`, `indptr`, `descriptor` and the three of the transpose."""

    values: nn.Parameter
    shape: torch.Size
    indices: Tensor
    indptr: Tensor | None
    descriptor: Tensor
    t_indices: Tensor | None
    t_indptr: Tensor | None
    t_perm: Tensor | None
    pattern: Pattern
    layout: Layout
    _rule: TransposeRule

    def _register(self, structure: Structure, pattern: Pattern, rule: TransposeRule) -> None:
        """Make the buffers of a checked structure."""
        self.pattern, self.layout, self._rule = pattern, structure.layout, rule
        self.layout_ints = tuple(structure.layout.as_ints())
        self.register_buffer("indices", structure.indices)
        self.register_buffer("indptr", structure.indptr)
        self.register_buffer("descriptor", descriptor_of(pattern, structure.layout))
        self._guard, self._t_guard = Guard(self), Guard(self)
        self._seal()
        self._describe()
        self._t_layout: Layout | None = None
        self.t_layout_ints: tuple[int, ...] = ()
        for name in NAMES:
            self.register_buffer(name, None, persistent=rule.is_chosen)
        self._pack_transpose()

    @property
    def structure(self) -> Structure:
        """The positions of the values, over the live buffers.

        Raises:
            StructureError: the buffers were written over.
        """
        # From the dict: a buffer's attribute look-up takes 0.5 us, and every product comes here.
        buffers = self._buffers
        guard = self._guard
        if not guard.holds(buffers["indices"], buffers["indptr"]):  # type: ignore[arg-type]
            self._inspect()
        return guard.value  # type: ignore[no-any-return]

    @property
    def transposed(self) -> Transposed | None:
        """The structure of the transpose and the order of the values in it, or None.

        In a double-pruned weight it lacks the entries that the second pruning drops.

        Raises:
            StructureError: the buffers of a double-pruned transpose were written over; others are
                built again.
        """
        if self._t_layout is None:
            return None
        buffers = self._buffers
        guard = self._t_guard
        if not guard.holds(buffers["t_indices"], buffers["t_indptr"], buffers["t_perm"]):  # type: ignore[arg-type]
            self._inspect_transpose()
        return guard.value  # type: ignore[no-any-return]

    @torch.no_grad()
    def refresh_transpose(self) -> None:
        """Select the entries of a double-pruned transpose again, by the present values.

        It has no effect if `backward` is "exact" or "transposable". A pending backward pass keeps
        the transpose of its forward pass.
        """
        if self._rule.is_chosen and not self.values.is_meta:
            self._keep_transpose(self._rule.build(whole(self.values), self.structure))

    @property
    def initial_bound(self) -> float:
        """The bound of new values: 1 / sqrt(columns * density), by the sparse fan-in."""
        density = self.values.numel() / max(self.shape.numel(), 1)
        return 1.0 / math.sqrt(max(self.shape[1] * density, 1.0))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the values anew, and the positions too where they were lost, as by `to_empty`.

        Values are from U(-b, b) with b = `initial_bound`, as those of a new
        `gossamer.nn.SparseLinear`.
        """
        if not self.indices.is_meta and not self._is_intact():
            seed = int(torch.randint(2**63 - 1, (), device="cpu"))
            self._keep_positions(random_structure(self.shape, self.pattern, seed))
            if not self._rule.is_chosen:
                self._pack_transpose()
        nn.init.uniform_(self.values, -self.initial_bound, self.initial_bound)
        self.refresh_transpose()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "_guard" not in state:  # written by an earlier version
            self._guard, self._t_guard = Guard(self), Guard(self)
            self._seal()
        self._guard.own(self)
        self._t_guard.own(self)

    def _is_intact(self) -> bool:
        """Return whether the positions are those that were built or loaded."""
        mine = (self.indices, self.indptr)
        return all(map(has_bytes, mine)) and self._guard.is_intact(*mine)

    def _seal(self) -> None:
        """Take the positions in the buffers, which are checked, for the right ones."""
        structure = Structure(self.layout, self.indices, self.indptr)
        self._guard.keep(structure, *structure[1:], checksum=True)

    @torch.no_grad()
    def _describe(self) -> None:
        """Write pattern, layout and checksum into the descriptor."""
        if has_bytes(self.descriptor):
            fresh = descriptor_of(self.pattern, self.layout, self._guard.checksum)
            self._fit_descriptor(fresh)
            self.descriptor.copy_(fresh)

    def _fit_descriptor(self, fresh: object) -> None:
        """Resize the descriptor to another one: that of a pattern with longer fields is longer."""
        if isinstance(fresh, Tensor) and fresh.shape != self.descriptor.shape:
            self.descriptor = self.descriptor.new_empty(fresh.shape)

    @torch.no_grad()
    def _inspect(self) -> None:
        """Look at positions that may have changed: pass, restore or refuse them."""
        structure = Structure(self.layout, self.indices, self.indptr)
        self._guard.check(structure, "indices", _ANEW, *structure[1:])
        self._describe()  # what averages the one averages the other

    @torch.no_grad()
    def _inspect_transpose(self) -> None:
        """Look at a transpose that may have changed: pass, restore, rebuild or refuse it."""
        buffers, guard = (self.t_indices, self.t_indptr, self.t_perm), self._t_guard
        if self._rule.is_chosen:
            guard.check(self._t_value, "t_indices", _ANEW, *buffers)
            return
        if all(map(has_bytes, buffers)) and not guard.is_intact(*buffers):
            self._pack_transpose()  # it follows from the positions
        self._seal_transpose(checksum=True)

    def _seal_transpose(self, checksum: bool) -> None:
        """Take the transpose in the buffers for the right one."""
        buffers = (self.t_indices, self.t_indptr, self.t_perm)
        self._t_guard.keep(self._t_value, *buffers, checksum=checksum)

    @property
    def _t_value(self) -> Transposed:
        structure = Structure(self._t_layout, self.t_indices, self.t_indptr)  # type: ignore[arg-type]
        return Transposed(structure, self.t_perm)

    def _pack_transpose(self) -> None:
        """Build the t_ buffers from valid values and structure."""
        structure = self.structure
        if structure.indices.is_meta:
            return
        self._rule.check_structure(structure)
        values = whole(self.values) if self._rule.is_chosen else self.values
        self._keep_transpose(self._rule.build(values, structure))

    def _keep_positions(self, structure: Structure) -> None:
        """Store the positions of a new mask in the buffers; a pending backward pass will fail."""
        fresh = {"indices": structure.indices, "indptr": structure.indptr}
        mine = {name: self._buffers[name] for name in fresh}
        fit = all(
            (a is None and b is None) or (a is not None and b is not None and a.shape == b.shape)
            for a, b in zip(mine.values(), fresh.values(), strict=True)
        )
        for name, tensor in fresh.items():
            own = mine[name]
            if fit and own is not None and tensor is not None:
                own.copy_(tensor)
            elif not fit:
                if own is not None:
                    torch.autograd.graph.increment_version(own)
                setattr(self, name, None if tensor is None else tensor.clone())
        self._seal()
        self._describe()

    def _room(self, nnz: int) -> Transposed | None:
        """Return the stored transpose to overwrite if it has so many values, else None."""
        stored = self.transposed
        if stored is None or stored.perm.numel() != nnz:
            return None
        # A pending backward pass of the old mask fails.
        torch.autograd.graph.increment_version((stored.structure.indices, stored.perm))
        return stored

    def _keep_transpose(self, packed: Transposed | None) -> None:
        """Store this transpose in the t_ buffers."""
        if packed is None:
            return
        structure, perm = packed
        fresh = dict(zip(NAMES, (structure.indices, structure.indptr, perm), strict=True))
        for name, tensor in fresh.items():
            mine = getattr(self, name)
            # A pending backward pass may still use the buffers of a double-pruned transpose:
            # replace them, do not overwrite.
            fits = mine is not None and not mine.is_meta and mine.shape == tensor.shape
            if not fits or self._rule.is_chosen:
                setattr(self, name, tensor)
            elif mine is not tensor:
                mine.copy_(tensor)
        self._t_layout = structure.layout
        self.t_layout_ints = tuple(structure.layout.as_ints())
        # A checksum only where the bytes cannot be built again: most masks change many times.
        self._seal_transpose(checksum=self._rule.is_chosen)

    def _make_room(self, state: Mapping[str, Any], prefix: str) -> bool:
        """Resize the t_ buffers to those of a state dict; return False when it has none."""
        if not self._rule.is_chosen or prefix + "t_perm" not in state:
            return False
        for name, dtype in zip(NAMES, DTYPES, strict=True):
            shape = state[prefix + name].shape
            mine = getattr(self, name)
            if mine is None or mine.shape != shape:
                setattr(self, name, torch.empty(shape, dtype=dtype, device=self.values.device))
        self._t_layout = self._rule.transposed_layout
        self.t_layout_ints = tuple(self._t_layout.as_ints())
        return True
