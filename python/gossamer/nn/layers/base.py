"""MaskedLayer: the interface of all linear layers with a mask, however they store the weight."""

from __future__ import annotations

from torch import Tensor, nn

from gossamer import backend
from gossamer.backend import Structure
from gossamer.errors import PatternError
from gossamer.patterns import NM, Block, Pattern, Unstructured, parse_pattern
from gossamer.weight import SparseWeight


# --8<-- [start:protocol]
class MaskedLayer(nn.Module):
    """Base of the linear layers whose weight [out_features, in_features] has a mask.

    Surgery, summaries, diagnostics and recipes use these members only.

    Attributes:
        in_features: size of an input row.
        out_features: size of an output row.
        bias: [out_features], or None.
    """

    in_features: int
    out_features: int
    bias: nn.Parameter | None

    # ---- each class answers these --------------------------------------------------------------

    @property
    def structure(self) -> Structure:
        """The positions of the kept entries."""
        raise NotImplementedError

    @property
    def pattern(self) -> Pattern:
        """The pattern that the mask obeys now."""
        raise NotImplementedError

    @property
    def target(self) -> Pattern:
        """The pattern that the mask obeys at the end of training."""
        raise NotImplementedError

    @property
    def entries(self) -> nn.Parameter:
        """The parameter that holds the weight's entries: [nnz], or dense [out, in]."""
        raise NotImplementedError

    def kept_values(self) -> Tensor:
        """Return the kept entries [nnz] of the stored weight in `structure` order; detached."""
        raise NotImplementedError

    def used_weight(self) -> Tensor:
        """Return the dense matrix [out_features, in_features] that the forward pass multiplies by.

        It is differentiable in the parameters if the layer's gradient is that of this product.
        """
        raise NotImplementedError

    def to_sparse(self, pattern: Pattern | None = None) -> MaskedLayer:
        """Return the layer as a `SparseLinear`, which stores the kept entries only.

        Args:
            pattern: pattern to prune to if the layer is dense now; None is its target.
        """
        raise NotImplementedError

    @property
    def structure_nbytes(self) -> int:
        """Bytes of everything that the layer stores beside its parameters."""
        raise NotImplementedError

    # --8<-- [end:protocol]

    # ---- these follow from them ----------------------------------------------------------------

    @property
    def sparse_weight(self) -> SparseWeight | None:
        """The weight as a `SparseWeight`; None if the entries are stored dense."""
        return None

    @property
    def weight_owner(self) -> nn.Module:
        """The module that determines `used_weight`; layers with the same owner share a weight."""
        return self

    @property
    def takes_rows(self) -> bool:
        """Whether the input is [..., in_features], and the output [..., out_features]."""
        return True

    def stands_for(self, dense: nn.Module) -> bool:
        """Whether a dense layer, or another with a mask, computes the same with equal weights.

        Sizes of the weight and the bias are compared elsewhere.
        """
        return True

    @property
    def nnz(self) -> int:
        """The number of kept entries."""
        return self.structure.nnz

    @property
    def density(self) -> float:
        """Kept entries over all entries, in [0, 1]."""
        return self.nnz / max(self.out_features * self.in_features, 1)

    @property
    def is_dense_now(self) -> bool:
        """Whether the forward pass uses the whole weight, without a mask."""
        return False

    @property
    def used_entries(self) -> int:
        """The number of entries that the forward pass uses."""
        return self.nnz

    def mask(self) -> Tensor:
        """Return the mask as a bool tensor [out_features, in_features], True = kept."""
        return backend.mask(self.structure)

    def to_dense(self) -> nn.Linear:
        """Return an equivalent `nn.Linear`; a copy."""
        weight = nn.Parameter(self.used_weight().detach().clone(), self.entries.requires_grad)
        return linear_of_parts(weight, copy_parameter(self.bias)).train(self.training)


def linear_of_parts(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """Make an `nn.Linear` from existing parameters."""
    out_features, in_features = weight.shape
    linear = nn.Linear(in_features, out_features, bias is not None, device="meta")
    linear.weight = weight
    linear.bias = bias  # type: ignore[assignment]
    return linear


def copy_parameter(parameter: nn.Parameter | None) -> nn.Parameter | None:
    """Return a copy of a parameter with the same `requires_grad`; None for None."""
    if parameter is None:
        return None
    return nn.Parameter(parameter.detach().clone(), parameter.requires_grad)


def whole(pattern: Pattern) -> Pattern:
    """Return the pattern of the same kind that keeps every entry.

    Example:
        >>> str(whole(NM(1, 4, vector=8)))
        '4:4:v8'
    """
    if isinstance(pattern, NM | Unstructured | Block):
        return pattern.at_sparsity(0.0)
    return Unstructured(0.0)


def plain_groups(pattern: str | Pattern, who: str) -> NM:
    """Return the pattern if it is N:M over single entries.

    Raises:
        PatternError: the pattern is another one.
    """
    pattern = parse_pattern(pattern)
    if not isinstance(pattern, NM) or pattern.vector != 1:
        raise PatternError(
            f"{who} got pattern {pattern}; an n:m pattern over single entries is needed: choose "
            "2:4, 1:4 or another n:m without a vector such as :v4"
        )
    return pattern


__all__ = ["MaskedLayer", "copy_parameter", "linear_of_parts", "plain_groups", "whole"]
