"""MatrixFace: the members of a dense weight that code for `nn.Linear` expects."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gossamer.patterns import Pattern


class MatrixFace:
    """Members of a dense weight [rows, cols] that follow from the values and the shape.

    Assignments `requires_grad = …` and `grad = None` apply to the values. Reading `data` or `grad`
    raises an error, because in-place changes of a dense copy would be lost; so does any other
    assignment, because the weight cannot hold the entries of a dense tensor.
    """

    values: nn.Parameter
    shape: torch.Size
    pattern: Pattern

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """The device of the values."""
        return self.values.device

    @property
    def ndim(self) -> int:
        """2: the weight is a matrix."""
        return 2

    def dim(self) -> int:
        """2: the weight is a matrix."""
        return 2

    def size(self, dim: int | None = None) -> Any:
        """Return the shape [rows, cols], or one of its sizes."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """Return the number of entries of the matrix; `nnz` is the number of kept entries."""
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        """Return True: the values are floating-point numbers."""
        return True

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
