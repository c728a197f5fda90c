"""resize_like(): a model with the sizes of a pruned one, to load its state dict into."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gossamer.arguments import check
from gossamer.errors import CheckpointError
from gossamer.nn.globs import listed
from gossamer.pruning.attention import recognise, with_heads
from gossamer.pruning.comparing import copied
from gossamer.pruning.experts import is_experts, parts, store_hidden
from gossamer.pruning.multihead import can_lose_heads, fewer_heads
from gossamer.pruning.shapes import PART_SIZES
from gossamer.pruning.weights import NORMS, inputs_first, is_weighted, oriented, resize


def resize_like(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a model with the sizes that a state dict has, ready to load it.

    A pruned model is an ordinary one, but the code and the config that built it know its old sizes
    only. Build that model again, resize it, and load the state.

    Args:
        model: the model as it was before `prune`, `shrink` or `PruneGroups`; its numbers do not
            matter. It does not change.
        state: state dict of the smaller model.

    Returns:
        A copy. Tensors whose size has changed hold arbitrary numbers until the state is loaded.

    Raises:
        DTypeError: the model is not an `nn.Module`, or the state is not a mapping.
        CheckpointError: the state has other names, or sizes that a pruned model cannot have.

    Example:
        >>> def build():
        ...     return nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> state = {"0.weight": torch.ones(9, 4), "0.bias": torch.ones(9),
        ...          "2.weight": torch.ones(2, 9), "2.bias": torch.ones(2)}
        >>> smaller = resize_like(build(), state)
        >>> smaller.load_state_dict(state)
        <All keys matched successfully>
        >>> smaller[2]
        Linear(in_features=9, out_features=2, bias=True)
    """
    check(resize_like, locals())
    resized = copied(model)
    with torch.no_grad():
        for name, module in list(resized.named_modules()):
            fewer = _attention(module, name, state)
            if fewer is not None and name:
                resized.set_submodule(name, fewer)
            elif fewer is not None:
                resized = fewer
        for name, module in list(resized.named_modules()):
            _layer(module, name, state)
    _compare(resized, state)
    return resized


def _attention(module: nn.Module, name: str, state: Mapping[str, Tensor]) -> nn.Module | None:
    """Return an attention with as many heads as the state has; None if nothing changes."""
    prefix = f"{name}." if name else ""
    if isinstance(module, nn.MultiheadAttention) and can_lose_heads(module):
        given = state.get(f"{prefix}in_proj_weight")
        heads, rows = module.num_heads, len(module.in_proj_weight)
        keep = _kept(given, rows, heads)
        return None if keep is None else fewer_heads(module, keep)
    qkv = getattr(module, "qkv", None)
    if isinstance(qkv, nn.Linear) and f"{prefix}qkv.weight" in state:
        known = recognise(module, torch.zeros(1, 4, qkv.in_features).to(qkv.weight))
        if known is not None:
            keep = _kept(state[f"{prefix}qkv.weight"], qkv.out_features, known.heads)
            return None if keep is None else with_heads(module, known, keep)
    return None


def _kept(given: Tensor | None, rows: int, heads: int) -> Tensor | None:
    """Return which heads to keep for a number of rows: the first ones."""
    if given is None or len(given) == rows or len(given) * heads % rows:
        return None
    return torch.arange(heads) < len(given) * heads // rows


def _layer(module: nn.Module, name: str, state: Mapping[str, Tensor]) -> None:
    """Give a module's own tensors the sizes of the state's, and update the sizes it stores."""
    prefix = f"{name}." if name else ""
    _part_sizes(module, prefix, state)
    is_layer = is_weighted(module) or isinstance(module, (*NORMS, nn.PReLU))
    outputs = len(oriented(module)) if is_layer and isinstance(module.weight, Tensor) else 0
    hidden = parts(module)[1].shape[2] if is_experts(module) else 0
    turned = inputs_first(module)  # Conv1D is known by its sizes, as long as they fit
    for own, tensor in [
        *module.named_parameters(recurse=False),
        *module.named_buffers(recurse=False),
    ]:
        given = state.get(prefix + own)
        if given is not None and given.shape != tensor.shape and given.dim() == tensor.dim():
            other = tensor.detach().new_empty(given.shape)
            if isinstance(tensor, nn.Parameter):
                other = nn.Parameter(other, tensor.requires_grad)
            setattr(module, own, other)
    if hidden:
        store_hidden(module, hidden, parts(module)[1].shape[2])
    elif outputs:
        weight: Tensor = module.weight.detach()  # type: ignore[operator]
        weight = weight.transpose(0, 1) if turned else weight
        bias = state.get(f"{prefix}bias")
        if (
            bias is not None and getattr(module, "bias", None) is None
        ):  # a constant has moved into it
            module.register_parameter("bias", nn.Parameter(weight.new_empty(bias.shape)))
        groups = int(getattr(module, "groups", 1))
        if groups > 1:
            groups = groups * len(weight) // outputs
        inputs = weight.shape[1] * groups if weight.dim() > 1 else len(weight)
        resize(module, inputs, len(weight), groups)


def _part_sizes(module: nn.Module, prefix: str, state: Mapping[str, Tensor]) -> None:
    """Update the sizes of the parts of a layer's outputs, which the module around it stores."""
    for name in PART_SIZES:
        size = vars(module).get(name)
        for own, child in module.named_children():
            given = state.get(f"{prefix}{own}.weight")
            if not isinstance(size, int) or given is None or not is_weighted(child):
                continue
            before = len(oriented(child))
            after = given.shape[1] if inputs_first(child) else len(given)
            if before != after and before % size == 0 and after % (before // size) == 0:
                setattr(module, name, after // (before // size))


def _compare(resized: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless the state fits the model."""
    own = resized.state_dict()
    if unknown := [*(own.keys() ^ state.keys())]:
        raise CheckpointError(
            f"resize_like got a state with other names than the model: {listed(sorted(unknown))}; "
            "build the model that was pruned"
        )
    for name, tensor in own.items():
        given = list(state[name].shape)
        if list(tensor.shape) != given:
            raise CheckpointError(
                f"resize_like got {name} of shape {given} for a model in which it has "
                f"{list(tensor.shape)}; build the model that was pruned"
            )
