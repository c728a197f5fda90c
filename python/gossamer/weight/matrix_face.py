"""MatrixFace: the members of a dense weight that code for `nn.Linear` expects."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gossamer.arguments import fits, is_number, shown
from gossamer.errors import ArgumentError, DTypeError
from gossamer.patterns import Pattern
from gossamer.weight.operand import Operand


class MatrixFace(Operand):
    """Members of a dense weight [rows, cols] that follow from the values and the shape.

    Assignments `requires_grad = …` and `grad = None` apply to the values. Reading `data` or `grad`
    raises an error, because in-place changes of a dense copy would be lost; so does any other
    assignment, because the weight cannot hold the entries of a dense tensor. The initialisers of
    `torch.nn.init` act on the values, with the fans of the dense matrix; those that need a tensor
    are refused.
    """

    values: nn.Parameter
    shape: torch.Size
    pattern: Pattern
    has_own_order = False
    """Whether a layer has put the rows into another order than that of its outputs."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """The device of the values."""
        return self.values.device

    @property
    def is_meta(self) -> bool:
        """Whether the values have no memory."""
        return self.values.is_meta

    @property
    def ndim(self) -> int:
        """2: the weight is a matrix."""
        return 2

    def dim(self) -> int:
        """2: the weight is a matrix."""
        return 2

    def size(self, dim: int | None = None) -> Any:
        """Return the shape [rows, cols], or one of its sizes.

        Raises:
            DTypeError, ArgumentError: there is no such dimension.
        """
        if dim is None:
            return self.shape
        if not fits(dim, int):
            raise DTypeError(f"size got dim={shown(dim)}; an integer is needed")
        if not -2 <= dim < 2:
            raise ArgumentError(f"size got dim={dim}; a matrix has the dimensions 0 and 1")
        return self.shape[dim]

    def numel(self) -> int:
        """Return the number of entries of the matrix; `nnz` is the number of kept entries."""
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        """Return True: the values are floating-point numbers."""
        return True

    def ndimension(self) -> int:
        """Not available: `nn.init.orthogonal_`, `eye_`, `dirac_` and `sparse_` ask it first."""
        raise self._no_initialiser("ndimension")

    def new_tensor(self, *args: Any, **kwargs: Any) -> Tensor:
        """Not available: `nn.init.trunc_normal_` asks it first."""
        raise self._no_initialiser("new_tensor")

    def erfinv_(self) -> Tensor:
        """Not available: `nn.init.trunc_normal_` of older versions of torch asks it second."""
        raise self._no_initialiser("erfinv_")

    def _no_initialiser(self, what: str) -> AttributeError:
        return AttributeError(
            f"SparseWeight.{what} is not available: a weight of pattern {self.pattern} is no "
            "tensor, which this initialiser needs; pass weight.values to trunc_normal_, and fill a "
            "dense matrix for orthogonal_, eye_, dirac_ and sparse_: SparseWeight.from_dense("
            "matrix, weight.pattern, weight.mask()); .dim() is 2"
        )

    # What the initialisers of torch.nn.init call, on the values.

    def uniform_(self, *args: Any, **kwargs: Any) -> MatrixFace:
        """Draw the values from a uniform law, as `torch.Tensor.uniform_`."""
        return self._on_values("uniform_", *args, **kwargs)

    def normal_(self, *args: Any, **kwargs: Any) -> MatrixFace:
        """Draw the values from a normal law, as `torch.Tensor.normal_`."""
        return self._on_values("normal_", *args, **kwargs)

    def fill_(self, value: float) -> MatrixFace:
        """Set all values to a number."""
        return self._on_values("fill_", value)

    def zero_(self) -> MatrixFace:
        """Set all values to 0."""
        return self._on_values("zero_")

    def mul_(self, other: float) -> MatrixFace:
        """Multiply the values by a number."""
        return self._on_values("mul_", other)

    def add_(self, other: float) -> MatrixFace:
        """Add a number to the values."""
        return self._on_values("add_", other)

    def _on_values(self, name: str, *args: Any, **kwargs: Any) -> MatrixFace:
        if any(isinstance(arg, Tensor) and arg.dim() for arg in args):
            raise self._refuse(name)
        for arg in args:
            if not (is_number(arg) or isinstance(arg, Tensor)):
                raise DTypeError(f"{name} got {shown(arg)}; a number is needed")
        getattr(self.values, name)(*args, **kwargs)
        return self

    @property
    def requires_grad(self) -> bool:
        """Whether the values are trained; it can be assigned."""
        return self.values.requires_grad

    @requires_grad.setter
    def requires_grad(self, trained: bool) -> None:
        self.values.requires_grad = trained

    def _refuse(self, what: str) -> AttributeError:
        return AttributeError(
            f"SparseWeight.{what} is not available: a weight of pattern {self.pattern} holds its "
            f"kept entries only; use weight.values.{what} ([nnz], in the order of "
            "weight.structure), weight.to_dense(), or SparseWeight.from_dense(tensor, "
            "weight.pattern, weight.mask()) for other values"
        )

    @property
    def data(self) -> Tensor:
        """Not available: use `values` or `to_dense`."""
        raise self._refuse("data")

    @data.setter
    def data(self, tensor: Tensor) -> None:
        raise self._refuse("data")

    @property
    def grad(self) -> Tensor:
        """Not available: use `values.grad`. Assigning None drops the gradient."""
        raise self._refuse("grad")

    @grad.setter
    def grad(self, tensor: Tensor | None) -> None:
        if tensor is not None:
            raise self._refuse("grad")
        self.values.grad = None
