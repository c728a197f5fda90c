"""Low-rank adapters: Y = X W^T + b + (X L) R / r, with L [in, r] and R [r, out].

L is drawn from N(0, 1) and R is 0, so inserting an adapter does not change the layer's output. The
rank is small: the two thin products cost r (in + out) multiplications per row.
"""

from __future__ import annotations

import copy
from typing import Literal, cast

import torch
from torch import Tensor, nn

from gossamer.arguments import Size, check, shown
from gossamer.errors import DTypeError, PatternError, ShapeError
from gossamer.nn.layers.base import MaskedLayer
from gossamer.nn.layers.linear import SparseLinear
from gossamer.ops.recording import SYMBOLIC
from gossamer.weight import SparseWeight, Transpose, check_dtype


class LowRankAdapter(nn.Module):
    """A low-rank adapter: adds (X L) R / r to the output of a linear layer.

    Args:
        in_features: size of an input row.
        out_features: size of an output row.
        rank: r, at least 1 and at most the smaller size.
        generator: generator that draws L; None is torch's own.
        dtype: dtype of L and R; None is torch's default.

    Attributes:
        left: L [in_features, rank].
        right: R [rank, out_features].
        divisor: the rank; 1 once 1 / r is folded into R.

    Raises:
        PatternError: the rank is out of range.

    Reference:
        Mozaffari et al. 2025, "SLoPe: Double-Pruned Sparse Plus Lazy Low-Rank Adapter
        Pretraining of LLMs", section 2.3.

    Example:
        >>> import torch
        >>> adapter = LowRankAdapter(8, 4, rank=2)
        >>> adapter(torch.ones(1, 8), torch.ones(1, 4)).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """

    divisor: Tensor

    def __init__(
        self,
        in_features: Size,
        out_features: Size,
        rank: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check(LowRankAdapter.__init__, locals())
        if not 1 <= rank <= min(in_features, out_features):
            raise PatternError(
                f"LowRankAdapter got rank={rank} for a layer of {out_features}x{in_features}; it "
                f"must be in [1, {min(in_features, out_features)}]: choose a smaller one"
            )
        # Drawn in float64, so that every dtype rounds the same numbers.
        left = torch.randn(
            in_features, rank, generator=generator, dtype=torch.float64, device="cpu"
        )
        dtype = torch.get_default_dtype() if dtype is None else dtype
        check_dtype(dtype, "LowRankAdapter")
        self.left = nn.Parameter(left.to(dtype))
        self.right = nn.Parameter(torch.zeros(rank, out_features, dtype=dtype, device="cpu"))
        # An integer, so that .to(dtype) does not change it; in the state dict, so that a loaded R
        # is known to be folded or not.
        self.register_buffer("divisor", torch.tensor(rank, device="cpu"))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Add the adapter's product to the layer's output.

        Args:
            x: [..., in_features], the layer's input.
            y: [..., out_features], the layer's output.

        Returns:
            [..., out_features].
        """
        sizes = len(self.left), self.right.shape[1]
        for given, name in ((x, "x"), (y, "y")):
            if not isinstance(given, Tensor):
                raise DTypeError(f"LowRankAdapter got {name}={shown(given)}; a tensor is needed")
        if x.shape[-1:] != sizes[:1] or y.shape[-1:] != sizes[1:] or x.shape[:-1] != y.shape[:-1]:
            raise ShapeError(
                f"LowRankAdapter got x of shape {list(x.shape)} and y of shape {list(y.shape)}; "
                f"[..., {sizes[0]}] and [..., {sizes[1]}] with equal leading sizes are needed"
            )
        thin = x.flatten(0, -2) if x.dim() > 1 else x[None]
        thin = (thin @ self.left) / self.divisor
        return torch.addmm(y.reshape(-1, y.shape[-1]), thin, self.right).view_as(y)

    @torch.no_grad()
    def fold(self) -> None:
        """Divide R by the rank permanently, for inference."""
        self.right.div_(self.divisor)
        self.divisor.fill_(1)

    def extra_repr(self) -> str:
        """Return the line that `print(model)` shows."""
        rank, out_features = self.right.shape
        return f"in_features={self.left.shape[0]}, out_features={out_features}, rank={rank}"


class AdaptedLinear(SparseLinear):
    """A `SparseLinear` that can get a low-rank adapter during training.

    It is built like a SparseLinear and computes the same until `insert` is called. Its state dict
    has the names of a SparseLinear, and `adapter.left`, `adapter.right`, `adapter.divisor`.

    Example:
        >>> import torch
        >>> layer = AdaptedLinear(8, 4, pattern="2:4")
        >>> x = torch.randn(2, 8)
        >>> before = layer(x)
        >>> layer.insert(rank=2)
        >>> torch.equal(layer(x), before)
        True
    """

    adapter: LowRankAdapter | None

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.register_module("adapter", None)

    @classmethod
    def of_parts(cls, weight: SparseWeight, bias: nn.Parameter | None = None) -> AdaptedLinear:
        """Make a layer without an adapter from an existing weight and bias."""
        layer = super().of_parts(weight, bias)
        layer.register_module("adapter", None)
        return cast(AdaptedLinear, layer)

    def insert(self, rank: int, generator: torch.Generator | None = None) -> None:
        """Insert an adapter; add its parameters to the optimizer afterwards.

        Args:
            rank: r, see `LowRankAdapter`.
            generator: generator that draws L; None is torch's own.

        Raises:
            PatternError: the rank is out of range, or the layer has an adapter already.
        """
        if self.adapter is not None:
            raise PatternError("insert was called twice; the layer has an adapter already")
        values = self.weight.values
        adapter = LowRankAdapter(self.in_features, self.out_features, rank, generator, values.dtype)
        self.adapter = adapter.to(values.device).train(self.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Linear has
        """Map input [..., in_features] to [..., out_features]."""
        y = super().forward(input)
        if type(y) is SYMBOLIC:  # the whole layer is one node
            return y
        return y if self.adapter is None else self.adapter(input, y)

    @property
    def weight_owner(self) -> nn.Module:
        """The weight, or the layer itself if it has an adapter."""
        return self.weight if self.adapter is None else self

    def used_weight(self) -> Tensor:
        """Return W + (L R)^T / r [out_features, in_features], differentiable, summed in float64."""
        weight = super().used_weight()
        if self.adapter is None:
            return weight
        adapter = self.adapter
        product = (adapter.left.double() @ adapter.right.double()).t() / adapter.divisor
        return (weight.double() + product).to(weight.dtype)

    def merge(self) -> nn.Linear:
        """Merge sparse weight and adapter into one dense layer; the same as `to_dense`."""
        return self.to_dense()

    def to_inference(self, transpose: Transpose = "packed") -> SparseLinear:
        """Return a copy for inference: the sparse weight, and the adapter beside it.

        The copy's backward pass is exact, and 1 / r is folded into R. Without an adapter the copy
        is a plain SparseLinear.
        """
        plain = super().to_inference(transpose)
        if self.adapter is None:
            return plain
        layer = AdaptedLinear.of_parts(plain.weight, plain.bias)
        layer.adapter = copy.deepcopy(self.adapter)
        layer.adapter.fold()
        return layer.train(self.training)


def for_inference(
    model: nn.Module, adapters: Literal["folded", "merged"]
) -> dict[nn.Module, nn.Module]:
    """Return the layers for inference, by the layer that each replaces.

    Args:
        model: any module.
        adapters: "folded" keeps each adapter beside its sparse weight, with 1 / r folded into R;
            "merged" adds the adapter to the weight, which gives an `nn.Linear`.
    """
    new: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        if not isinstance(module, MaskedLayer) or module.sparse_weight is None:
            continue
        if (
            isinstance(module, AdaptedLinear)
            and module.adapter is not None
            and (adapters == "merged")
        ):
            new[module] = module.to_dense()
        elif isinstance(module, AdaptedLinear) or module.sparse_weight.backward == "double_pruned":
            assert isinstance(module, SparseLinear)  # noqa: S101 - it has a sparse weight
            new[module] = module.to_inference()
    return new
