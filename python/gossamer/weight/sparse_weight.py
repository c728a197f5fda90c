"""SparseWeight: the kept entries of a matrix as one trainable vector, and where they stand.

The values are an ordinary 1-D `nn.Parameter` in the order in which the kernels stream them, the
structure is a few integer buffers, so optimizers, clipping, EMA, `state_dict` and safetensors
work untouched. It is the weight, not a layer: `gossamer.nn.SparseLinear` is the layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gossamer import backend
from gossamer.backend import Structure
from gossamer.errors import DeviceError, DTypeError, PatternError, ShapeError, StructureError
from gossamer.masks import check_mask, magnitude_mask, mask_from_score
from gossamer.patterns import Pattern, parse_pattern
from gossamer.weight.descriptor import describe, group_of, pattern_of
from gossamer.weight.transpose import Backward, KeepsTranspose, Transpose

__all__ = ["Backward", "SparseWeight", "Transpose", "check_dense", "check_dtype"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_STATE = ("values", "indices", "indptr", "descriptor")


class SparseWeight(KeepsTranspose):
    """A sparse matrix [rows, cols] whose kept entries are trained.

    `values` is the trainable `nn.Parameter` [nnz]; `structure` says which entry each value is.

    Args:
        values: [nnz], float32, float64 or bfloat16, in the order of `structure`.
        structure: where the values stand, as `gossamer.backend.encode` builds it; validated.
        pattern: the pattern that the structure obeys, or its text.
        transpose: "packed" keeps the structure of the transpose too, which makes the gradient of
            the input fast, for about 5 bytes a kept entry; "none" saves them. Without effect
            where rows share their columns (`pattern.panel` above 1), unless double-pruned.
        backward: "exact"; "double_pruned": the gradient of the input leaves out the entries that
            are not among the n largest of m rows, see `refresh_transpose`; "transposable": exact,
            and the mask must be N:M down the columns too. The last two are for N:M.

    Raises:
        StructureError: the structure is not valid, or is not of the pattern.
        DTypeError: the dtype is not one of the three.

    Example:
        >>> import torch
        >>> weight = SparseWeight.from_dense(torch.tensor([[1.0, -3.0, 2.0, 0.5]]), "2:4")
        >>> weight.values.tolist()
        [-3.0, 2.0]
        >>> weight.to_dense().tolist()
        [[0.0, -3.0, 2.0, 0.0]]
    """

    values: nn.Parameter
    indices: Tensor
    indptr: Tensor | None
    descriptor: Tensor

    def __init__(
        self,
        values: Tensor,
        structure: Structure,
        pattern: str | Pattern,
        transpose: Transpose = "packed",
        backward: Backward = "exact",
    ) -> None:
        super().__init__()
        check_dtype(values.dtype, "values")
        pattern = parse_pattern(pattern)
        layout = structure.layout
        backend.validate(structure, values.numel())
        if layout.vector != pattern.panel or (layout.n, layout.m) != group_of(pattern):
            raise StructureError(
                f"the structure has vector={layout.vector}, n:m={layout.n}:{layout.m}, which is "
                f"not pattern {pattern}; encode the mask with the pattern's own vector, n and m"
            )
        if values.numel() != (needed := pattern.count(layout.rows, layout.cols)):
            raise StructureError(
                f"the structure keeps {values.numel()} entries, pattern {pattern} needs {needed}"
            )
        self.pattern = pattern
        self.layout = layout
        self.layout_ints = tuple(layout.as_ints())
        self.shape = torch.Size((layout.rows, layout.cols))
        self.values = nn.Parameter(values.detach())
        self.register_buffer("indices", structure.indices)
        self.register_buffer("indptr", structure.indptr)
        self.register_buffer("descriptor", describe(pattern, layout))
        self._start_transpose(transpose, backward)

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
        """Keep the entries of a dense matrix that a mask, a score or their magnitude picks.

        Args:
            weight: [rows, cols], float32, float64 or bfloat16, on the CPU.
            pattern: a pattern or its text, such as "2:4:v4" or "90%".
            mask: bool [rows, cols], True = kept; must obey the pattern.
            score: real [rows, cols]; the highest scores are kept. Not together with `mask`.
            transpose: see `SparseWeight`.
            backward: see `SparseWeight`.

        Returns:
            A weight that owns a copy of the kept entries.

        Raises:
            PatternError: the shape does not fit the pattern.
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
        if mask is not None:
            _check_like(mask, "mask", dense.shape)
            check_mask(mask, pattern)
        elif score is not None:
            _check_like(score, "score", dense.shape)
            mask = mask_from_score(score, pattern)
        else:
            mask = magnitude_mask(dense, pattern)
        structure = backend.encode(mask, pattern.panel, *group_of(pattern))
        return cls(backend.gather(dense, structure), structure, pattern, transpose, backward)

    @property
    def structure(self) -> Structure:
        """Where each value stands, over the live buffers."""
        # From the dict: a buffer's attribute look-up takes 0.5 us, and every call comes by here.
        buffers = self._buffers
        return Structure(self.layout, buffers["indices"], buffers["indptr"])

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
        """Bytes of all the integer buffers, those of the transpose too."""
        return sum(buffer.nbytes for buffer in self.buffers())

    @property
    def nbytes(self) -> int:
        """Bytes of the values and of the structure."""
        return self.values.nbytes + self.structure_nbytes

    def mask(self) -> Tensor:
        """The kept entries as a bool tensor [rows, cols], True = kept."""
        mask = torch.zeros(self.shape.numel(), dtype=torch.bool)
        mask[backend.coordinates(self.structure)] = True
        return mask.view(self.shape)

    def to_dense(self) -> Tensor:
        """The matrix [rows, cols] with zeros where nothing is kept; differentiable in `values`."""
        values = self.values
        if not (torch.is_grad_enabled() and values.requires_grad):
            dense: Tensor = backend.scatter(values.detach(), self.structure)
            return dense
        at = backend.coordinates(self.structure)
        return values.new_zeros(self.shape.numel()).index_copy(0, at, values).view(self.shape)

    @torch.no_grad()
    def set_mask(self, mask: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Move the weight to another mask of the same pattern and count.

        Values, their gradient and the optimizer's state move by coordinate: an entry kept by
        both masks keeps all of them, a new entry starts at 0. The Parameter object and every
        buffer stay the same objects. A running average of the model must be moved as well
        (`averaged.set_mask`), since it averages by position.

        Args:
            mask: bool [rows, cols], True = kept.
            optimizer: the optimizer that holds `values`, when it has state already.

        Raises:
            ShapeError, StructureError: the mask is of another shape or pattern; nothing changed.

        Example:
            >>> import torch
            >>> weight = SparseWeight.from_dense(torch.tensor([[4.0, 3.0, 2.0, 1.0]]), "2:4")
            >>> weight.set_mask(torch.tensor([[True, False, False, True]]))
            >>> weight.values.tolist()
            [4.0, 0.0]
        """
        _check_like(mask, "mask", self.shape)
        check_mask(mask, self.pattern)
        old = self.structure
        new = backend.encode(mask, self.layout.vector, self.layout.n, self.layout.m)
        self._check_transposable(new)
        tensors: list[Tensor] = [self.values]
        if self.values.grad is not None:
            tensors.append(self.values.grad)
        if optimizer is not None:
            tensors.extend(_elementwise_state(optimizer, self.values))
        moved = [backend.gather(backend.scatter(tensor, old), new) for tensor in tensors]
        transposed = self._transpose_of(moved[0], new)

        # copy_ raises the version counters: a backward pass that waits on the old mask fails.
        for tensor, source in zip(tensors, moved, strict=True):
            tensor.copy_(source)
        self.indices.copy_(new.indices)
        if self.indptr is not None and new.indptr is not None:
            self.indptr.copy_(new.indptr)
        self._keep(transposed)

    def extra_repr(self) -> str:
        """The line that `print(model)` shows."""
        size = f"{self.shape[0]}x{self.shape[1]}"
        text = f"{size}, pattern={self.pattern}, nnz={self.nnz}, dtype={self.values.dtype}"
        if self.backward != "exact":
            text += f", backward={self.backward}"
        return text if self._t_layout or self.layout.vector > 1 else text + ", transpose=none"

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Validate what was given, then load it as any module does."""
        pattern = self.check_state(state_dict, prefix)
        kept = self._make_room(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.pattern = pattern
        if not kept:
            self._pack_transpose()

    def check_state(self, state_dict: Mapping[str, Any], prefix: str = "") -> Pattern:
        """The pattern that a state dict's tensors describe, once they fit this weight."""
        given = {n: state_dict[prefix + n] for n in _STATE if prefix + n in state_dict}
        where = f"{prefix}* of the state dict"
        pattern = self.pattern
        for name, tensor in given.items():
            _check_tensor(tensor, f"{where}: {name}")
        if "descriptor" in given:
            pattern = self._check_descriptor(given["descriptor"], where)
        for name, tensor in given.items():
            mine = getattr(self, name)
            if mine is None or tensor.shape != mine.shape:
                own = "none" if mine is None else tuple(mine.shape)
                raise StructureError(
                    f"{where}: {name} is {tuple(tensor.shape)}, the module's is {own} (pattern "
                    f"{self.pattern}); build the module with the pattern that was saved"
                )
            if name == "values":
                check_dtype(tensor.dtype, f"{where}: values")
            elif tensor.dtype != mine.dtype:
                raise StructureError(f"{where}: {name} is {tensor.dtype}, not {mine.dtype}")
        indices, indptr = given.get("indices", self.indices), given.get("indptr", self.indptr)
        structure = Structure(self.layout, indices, indptr)
        if "indices" in given or "indptr" in given:
            if indices.is_meta:
                raise StructureError(f"{where} leaves the structure on the meta device")
            try:
                backend.validate(structure, self.nnz)
            except StructureError as error:
                raise StructureError(f"{where}: {error}") from None
            self._check_transposable(structure, f"{where}: ")
        self._check_transpose_state(state_dict, prefix, structure, where)
        return pattern

    def _check_descriptor(self, descriptor: Tensor, where: str) -> Pattern:
        """The pattern of a loaded descriptor, which must lay out as many entries as ours."""
        # Two sparsities may keep as many: an allocation computed anew differs in its last bit.
        rows, cols = self.shape
        readable = descriptor.dtype == torch.int64 and not descriptor.is_meta
        theirs = descriptor.flatten().tolist() if readable else []
        expected = describe(self.pattern, self.layout).tolist()
        try:
            pattern = pattern_of(theirs)
            if theirs[:-1] == expected[:-1] and pattern.count(rows, cols) == self.nnz:
                return pattern
            saved = f"{pattern} of {theirs[1]}x{theirs[2]} (blocks of {theirs[4]})"
        except PatternError:
            saved = f"an unreadable descriptor {theirs}"
        raise StructureError(
            f"{where} holds {saved}; the module is {self.pattern} of {rows}x{cols} "
            f"(blocks of {self.layout.block_cols}); build the module with what was saved"
        )


def check_dtype(dtype: torch.dtype, who: str) -> None:
    """Raise DTypeError unless the kernels have this dtype."""
    if dtype not in DTYPES:
        raise DTypeError(
            f"{who}: {dtype} was given; use float32, float64 or bfloat16: convert with .to()"
        )


def check_dense(weight: Tensor, who: str = "weight") -> Tensor:
    """The detached matrix, once it is a CPU matrix of a dtype that the kernels have."""
    _check_tensor(weight, who)
    if weight.dim() != 2:
        raise ShapeError(f"{who}: shape {tuple(weight.shape)} was given; it must be [rows, cols]")
    check_dtype(weight.dtype, who)
    if weight.device.type != "cpu":
        raise DeviceError(f"{who} is on {weight.device}; the kernels run on the CPU: use .cpu()")
    return weight.detach()


def _check_tensor(tensor: object, who: str) -> None:
    if not isinstance(tensor, Tensor):
        raise DTypeError(f"{who} is {type(tensor).__name__}; it must be a torch tensor")


def _check_like(tensor: Tensor, who: str, shape: torch.Size) -> None:
    _check_tensor(tensor, who)
    if tensor.shape != shape:
        raise ShapeError(
            f"{who} has shape {tuple(tensor.shape)}, the weight {tuple(shape)}; give one entry for "
            "each entry of the weight"
        )


def _elementwise_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> list[Tensor]:
    """The optimizer's tensors that hold one number for each value."""
    found = []
    for name, tensor in optimizer.state.get(parameter, {}).items():
        if isinstance(tensor, Tensor) and tensor.shape == parameter.shape and tensor.dim():
            if tensor.dtype not in DTYPES:
                raise DTypeError(
                    f"the optimizer's {name} is {tensor.dtype}; only float32, float64 and "
                    "bfloat16 state can move with a mask: use an optimizer that keeps those"
                )
            found.append(tensor)
    return found
