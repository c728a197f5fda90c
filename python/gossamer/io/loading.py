"""load(): a model from a folder, a file or a state dict; everything is checked, then changed."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.arguments import check
from gossamer.errors import ArgumentError, CheckpointError, GossamerError
from gossamer.io import factories
from gossamer.io.checking import check_loading, check_state, twin_tree
from gossamer.io.fallback import Fallback, densely, unknown_pattern, warn
from gossamer.io.places import member_at, module_at, place_of
from gossamer.io.reading import Saved, read
from gossamer.io.saving import unwrapped
from gossamer.nn.activation_surgery import sparsify_activations
from gossamer.nn.layers.activation_sparse import ActivationSparseFFN
from gossamer.nn.layers.base import MaskedLayer
from gossamer.nn.layers.convolution import kind_of
from gossamer.nn.layers.filters import options_of
from gossamer.nn.layers.in_place import placed
from gossamer.nn.layers.rebuilding import build, describe, part_of
from gossamer.nn.swapping import replace_modules


def load(
    source: str | Path | Mapping[str, Any],
    model: nn.Module | None = None,
    strict: bool = True,
    fallback: Fallback = "raise",
) -> nn.Module:
    """Load a model that `gossamer.save` has saved; all of it or nothing.

    As `torch.load`, it takes what was saved first. Without `model` the model is built again: one of
    transformers by its configuration, another by the factory that `save` was given, a single layer
    by itself. With `model`, a dense or sparse model of the same class, the layers that were saved
    are put in the places of those that differ, and the numbers are loaded into it. Layers that fit
    stay the same objects, and so do their parameters; build the optimizer after a load into a dense
    model.

    Nothing changes before the checksum, the structure of every layer, all names, shapes and dtypes
    were checked: after an error the model is what it was, bit for bit.

    Args:
        source: a folder of `gossamer.save` or of a sparse model's `save_pretrained`, a safetensors
            file in one, or a state dict. From a state dict alone, `SparseLinear` layers are built
            in a dense model; other layers have to be there.
        model: the model to load into; it keeps its dtypes, devices and training mode. None builds
            one with the dtypes and the training mode that were saved.
        strict: whether names that are missing or unknown are refused.
        fallback: what becomes of a layer whose pattern is not registered here, as of a package
            that was not imported: "raise" names the pattern in an error, "warn" makes the layer
            dense and names it in a warning.

    Returns:
        The model; if it was a layer itself that was replaced, the new one.

    Raises:
        CheckpointError: the file is missing, damaged or of another model, or the model cannot be
            built without `model`.
        StructureError: a structure is damaged.
        DTypeError: a tensor has another kind of dtype than the model's.

    Example:
        >>> import gossamer
        >>> state = torch.nn.Sequential(gossamer.SparseLinear(8, 4, pattern="2:4")).state_dict()
        >>> model = gossamer.load(state, torch.nn.Sequential(torch.nn.Linear(8, 4)))
        >>> model[0].nnz
        16
    """
    if isinstance(source, nn.Module):
        raise ArgumentError("load got a model first; call load(source, model)")
    check(load, locals())
    saved = read(source)
    if model is None:
        with torch.random.fork_rng(devices=[]):  # a load draws no numbers
            model = _built(saved, fallback)
        _take_dtypes(model, saved)
        training = saved.description.get("training", True)
        return _load_into(model, saved, strict, fallback).train(bool(training))
    inner = unwrapped(model)
    loaded = _load_into(inner, saved, strict, fallback)
    return model if loaded is inner else loaded


def planned(
    model: nn.Module, saved: Saved, fallback: Fallback = "raise"
) -> tuple[dict[Any, nn.Module], dict[str, Any]]:
    """Build the layers that a model lacks, without a change of the model.

    Args:
        model: a dense or sparse model.
        saved: what was saved; its shared tensors are under one name.
        fallback: what to do with layers of unknown patterns, see `load`.

    Returns:
        New layers by the layers or parameters in whose places they belong, and the whole state
        dict.

    Raises:
        GossamerError: the layers do not fit the model, or are damaged.
    """
    state = dict(saved.state)
    for name, first in (saved.description.get("tied") or {}).items():
        for key in [key for key in state if key == first or key.startswith(f"{first}.")]:
            state.setdefault(name + key.removeprefix(first), state[key])
    layers = saved.description["layers"]
    if layers is None:
        layers = _seen_in(model, state)
    new: dict[Any, nn.Module] = {}
    dropped: dict[str, str] = {}
    for name, described in layers.items():
        old = place_of(model, name, described)
        prefix = f"{name}." if name else ""
        part = part_of(state, prefix)
        if fallback == "warn" and (unknown := unknown_pattern(part)) is not None:
            dense, dropped[name] = densely(described, part), unknown
            for key in part:
                del state[prefix + key]
            state |= {prefix + key: tensor for key, tensor in dense.state_dict().items()}
            if type(old) is not type(dense):
                new[old] = dense
            continue
        if not _fits(old, described, part):
            try:
                new[old] = _layer(described, part, old)
            except GossamerError as error:
                raise type(error)(f"layer {name!r:.120}: {error}") from None
    warn(dropped)
    # What the model itself ties may be stored once.
    own = model.state_dict(keep_vars=True)
    ids = {id(tensor): name for name, tensor in own.items() if name in state}
    for name, tensor in own.items():
        if name not in state and id(tensor) in ids and isinstance(tensor, nn.Parameter):
            state[name] = state[ids[id(tensor)]]
    return new, state


def tie(model: nn.Module, tied: Mapping[str, str], new: Mapping[Any, nn.Module]) -> None:
    """Share among new layers what was shared among those that were saved."""
    fresh = {id(part) for layer in placed(new) for part in layer.modules()}
    for name, first in tied.items():
        above, _, own = name.rpartition(".")
        try:
            holder, shared = module_at(model, above), member_at(model, first)
        except CheckpointError:
            continue
        if id(holder) in fresh and getattr(holder, own, None) is not shared:
            setattr(holder, own, shared)


def _load_into(model: nn.Module, saved: Saved, strict: bool, fallback: Fallback) -> nn.Module:
    layers = saved.description["layers"] or {}
    if missing_networks(model, layers):
        # Sparse activations are put in by surgery: on a twin first, with which all is checked.
        _check_memory(model, {})
        _checked(with_networks(twin_tree(model, {}), layers), saved, strict, fallback)
        model = with_networks(model, layers)
    new, state = _checked(model, saved, strict, fallback)
    _check_memory(model, new)
    model = replace_modules(model, new)
    tie(model, saved.description.get("tied") or {}, new)
    model.load_state_dict(state, strict)
    return model


def _checked(
    model: nn.Module, saved: Saved, strict: bool, fallback: Fallback
) -> tuple[dict[Any, nn.Module], dict[str, Any]]:
    """Return the new layers and the state dict, which fit the model."""
    for name, tensor in saved.state.items():
        if isinstance(tensor, Tensor) and tensor.is_meta:
            raise CheckpointError(f"{name} of the state is on the meta device, without numbers")
    new, state = planned(model, saved, fallback)
    check_loading(twin_tree(model, new), model.state_dict(keep_vars=True), state, strict)
    return new, state


def _check_memory(model: nn.Module, new: Mapping[Any, nn.Module]) -> None:
    """Raise CheckpointError if parameters that will be loaded into are on the meta device."""
    replaced = {id(m) for old in new if isinstance(old, nn.Module) for m in old.modules()}
    for name, module in model.named_modules():
        meta = any(p.is_meta and p not in new for p in module.parameters(recurse=False))
        if id(module) not in replaced and meta:
            raise CheckpointError(
                f"{name or 'the model'} has parameters on the meta device, without memory; call "
                "model.to_empty(device='cpu') first, or give no model"
            )


def _built(saved: Saved, fallback: Fallback) -> nn.Module:
    """Build the model that was saved, without its numbers."""
    made = saved.description.get("model")
    layers = saved.description["layers"] or {}
    if isinstance(made, Mapping) and "factory" in made:
        kwargs = made.get("kwargs")
        model = factories.build(str(made["factory"]), kwargs if isinstance(kwargs, Mapping) else {})
    elif isinstance(made, Mapping) and "transformers" in made and saved.place is not None:
        model = _pretrained(str(made["transformers"]), saved.place)
    elif "" in layers:
        if fallback == "warn" and unknown_pattern(saved.state) is not None:
            return densely(layers[""], saved.state)
        return build(layers[""], saved.state)
    else:
        raise CheckpointError(
            "load cannot build the model: it is no model of transformers, and save was given no "
            "factory; give load a dense model of the same class, as load(source, model)"
        )
    return model


def missing_networks(model: nn.Module, layers: Mapping[str, Any]) -> list[str]:
    """Return the names of the sparse activations that were saved and that a model lacks."""
    saved = {
        name
        for name, layer in layers.items()
        if isinstance(layer, Mapping) and layer.get("kind") == ActivationSparseFFN.__name__
    }
    return sorted(saved - ActivationSparseFFN.find_in(model).keys())


def with_networks(model: nn.Module, layers: Mapping[str, Any]) -> nn.Module:
    """Put sparse activations into a model where they were saved."""
    missing = missing_networks(model, layers)
    if not missing:
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the networks that were not saved so
        try:
            return sparsify_activations(model, missing, relufy=True)
        except GossamerError as error:
            raise CheckpointError(f"the sparse activations cannot be built: {error}") from error


def _pretrained(name: str, folder: Path) -> nn.Module:
    try:
        transformers = importlib.import_module("transformers")
        kind = getattr(transformers, name)
        if not issubclass(kind, transformers.PreTrainedModel):
            raise TypeError(f"{name} is no model of transformers")
        config = transformers.AutoConfig.from_pretrained(folder)
        model: nn.Module = kind(config)
    except Exception as error:  # of another library's configurations and constructors
        raise CheckpointError(
            f"the model {name:.80} of transformers cannot be built from {folder} "
            f"({type(error).__name__}: {error!s:.300}); give load a model (model=...)"
        ) from error
    return model


def _take_dtypes(model: nn.Module, saved: Saved) -> None:
    """Give a model that was built the dtypes that were saved."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        theirs = saved.state.get(name)
        if (
            isinstance(tensor, Tensor)
            and isinstance(theirs, Tensor)
            and theirs.is_floating_point()
            and tensor.is_floating_point()
            and tensor.dtype != theirs.dtype
        ):
            tensor.data = tensor.data.to(theirs.dtype)
    for name, described in (saved.description["layers"] or {}).items():
        part = part_of(saved.state, f"{name}." if name else "")
        dtypes = [t.dtype for own, t in part.items() if own.endswith(".values")]
        try:
            place = place_of(model, name, described)
        except CheckpointError:  # told of when the layers are built
            continue
        for parameter in [place] if isinstance(place, nn.Parameter) else place.parameters():
            if dtypes and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtypes[0])


def _seen_in(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the sparse layers of a state dict that the model has as dense layers."""
    found = {}
    own = dict(model.named_modules())
    for name in state:
        layer, dot, _ = name.removesuffix(".descriptor").rpartition("weight")
        prefix = f"{layer}weight."
        if not (name == f"{prefix}descriptor" and dot and f"{prefix}values" in state):
            continue
        if layer.rstrip(".") in own:
            chosen = f"{prefix}t_perm" in state
            adapted = f"{layer}adapter.left" in state
            found[layer.rstrip(".")] = {
                "kind": "AdaptedLinear" if adapted else "SparseLinear",
                "transpose": "packed",
                "backward": "double_pruned" if chosen else "exact",
            }
            if (kind := kind_of(own[layer.rstrip(".")])) is not None:
                window = options_of(own[layer.rstrip(".")])
                found[layer.rstrip(".")] |= {"kind": kind.__name__} | window
    return found


def _fits(old: Any, described: Any, part: Mapping[str, Any]) -> bool:
    """Whether a layer of the model can be loaded into as it is."""
    options = describe(old) if isinstance(old, nn.Module) else None
    if options is None or not isinstance(described, Mapping):
        return False
    of_reader = ("pattern", "recipe")
    theirs, mine = (
        {name: value for name, value in one.items() if name not in of_reader}
        for one in (described, options)
    )
    if mine != json.loads(json.dumps(theirs)):
        return False
    try:
        check_state(old, part)
    except GossamerError:
        return False
    return True


def _layer(described: Any, part: dict[str, Tensor], old: Any) -> nn.Module:
    """Build a layer with sizes, dtype and `requires_grad` of what it comes in the place of."""
    new = build(described, part)
    if isinstance(old, nn.Parameter):
        if getattr(new, "shape", None) != old.shape:
            raise CheckpointError(
                f"it is of shape {list(getattr(new, 'shape', ()))}, the model's is "
                f"{list(old.shape)}; build the model that was saved"
            )
        for parameter in new.parameters():
            parameter.requires_grad_(old.requires_grad)
            parameter.data = parameter.data.to(old.dtype)
        return new
    sizes = [(m.in_features, m.out_features) for m in (old, new) if hasattr(m, "in_features")]
    if hasattr(old, "nf"):  # Conv1D
        sizes.insert(0, (old.nx, old.nf))
    if len(sizes) == 2 and sizes[0] != sizes[1]:
        raise CheckpointError(
            f"it is {sizes[1][0]} to {sizes[1][1]}, the model's is {sizes[0][0]} to {sizes[0][1]}; "
            "build the model that was saved"
        )
    if isinstance(new, MaskedLayer) and not new.stands_for(old):
        raise CheckpointError(
            f"it is {type(new).__name__}({new.extra_repr()}), the model's is "
            f"{type(old).__name__}({old.extra_repr()}); build the model that was saved"
        )
    biases = [m.bias is None for m in (old, new) if hasattr(m, "bias")]
    if len(sizes) == len(biases) == 2 and biases[0] != biases[1]:
        raise CheckpointError(
            f"it has {'no' if biases[1] else 'a'} bias in the file, and the model's has "
            f"{'none' if biases[0] else 'one'}; build the model that was saved"
        )
    origin = getattr(old, "origin", None)
    if origin is not None:
        new.origin = origin
    elif hasattr(new, "origin") and not hasattr(old, "origin"):
        raise CheckpointError(
            "the model has another module where sparse activations were saved; call "
            "gossamer.sparsify_activations(model) first"
        )
    mine = next(iter(old.parameters()), None)
    for name, own in new._parameters.items():
        kept = old._parameters.get(name)  # a bias, which other layers may share
        if kept is not None and own is not None and kept.shape == own.shape:
            new._parameters[name] = kept
    if mine is not None:
        kept_ones = set(map(id, old.parameters()))
        for parameter in [p for p in new.parameters() if id(p) not in kept_ones]:
            if parameter.requires_grad:  # its kind may freeze it
                parameter.requires_grad_(mine.requires_grad)
            if parameter.dtype != mine.dtype:
                parameter.data = parameter.data.to(mine.dtype)
    return new


__all__ = ["load", "planned", "tie", "with_networks"]
