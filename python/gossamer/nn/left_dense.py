"""The weights of a model that have no mask, by kind and with their share of all weights.

A weight is a parameter with two sizes above 1, of a layer that multiplies by it, or of a module
that nothing is known of. `sparsify` swaps linear layers and convolutions; what else a model
computes with (experts in one parameter, recurrent and attention matrices) is named here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from gossamer.nn.computed import why_computed
from gossamer.nn.globs import listed
from gossamer.nn.layers.activation_sparse import ActivationSparseFFN
from gossamer.nn.layers.base import MaskedLayer
from gossamer.nn.layers.linear import is_conv1d
from gossamer.nn.layers.replacing import is_convolution, is_depthwise
from gossamer.nn.routing import TopKRouter
from gossamer.weight import SparseWeight

LINEAR, TABLE, ROUTER = "linear layers", "embedding tables", "routers"
CONVOLUTION = "convolutions"
DEPTHWISE = "depthwise convolutions, which gain nothing; overrides= swaps them"
BARE = "bare matrices; parameters= swaps them"
STACKED = "matrices stacked in one parameter; parameters= swaps them"
# What stays dense by design: summaries list it, and surgery does not warn of it.
BY_DESIGN = (LINEAR, TABLE, ROUTER)

# What a class calls its weights; the first that fits counts. None: it does not multiply by them.
_KINDS: tuple[tuple[type | tuple[type, ...], str | None], ...] = (
    ((nn.Embedding, nn.EmbeddingBag), TABLE),
    (TopKRouter, ROUTER),
    ((nn.RNNBase, nn.RNNCellBase), "recurrent matrices"),
    (nn.MultiheadAttention, "projections of attention in one parameter"),
    ((nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase), None),
)


@dataclass(frozen=True)
class DenseKind:
    """Weights of one kind that have no mask.

    Args:
        what: the kind.
        names: their names in the model: parameters, or linear layers.
        entries: their entries.
        share: their share of the entries of all weights, dense and sparse, in [0, 1].
    """

    what: str
    names: tuple[str, ...]
    entries: int
    share: float

    def __str__(self) -> str:
        return f"{listed(self.names)} ({self.what}), {100 * self.share:.3g} % of the weights"


def dense_kinds(model: nn.Module, chosen: Callable[[str], bool] | None = None) -> list[DenseKind]:
    """Return the weights without a mask, one item per kind, in the model's order.

    Args:
        model: any module.
        chosen: which names to list; None lists all. The share is of the whole model either way.
    """
    kinds: dict[str, dict[str, int]] = {}
    total = 0
    for kind, name, entries in _weights(model):
        total += entries
        if kind is not None and (chosen is None or chosen(name)):
            found = kinds.setdefault(kind, {})
            found[name] = found.get(name, 0) + entries
    return [
        DenseKind(kind, tuple(found), sum(found.values()), sum(found.values()) / max(total, 1))
        for kind, found in kinds.items()
    ]


def is_dense_linear(module: nn.Module) -> bool:
    """Return whether a layer is exactly nn.Linear or Conv1D, with an own weight and bias."""
    own = "weight" in module._parameters and why_computed(module) is None
    return own and (type(module) is nn.Linear or is_conv1d(module))


def has_no_shape(module: nn.Module, convolutions: bool = True) -> bool:
    """Return whether a linear layer or convolution gets its sizes at the model's first call."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) if convolutions else (nn.Linear,)
    weight = module._parameters.get("weight") if isinstance(module, kinds) else None
    return weight is not None and is_lazy(weight)


def _weights(model: nn.Module) -> Iterator[tuple[str | None, str, int]]:
    """Yield the kind, the name and the entries of each weight once; sparse ones have no kind."""
    seen: set[int] = set()
    inside: dict[int, tuple[str, str]] = {}  # modules of a linear layer: its name and kind
    sparse: set[int] = set()
    networks = set(ActivationSparseFFN.find_in(model).values())
    for name, module in model.named_modules():
        if isinstance(module, SparseWeight) and id(module.values) not in seen:
            seen.add(id(module.values))
            yield None, name, module.shape.numel()
        if id(module) in sparse or isinstance(module, MaskedLayer | SparseWeight):
            sparse |= set(map(id, module.modules()))
        elif id(module) not in inside and (found := _linear_kind(module, module in networks)):
            inside |= {id(part): (name, found) for part in module.modules()}
        for own, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not _is_matrix(parameter):
                continue
            seen.add(id(parameter))
            if id(module) in sparse:
                yield None, name, parameter.numel()
            elif id(module) in inside:
                layer, kind = inside[id(module)]
                yield kind, layer, parameter.numel()
            elif not own.endswith("bias") and (of := _kind(module, parameter)):
                yield of, f"{name}.{own}" if name else own, parameter.numel()


def _linear_kind(module: nn.Module, is_network: bool) -> str | None:
    """Return the kind of a layer whose parts are named as one, None for other modules."""
    if is_network:
        return "ActivationSparseFFN; its weights stay dense"
    if (computed := why_computed(module)) is not None:
        return computed
    if is_dense_linear(module):
        return LINEAR
    if isinstance(module, nn.Linear):
        return f"{type(module).__name__}; only nn.Linear itself and Conv1D can be swapped"
    if is_convolution(module):
        return DEPTHWISE if is_depthwise(module) else CONVOLUTION
    if isinstance(module, _ConvNd):
        return f"{type(module).__name__}; only nn.Conv1d, Conv2d and Conv3d can be swapped"
    return None


def _kind(module: nn.Module, parameter: nn.Parameter) -> str | None:
    for classes, kind in _KINDS:
        if isinstance(module, classes):
            return kind
    if type(module).__name__.endswith("Router"):  # of transformers
        return ROUTER
    return BARE if _rank(parameter) == 2 else STACKED


def _is_matrix(parameter: nn.Parameter) -> bool:
    return not is_lazy(parameter) and _rank(parameter) > 1


def _rank(parameter: nn.Parameter) -> int:
    """Return the number of sizes above 1: a vector may be stored with more dimensions."""
    return sum(size > 1 for size in parameter.shape)
