"""SparseWeight: the kept entries of a matrix as one trainable vector, and their positions.

The values are an ordinary 1-D `nn.Parameter` in the order in which the kernels read them, and the
structure consists of integer buffers. So optimizers, clipping, EMA, `state_dict` and safetensors
work unchanged. `gossamer.nn.SparseLinear` is the layer with such a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from gossamer import backend
from gossamer.arguments import check
from gossamer.backend import Structure, check_array
from gossamer.errors import PatternError
from gossamer.masks import check_mask, magnitude_mask, mask_from_score
from gossamer.patterns import Nonzeros, Pattern, Unstructured, parse_pattern
from gossamer.weight.buffers import StructureBuffers
from gossamer.weight.checks import check_dense, check_dtype, check_like
from gossamer.weight.exchange import Exchange
from gossamer.weight.matrix_face import MatrixFace
from gossamer.weight.moving import Moving
from gossamer.weight.positions import Positions, check_fit, structure_of
from gossamer.weight.sharding import check_home, gathered
from gossamer.weight.state import check_state
from gossamer.weight.transpose import Backward, Transpose, TransposeRule

__all__ = ["SparseWeight"]

_ALIVE: WeakSet[SparseWeight] = WeakSet()


class SparseWeight(MatrixFace, StructureBuffers, Exchange):
    """A sparse matrix [rows, cols] whose kept entries are trained.

    `values` is the trainable `nn.Parameter` [nnz]; `structure` gives the position of each value.

    It has the members that code expects of the weight of an `nn.Linear`: `shape`, `size()`,
    `numel()`, `ndim` and `dim()` describe the matrix; `dtype`, `device` and `requires_grad` those
    of the values. See `MatrixFace` for assignments.

    Args:
        values: [nnz], float32, float64 or bfloat16, in the order of `structure`.
        structure: positions of the values, as built by `gossamer.backend.encode`; validated.
        pattern: the pattern that the structure obeys, or its text.
        transpose: "packed" also stores the structure of the transpose, for a fast input gradient,
            at about 5 bytes per kept entry; "none" does not. It has no effect if rows share
            their columns (`pattern.panel` above 1), unless `backward` is "double_pruned".
        backward: "exact" computes the exact input gradient; "double_pruned" drops the entries
            outside the n largest of m rows from it, see `refresh_transpose`; "transposable" is
            exact, and the mask must be N:M down the columns too. The last two need N:M.

    Raises:
        StructureError: the structure is not valid, or does not obey the pattern.
        DTypeError: the dtype is not supported.

    Example:
        >>> import torch
        >>> weight = SparseWeight.from_dense(torch.tensor([[1.0, -3.0, 2.0, 0.5]]), "2:4")
        >>> weight.values.tolist()
        [-3.0, 2.0]
        >>> weight.to_dense().tolist()
        [[0.0, -3.0, 2.0, 0.0]]
    """

    def __init__(
        self,
        values: Tensor,
        structure: Structure,
        pattern: str | Pattern,
        transpose: Transpose = "packed",
        backward: Backward = "exact",
    ) -> None:
        super().__init__()
        check(SparseWeight.__init__, locals())
        check_array(values, "values", rank=1)
        check_dtype(values.dtype, "values")
        pattern = parse_pattern(pattern)
        check_fit(structure, pattern, values.numel())
        layout = structure.layout
        self.shape = torch.Size((layout.rows, layout.cols))
        self.values = nn.Parameter(values.detach())
        self._register(structure, pattern, TransposeRule(transpose, backward, layout, pattern))
        _ALIVE.add(self)

    @classmethod
    def from_dense(
        cls,
        weight: Tensor,
        pattern: str | Pattern,
        mask: Tensor | None = None,
        score: Tensor | None = None,
        transpose: Transpose = "packed",
        backward: Backward = "exact",
    ) -> SparseWeight:
        """Keep the entries of a dense matrix that a mask, a score or their magnitude selects.

        Args:
            weight: [rows, cols], float32, float64 or bfloat16, on the CPU.
            pattern: a pattern or its text, such as "2:4:v4" or "90%"; "nonzeros" keeps what is not
                zero, without mask and score.
            mask: bool [rows, cols], True = kept; must obey the pattern.
            score: real [rows, cols]; the highest scores are kept. Not together with `mask`.
            transpose: see `SparseWeight`.
            backward: see `SparseWeight`.

        Returns:
            A weight that owns a copy of the kept entries.

        Raises:
            PatternError: the shape does not fit the pattern, or "nonzeros" came with a mask or
                score.
            StructureError: the mask does not obey the pattern.

        Example:
            >>> import torch
            >>> SparseWeight.from_dense(torch.eye(8), "1:8").density
            0.125
        """
        pattern = parse_pattern(pattern)
        dense = check_dense(weight)
        pattern.check_shape(*dense.shape)
        if mask is not None and score is not None:
            raise ValueError("both mask= and score= were given; a mask needs no score: drop one")
        if isinstance(pattern, Nonzeros) and not (mask is None and score is None):
            raise PatternError(
                f"mask= or score= was given with pattern {pattern}, which keeps what is not zero: "
                "drop it, or choose a pattern such as 90%"
            )
        if mask is not None:
            check_like(mask, "mask", dense.shape)
            check_mask(mask, pattern)
        elif score is not None:
            check_like(score, "score", dense.shape)
            mask = mask_from_score(score, pattern)
        else:
            mask = magnitude_mask(dense, pattern)
            if isinstance(pattern, Nonzeros):
                kept = int(mask.sum())
                pattern = Unstructured.keeping(kept, mask.numel(), pattern.vector)
        structure = backend.encode(mask, pattern.panel, *pattern.group)
        return cls(backend.gather(dense, structure), structure, pattern, transpose, backward)

    @property
    def nnz(self) -> int:
        """The number of kept entries."""
        return self.values.numel()

    @property
    def density(self) -> float:
        """Kept entries over all entries, in [0, 1]."""
        return self.nnz / max(self.shape.numel(), 1)

    @property
    def structure_nbytes(self) -> int:
        """Bytes of all integer buffers, including the transpose."""
        return sum(buffer.nbytes for buffer in self.buffers())

    @property
    def nbytes(self) -> int:
        """Bytes of the values and of the structure."""
        return self.values.nbytes + self.structure_nbytes

    @property
    def stored_transpose(self) -> Transpose:
        """Whether the structure of the transpose is stored: "packed" or "none"."""
        return self._rule.transpose

    @property
    def backward(self) -> Backward:
        """How the input gradient is computed: "exact", "double_pruned" or "transposable"."""
        return self._rule.backward

    def mask(self) -> Tensor:
        """Return the mask as a bool tensor [rows, cols], True = kept."""
        return backend.mask(self.structure)

    def to_dense(self) -> Tensor:
        """Return the dense matrix [rows, cols], differentiable in `values`."""
        values = gathered(self.values)
        if not (torch.is_grad_enabled() and values.requires_grad):
            dense: Tensor = backend.scatter(values.detach(), self.structure)
            return dense
        at = backend.coordinates(self.structure)
        return values.new_zeros(self.shape.numel()).index_copy(0, at, values).view(self.shape)

    @torch.no_grad()
    def set_mask(
        self,
        mask: Positions,
        optimizer: torch.optim.Optimizer | None = None,
        pattern: str | Pattern | None = None,
    ) -> None:
        """Change to another mask, also to one of another sparsity.

        An entry that both masks keep also keeps its value, gradient and optimizer state; a new
        entry starts at 0. The Parameter stays the same object; so do the buffers if the number of
        entries stays. A running average of the model has to follow: see
        `gossamer.optim.AveragedModel`. After a change of the number, wrap the model in
        DistributedDataParallel again.
        No other thread may use the weight meanwhile: it would mix old and new entries.
        Values that `fully_shard` has sharded are gathered for the move, so all processes must call
        this with the same mask; their number cannot change.

        Args:
            mask: bool [rows, cols], True = kept; or a structure; or what has a structure, as
                another `SparseWeight`; or the coordinates (rows, cols), int32 or int64 [nnz] each,
                in any order. All but the first take the time and memory of the entries.
            optimizer: the optimizer of `values`; needed if it has state already.
            pattern: the pattern of the new mask, whose panels are as high as before; None is the
                present one.

        Raises:
            ShapeError, StructureError, PatternError, DTypeError: the mask does not fit the weight
                or the pattern, or the values are sharded in a way that the mask cannot follow;
                weight and optimizer do not change.

        Example:
            >>> import torch
            >>> weight = SparseWeight.from_dense(torch.tensor([[4.0, 3.0, 2.0, 1.0]]), "2:4")
            >>> weight.set_mask(torch.tensor([[True, False, False, True]]))
            >>> weight.values.tolist()
            [4.0, 0.0]
            >>> weight.set_mask((torch.tensor([0]), torch.tensor([3])), pattern="1:4")
            >>> weight.to_dense().tolist()
            [[0.0, 0.0, 0.0, 0.0]]
        """
        pattern = self.pattern if pattern is None else parse_pattern(pattern)
        pattern.check_shape(self.shape[0], self.shape[1], "set_mask")
        new = structure_of(mask, pattern, self.shape)
        rule = replace(self._rule, layout=new.layout, pattern=pattern)
        rule.check_structure(new)
        check_home(self, "set_mask")
        moving = Moving(self.values, self.structure, new, optimizer)
        # A double-pruned transpose is chosen by the values, and may be refused.
        transposed = rule.build(moving.values(), new) if rule.is_chosen else None

        moving.apply()
        self.pattern, self.layout, self._rule = pattern, new.layout, rule
        self.layout_ints = tuple(new.layout.as_ints())
        self._keep_positions(new)
        if not rule.is_chosen:
            # The values play no part here: they may be sharded.
            transposed = rule.build(self.values, new, self._room(new.nnz))
        self._keep_transpose(transposed)

    def extra_repr(self) -> str:
        """Return the line that `print(model)` shows."""
        size = f"{self.shape[0]}x{self.shape[1]}"
        text = f"{size}, pattern={self.pattern}, nnz={self.nnz}, dtype={self.values.dtype}"
        if self.backward != "exact":
            text += f", backward={self.backward}"
        return text if self._t_layout or self.layout.vector > 1 else text + ", transpose=none"

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Validate the state, then load it like any module."""
        pattern = self.check_state(state_dict, prefix)
        kept = self._make_room(state_dict, prefix)
        self._fit_descriptor(state_dict.get(prefix + "descriptor"))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.pattern = pattern
        self._rule = replace(self._rule, pattern=pattern)
        if prefix + "indices" in state_dict or prefix + "indptr" in state_dict:
            self._seal()
            self._describe()
        if kept:
            self._seal_transpose(checksum=True)
        elif self._is_intact():
            self._pack_transpose()

    def check_state(self, state_dict: Mapping[str, Any], prefix: str = "") -> Pattern:
        """Return the pattern of a state dict's tensors; StructureError unless they fit."""
        return check_state(self, self._rule, state_dict, prefix)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _ALIVE.add(self)


def alive_weights() -> list[SparseWeight]:
    """Return all sparse weights of this process."""
    return list(_ALIVE)
