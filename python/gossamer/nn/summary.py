"""summary(): training memory per layer of a model, compared with the dense model.

The bytes of values, structure and optimizer state are counted from existing tensors, not estimated.
A gradient counts as its parameter's bytes if `requires_grad` is set, even if it is None now. The
dense column is the same model with dense weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gossamer.arguments import check
from gossamer.errors import ShapeError
from gossamer.nn.layers.activation_sparse import ActivationSparseFFN
from gossamer.nn.layers.base import MaskedLayer
from gossamer.nn.left_dense import DenseKind, dense_kinds
from gossamer.tables import text_table
from gossamer.weight import SparseWeight


@dataclass(frozen=True)
class LayerSummary:
    """Bytes of one module's own parameters and state.

    Args:
        name: name of the module; "" is the model itself.
        kind: class of the module.
        pattern: text of the pattern, None when dense.
        density: kept entries over all entries of the weight, 1 when dense.
        values: bytes of the parameters.
        structure: bytes of indices, pointers and other buffers of a layer with a mask.
        gradient: bytes of the gradients.
        optimizer: bytes of the optimizer's state.
        dense: bytes of parameters, gradients and optimizer state of the dense module.
        form: how an `ActivationSparseFFN` was computed last, None for other modules.
        live_share: its running share of live activations, NaN before the first call, None for
            other modules.
    """

    name: str
    kind: str
    pattern: str | None
    density: float
    values: int
    structure: int
    gradient: int
    optimizer: int
    dense: int
    form: str | None = None
    live_share: float | None = None

    @property
    def total(self) -> int:
        """Bytes of training state: parameters, structure, gradients, optimizer."""
        return self.values + self.structure + self.gradient + self.optimizer


@dataclass(frozen=True)
class Summary:
    """The layers of a model and their totals; `print` shows a table.

    Args:
        layers: one entry per module with parameters, in the model's order. Shared parameters
            count with the first module that holds them.
        dense_kinds: the weights without a mask, one item per kind with its share.
    """

    layers: tuple[LayerSummary, ...]
    dense_kinds: tuple[DenseKind, ...] = ()

    @property
    def total(self) -> int:
        """Bytes of training state of the model: parameters, structure, gradients, optimizer."""
        return sum(layer.total for layer in self.layers)

    @property
    def dense(self) -> int:
        """Bytes of the same model with dense weights and no structure."""
        return sum(layer.dense for layer in self.layers)

    @property
    def ratio(self) -> float:
        """Bytes of the model over bytes of the dense model."""
        return self.total / self.dense if self.dense else 1.0

    def __str__(self) -> str:
        rows = [
            (
                layer.name or f"({layer.kind})",
                layer.pattern or _activations(layer) or "dense",
                f"{layer.density:.4g}",
                *_cells(layer),
            )
            for layer in self.layers
        ]
        parts = [sum(getattr(layer, part) for layer in self.layers) for part in _PARTS]
        total = ("total", "", "", *(_bytes(part) for part in parts))
        return text_table(
            "training state",
            ("layer", "pattern", "density", "values", "structure", "gradient", "optimizer", "sum",
             "dense"),
            rows, total, left=2,
            notes=[f"{self.ratio:.3f} of dense", *(f"dense: {kind}" for kind in self.dense_kinds)],
        )  # fmt: skip


_PARTS = ("values", "structure", "gradient", "optimizer", "total", "dense")


def summary(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Summary:
    """Count the training memory of each layer, sparse and dense.

    Args:
        model: any module.
        optimizer: optimizer whose state is counted, after its first step; None counts no state.

    Returns:
        The summary; `print` shows a table.

    Raises:
        ShapeError: a lazy layer has no shape before the model's first call.

    Example:
        >>> import torch
        >>> from gossamer import SparseLinear
        >>> layer = SparseLinear(64, 64, bias=False, pattern="2:4:v4")
        >>> first = summary(layer).layers[0]
        >>> first.values, first.structure, first.gradient, first.dense
        (8192, 576, 8192, 32768)
    """
    check(summary, locals())
    seen: set[int] = set()
    layers = []
    for name, module in model.named_modules():
        if id(module) in seen:
            continue
        masked: MaskedLayer | SparseWeight | None = None
        parts = [module]
        if isinstance(module, MaskedLayer):
            owner = module if module.sparse_weight is None else module.sparse_weight
            if id(owner) not in seen:
                masked = module
                parts = [module] if owner is module else [module, owner]
        elif isinstance(module, SparseWeight):
            masked = module
        seen.update(id(part) for part in parts)
        fresh = []
        for part in parts:
            for parameter in part.parameters(recurse=False):
                if is_lazy(parameter):
                    raise ShapeError(
                        f"layer {name!r} ({type(part).__name__}) has no shape yet; run the model "
                        "once on an input, which gives it one"
                    )
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    fresh.append(parameter)
        if fresh:
            layers.append(_count(name, module, masked, fresh, optimizer))
    return Summary(tuple(layers), tuple(dense_kinds(model)))


def _count(
    name: str,
    module: nn.Module,
    masked: MaskedLayer | SparseWeight | None,
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer | None,
) -> LayerSummary:
    sparse = masked.sparse_weight if isinstance(masked, MaskedLayer) else masked
    values = gradient = state = dense = 0
    for parameter in parameters:
        stored_sparse = sparse is not None and parameter is sparse.values
        entries = sparse.numel() if sparse is not None and stored_sparse else parameter.numel()
        per_entry, rest = _state_bytes(optimizer, parameter)
        trained = int(parameter.requires_grad)
        values += parameter.nbytes
        gradient += parameter.nbytes * trained
        state += parameter.numel() * per_entry + rest
        dense += entries * (parameter.itemsize * (1 + trained) + per_entry) + rest
    network = ActivationSparseFFN.find_in(module).get("")
    return LayerSummary(
        name,
        type(module).__name__,
        None if masked is None else str(masked.pattern),
        1.0 if masked is None else masked.density,
        values,
        0 if masked is None else masked.structure_nbytes,
        gradient,
        state,
        dense,
        None if network is None else network.form,
        None if network is None else network.live_share,
    )


def _state_bytes(
    optimizer: torch.optim.Optimizer | None, parameter: nn.Parameter
) -> tuple[int, int]:
    """Return the bytes of state per parameter entry, and of the rest (such as a step counter)."""
    per_entry = rest = 0
    for tensor in (optimizer.state.get(parameter, {}) if optimizer else {}).values():
        if isinstance(tensor, Tensor):
            if tensor.shape == parameter.shape:
                per_entry += tensor.itemsize
            else:
                rest += tensor.nbytes
    return per_entry, rest


def _activations(layer: LayerSummary) -> str:
    """Return how a layer with sparse activations is computed, "" for other layers."""
    if layer.live_share is None:
        return ""
    share = "" if math.isnan(layer.live_share) else f", {100 * layer.live_share:.3g} % live"
    return f"activations{share}" + (f", {layer.form}" if layer.form else "")


def _cells(layer: LayerSummary) -> list[str]:
    return [_bytes(getattr(layer, part)) for part in _PARTS]


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} GB"
