"""SparseParameter: layers with a mask in the place of a parameter that a module multiplies by.

A module keeps its class and its forward; `F.linear(x, self.weight)` in it then calls the layer that
stands in the parameter's place. So every kind of layer with a mask serves there, and recipes,
summaries and checkpoints find it as they find any layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from gossamer.errors import DTypeError, ShapeError
from gossamer.nn.layers.base import MaskedLayer
from gossamer.nn.layers.linear import SparseLinear
from gossamer.ops.autocast import add_bias
from gossamer.ops.verbs import spmm, spmm_t
from gossamer.weight.operand import Operand, Turned, refused

Form = Literal["matrix", "rows", "stack", "fold"]
"""How the layers make up the parameter.

"matrix": one layer [out, in]. "rows": several, one below the other, as `in_proj_weight`.
"stack": several [n, out, in], as experts. "fold": one layer [n * out, in] as [n, out, in].
"""

_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "forward",
)  # fmt: skip


class Matrix(Operand):
    """A layer without bias as the matrix that it multiplies by; a view.

    Args:
        of: the layer.
    """

    def __init__(self, of: MaskedLayer) -> None:
        self.of = of
        self.shape = torch.Size((of.out_features, of.in_features))
        self.ndim = 2

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the entries."""
        return self.of.entries.dtype

    @property
    def device(self) -> torch.device:
        """The device of the entries."""
        return self.of.entries.device

    def right(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x W^T + b: a call of the layer, hooks included."""
        return _product(self.of, x, bias)

    def left(self, x: Tensor) -> Tensor:
        """Return x W.

        Raises:
            DTypeError: the layer trains a dense weight under a mask, whose gradient is its own.
        """
        if self.of.sparse_weight is None:
            raise DTypeError(
                f"{type(self.of).__name__} stands in the place of a matrix that is multiplied from "
                "the left (x @ W), and trains a dense weight under a mask: use a recipe whose "
                "layers store kept entries only (Static, SET, RigL), or exclude it (exclude=...)"
            )
        return spmm_t(x, self.of.sparse_weight)


class Chosen(Operand):
    """Matrices of a stack, one per row of a batch: what `experts[expert_ids]` selects.

    Args:
        stack: the stack, or its transpose.
        index: int64 [batch].
    """

    def __init__(self, stack: Any, index: Tensor) -> None:
        self.of, self.index = stack, index
        self.shape = torch.Size((len(index), *stack.shape[1:]))

    def t(self) -> Any:
        """Return the transposes."""
        return Chosen(self.of.t(), self.index)

    def chosen(self, x: Tensor) -> Tensor:
        """Return x[i] W[index[i]] [batch, rows, cols]; each matrix multiplies its rows at once."""
        order = torch.argsort(self.index, stable=True)
        found, counts = torch.unique_consecutive(self.index[order], return_counts=True)
        parts = [
            torch.matmul(rows, self.of[int(one)])
            for one, rows in zip(found, torch.split(x[order], counts.tolist()), strict=True)
        ]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return torch.cat(parts)[back]


class SparseParameter(Operand, nn.Module):
    """Layers with a mask, without bias, in the place of a parameter.

    Args:
        layers: the layers.
        form: how they make up the parameter, see `Form`.
        shape: sizes of the parameter that they stand for.
        turned: whether the parameter is the transpose of what the layers hold: `x @ w` with
            w [in, out] calls a layer whose weight is [out, in], so that N:M runs along the inputs.
        order: names of the parameters of the module that holds it; `densify` restores this order.

    Raises:
        ShapeError: the layers do not make up the shape.

    Example:
        >>> from gossamer.nn import SparseLinear
        >>> layer = SparseLinear(8, 4, bias=False, pattern="2:4")
        >>> w = SparseParameter([layer], "matrix", (4, 8))
        >>> torch.nn.functional.linear(torch.randn(2, 8), w).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        layers: Sequence[MaskedLayer],
        form: Form,
        shape: Sequence[int],
        turned: bool = False,
        order: Sequence[str] = (),
    ) -> None:
        nn.Module.__init__(self)
        for index, layer in enumerate(layers):
            self.add_module(str(index), layer)
        self.form: Form = form
        self.shape = torch.Size(shape)
        self.turned = turned
        self.order = tuple(order)
        if form not in get_args(Form) or not layers or self._made_up() != self.shape:
            sizes = [(layer.out_features, layer.in_features) for layer in layers]
            raise ShapeError(
                f"SparseParameter got layers of {sizes} for a parameter of {list(shape)} in the "
                f"form {form!r}; give layers that make it up"
            )
        if any(layer.bias is not None for layer in layers):
            raise ShapeError("SparseParameter got a layer with a bias; give layers without one")

    @staticmethod
    def find_in(model: nn.Module) -> list[SparseParameter]:
        """Return those in a model."""
        return [module for module in model.modules() if isinstance(module, SparseParameter)]

    def _made_up(self) -> torch.Size:
        rows = [layer.out_features for layer in self._layers()]
        cols = {layer.in_features for layer in self._layers()}
        width = cols.pop()
        shape: tuple[int, ...] = (sum(rows), width)
        if self.form == "stack":
            shape = (len(rows), rows[0], width)
        elif self.form == "fold":
            shape = (self.shape[0], rows[0] // max(self.shape[0], 1), width)
        equal = self.form != "stack" or len(set(rows)) == 1
        one = self.form not in ("matrix", "fold") or len(rows) == 1
        if cols or not equal or not one:
            return torch.Size(())
        return torch.Size((*shape[:-2], *shape[:-3:-1]) if self.turned else shape)

    def _layers(self) -> Iterator[Any]:
        return iter(self._modules.values())

    @property
    def _first(self) -> Any:
        return next(self._layers())

    # ---- the face of a tensor ------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the entries."""
        return self._first.entries.dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        """The device of the entries."""
        return self._first.entries.device  # type: ignore[no-any-return]

    @property
    def is_cuda(self) -> bool:
        """Whether the entries are on a CUDA device."""
        return self.device.type == "cuda"

    @property
    def requires_grad(self) -> bool:
        """Whether the entries are trained."""
        return self._first.entries.requires_grad  # type: ignore[no-any-return]

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def dim(self) -> int:
        """Return the number of dimensions."""
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        """Return the shape, or one of its sizes."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """Return the entries of the parameter, kept or not."""
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        """Return True."""
        return True

    def data_ptr(self) -> int:
        """Return 0: there is no dense memory."""
        return 0

    def contiguous(self) -> SparseParameter:
        """Return it: the order of the entries is the kernels' own."""
        return self

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Return it for its own dtype and device; a module converts its parameters by `.to` itself.

        Raises:
            DTypeError: another dtype, of which a forward pass would make a copy per call.
        """
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        return self._same(dtype, device)

    def type(self, dst_type: Any) -> Any:
        """Return it for its own dtype, see `to`."""
        return self._same(dst_type)

    def float(self) -> Any:
        """Return it if it is float32, see `to`."""
        return self._same(torch.float32)

    def double(self) -> Any:
        """Return it if it is float64, see `to`."""
        return self._same(torch.float64)

    def bfloat16(self) -> Any:
        """Return it if it is bfloat16, see `to`."""
        return self._same(torch.bfloat16)

    def half(self) -> Any:
        """Not available, see `to`."""
        return self._same(torch.float16)

    def _same(self, dtype: Any, device: Any = None) -> SparseParameter:
        if dtype in (None, self.dtype) and device in (None, self.device):
            return self
        raise refused(f"a conversion to {dtype or device} in a forward pass", (self,))

    # ---- products ------------------------------------------------------------------------------

    def right(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x W^T + b."""
        if self.turned:
            y = self._left(x)
            return add_bias(y, bias)
        return self._right(x, bias)

    def left(self, x: Tensor) -> Tensor:
        """Return x W."""
        return self._right(x) if self.turned else self._left(x)

    def _right(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        self._check_matrix()
        return _products([*self._layers()], x, bias)

    def _left(self, x: Tensor) -> Tensor:
        self._check_matrix()
        layers = [*self._layers()]
        parts = torch.split(x, [layer.out_features for layer in layers], -1)
        products = [Matrix(of).left(part) for of, part in zip(layers, parts, strict=True)]
        return sum(products[1:], products[0])

    def _check_matrix(self) -> None:
        if self.ndim != 2:
            raise refused("a product of a whole stack", (self,))

    @property
    def fold(self) -> Matrix | None:
        """The one matrix [n * out, in] of the form "fold", None for other forms."""
        return Matrix(self._first) if self.form == "fold" else None

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> Any:
        """Return one matrix of a stack by a number, or several by a tensor of numbers."""
        if self.form != "stack":
            raise refused("an index", (self,))
        if isinstance(key, Tensor) and key.dim() == 1 and not key.is_floating_point():
            return Chosen(self, key)
        try:
            at = int(key)
        except (TypeError, ValueError, RuntimeError):
            raise refused(f"the index {key!r:.40}", (self,)) from None
        if not -len(self) <= at < len(self):
            raise IndexError(f"index {at} of a stack of {len(self)}")
        matrix = Matrix(self._modules[str(at % len(self))])  # type: ignore[arg-type]
        return Turned(matrix) if self.turned else matrix

    def split(self, sizes: int | Sequence[int], dim: int = 0) -> tuple[Any, ...]:
        """Return runs of rows; the borders must be those of the layers."""
        if self.form != "rows" or self.turned or dim % 2:
            raise refused("split", (self,))
        if isinstance(sizes, int):
            sizes = [min(sizes, self.shape[0] - at) for at in range(0, self.shape[0], sizes)]
        layers, found = [*self._layers()], []
        for size in sizes:
            run: list[MaskedLayer] = []
            while sum(layer.out_features for layer in run) < size and layers:
                run.append(layers.pop(0))
            if sum(layer.out_features for layer in run) != size:
                raise refused(f"split into {list(sizes)} rows", (self,))
            found.append(Matrix(run[0]) if len(run) == 1 else Rows(run))
        return tuple(found)

    def chunk(self, chunks: int, dim: int = 0) -> tuple[Any, ...]:
        """Return so many runs of rows."""
        return self.split(-(-self.shape[0] // chunks), dim)

    # ---- and back ------------------------------------------------------------------------------

    def to_dense(self) -> nn.Parameter:
        """Return the dense parameter; a copy."""
        parts = [layer.used_weight().detach() for layer in self._layers()]
        dense = torch.stack(parts) if self.form == "stack" else torch.cat(parts)
        dense = dense.mT if self.turned else dense.reshape(self.shape)
        parameter = nn.Parameter(dense.contiguous().clone(), self.requires_grad)
        vars(parameter).update(vars(self._first.entries))
        return parameter

    def extra_repr(self) -> str:
        """Return the line that `print(model)` shows."""
        sizes = "x".join(map(str, self.shape))
        return f"{sizes}, {self.form}" + (", turned" if self.turned else "")

    def forward(self, *args: Any) -> Any:
        """Not available: it is multiplied by."""
        raise refused("a call", (self,))


class Rows(Operand):
    """Some layers one below the other, as a matrix; a view."""

    def __init__(self, layers: Sequence[MaskedLayer]) -> None:
        self.of = layers[0]
        self.layers = list(layers)
        rows = sum(layer.out_features for layer in layers)
        self.shape = torch.Size((rows, layers[0].in_features))

    def right(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x W^T + b."""
        return _products(self.layers, x, bias)


def _products(layers: Sequence[MaskedLayer], x: Tensor, bias: Tensor | None) -> Tensor:
    """Return the outputs of several layers side by side, plus a bias."""
    if len(layers) == 1:
        return _product(layers[0], x, bias)
    sizes = [layer.out_features for layer in layers]
    biases = [None] * len(layers) if bias is None else torch.split(bias, sizes)
    pairs = zip(layers, biases, strict=True)
    return torch.cat([_product(layer, x, part) for layer, part in pairs], -1)


def _product(layer: MaskedLayer, x: Tensor, bias: Tensor | None) -> Tensor:
    """Return the output of a layer without bias plus a bias: in one pass if nothing looks on."""
    if bias is not None and type(layer) is SparseLinear and not any(map(vars(layer).get, _HOOKS)):
        return spmm(x, layer.weight, bias)
    y: Tensor = layer(x)
    return add_bias(y, bias)


def stand_in(weight: Tensor, trained: bool) -> nn.Linear:
    """Return a linear layer without bias over a matrix, from which a layer with a mask is made."""
    rows, cols = weight.shape
    linear = nn.Linear(cols, rows, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach(), trained)
    return linear


__all__ = ["Chosen", "Form", "Matrix", "Rows", "SparseParameter", "stand_in"]
