"""sparsify() and densify(): swap the linear layers and convolutions of a model in place, and back.

All checks run before the first layer is swapped, so a failed call does not change the model. One
warning names every matching layer that stays dense.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from gossamer.arguments import Size, check
from gossamer.errors import GossamerError, PatternError
from gossamer.masks import Distribution, magnitude_mask, random_mask
from gossamer.nn.empty_rows import warn_of_empty_rows
from gossamer.nn.foreign import tell_configs
from gossamer.nn.globs import Globs, as_globs
from gossamer.nn.layers.activation_sparse import ActivationSparseFFN
from gossamer.nn.layers.base import MaskedLayer
from gossamer.nn.layers.filters import matrix_of
from gossamer.nn.layers.in_place import become, check_swap, in_place
from gossamer.nn.layers.linear import dense_mask, dense_weight
from gossamer.nn.layers.origin import check_absorbed, put_back_absorbed
from gossamer.nn.layers.replacing import sparse_like
from gossamer.nn.layers.sparse import SparseLayer
from gossamer.nn.sites import (
    Site,
    check_sites,
    distribute,
    drop_shared_with_others,
    drop_without_zeros,
    find_sites,
    tied_groups,
)
from gossamer.nn.timing_check import dense_wins
from gossamer.patterns import Nonzeros, Pattern, Unstructured, parse_pattern, score_of
from gossamer.weight import SparseWeight, Transpose

Score: TypeAlias = str | Callable[[str, Tensor], Tensor] | Mapping[str, Tensor]


def sparsify(
    model: nn.Module,
    pattern: str | Pattern,
    include: Globs = ("*",),
    exclude: Globs = (),
    overrides: Mapping[str, str | Pattern | None] | None = None,
    distribution: Distribution = "uniform",
    score: Score = "magnitude",
    transpose: Transpose = "packed",
    keep_dense_if_slower: bool = False,
    batch: Size = 512,
) -> nn.Module:
    """Replace the linear layers and convolutions of a model by sparse layers, in place.

    `nn.Linear`, transformers' `Conv1D`, `nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d` are replaced. One
    warning names what else stays dense, one line per kind with its share of the weights:
    subclasses, depthwise and transposed convolutions, recurrent matrices, experts or projections
    in one parameter, bare matrices (embedding tables only in `summary`).
    A convolution's weight is the matrix [out, taps * channels], see `gossamer.nn.SparseConv2d`.
    Kept entries keep their dense values. The parameters are new: build the optimizer afterwards.
    Layers that share one Parameter share one `SparseWeight`; if another kind of layer (such as an
    embedding) shares it, they stay dense, with a warning.

    A glob (`*`, `?`, `[…]`; `*` crosses dots) names a module and all modules inside it, or a
    parameter that would stay dense with a warning. A glob that matches nothing raises PatternError
    (probably a typo).

    Args:
        model: any module; if it is such a layer itself, use the returned module.
        pattern: a pattern or its text, such as "2:4:v4" or "90%". "nonzeros" keeps the zeros of a
            model that was pruned elsewhere; a layer without zeros stays dense, with a warning, and
            under "nonzeros<=40%" also one of which more than 40 % are kept.
        include: globs of the modules to swap.
        exclude: globs of the modules to keep dense; they win over `include`.
        overrides: pattern per glob, None to keep the modules dense; the first matching glob
            counts. Overrides win over `include`, and `exclude` wins over overrides. Depthwise
            convolutions are swapped only where an override names them.
        distribution: how layers share the sparsity, "uniform" or "erk", see
            `gossamer.masks.allocate`. Overridden layers are left out. N:M allows only "uniform".
        score: how entries are ranked: "magnitude", "random" (from torch's generator), a name of
            `gossamer.patterns.register_sparsifier`, a function of (name, weight [out, in]) that
            returns scores, or scores by name. Scores of a
            convolution have the shape of its weight or of the matrix.
        transpose: "packed" or "none", see `gossamer.weight.SparseWeight`.
        keep_dense_if_slower: check and time each sparse layer against its dense original, forward
            and backward; a layer that is faster dense stays dense, with a warning that has both
            times.
        batch: input rows of the timing check; of a convolution, about so many output pixels.

    Returns:
        The model.

    Raises:
        PatternError: a layer does not fit its pattern, a glob matches nothing, or nothing is left
            to swap; the model is unchanged.
        ShapeError: a lazy layer has no shape before the model's first call.
        DTypeError: an argument has another type, or the kernels do not support a layer's dtype.
        DeviceError: the kernels do not support a layer's device.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 2))
        >>> sparsify(model, "2:4", exclude="1")
        Sequential(
          (0): SparseLinear(
            in_features=8, out_features=16, bias=True
            (weight): SparseWeight(16x8, pattern=2:4, nnz=64, dtype=torch.float32)
          )
          (1): Linear(in_features=16, out_features=2, bias=True)
        )
    """
    pattern = parse_pattern(pattern)
    check(sparsify, locals())
    sites, notes = _checked_sites(model, pattern, include, exclude, overrides)
    distribute(sites, distribution)

    weights: dict[int, SparseWeight] = {}
    layers: dict[int, SparseLayer] = {}
    for site in sites:
        if id(site.source) not in weights:
            try:
                weights[id(site.source)] = _sparse_weight(site, score, transpose)
            except GossamerError as error:
                raise type(error)(f"{site.label}: {error}") from None
        weight = weights[id(site.source)]
        layers[id(site.module)] = sparse_like(site.module, weight, _bias(site))

    if keep_dense_if_slower:
        for site, tied in tied_groups(sites).values():
            lost = dense_wins(site.name, layers[id(site.module)], batch)
            if lost is not None:
                notes.append(lost)
                for other in tied:
                    del layers[id(other.module)]
    check_swap(model, layers)
    if notes:
        warnings.warn("sparsify left dense: " + "\n  ".join(notes), UserWarning, stacklevel=2)
    model = _swap(model, layers)
    warn_of_empty_rows(model, "sparsify", [s.module for s in sites if id(s.module) in layers])
    return model


def replace_linears(
    model: nn.Module,
    make: Callable[[str, nn.Module, Pattern, int], nn.Module],
    pattern: str | Pattern,
    include: Globs = ("*",),
    exclude: Globs = (),
    distribution: Distribution = "uniform",
    convolutions: bool = False,
) -> nn.Module:
    """Replace the linear layers of a model by the results of a function, in place.

    Args:
        model: any module; if it is a linear layer itself, use the returned module.
        make: function of (name, layer, pattern, index) that returns the new layer.
        pattern: a pattern or its text.
        include: globs of the modules to swap.
        exclude: globs of the modules to keep dense.
        distribution: how layers share the sparsity, as in `sparsify`.
        convolutions: whether to replace convolutions too.

    Returns:
        The model.

    Raises:
        PatternError: a layer does not fit its pattern, two layers share one weight, a glob matches
            nothing, or nothing is left to swap; the model is unchanged.
    """
    sites, notes = _checked_sites(model, pattern, include, exclude, None, convolutions)
    for site, tied in tied_groups(sites).values():
        if len(tied) > 1:
            raise PatternError(
                f"{site.label} and {tied[1].label} share one weight, which would get two masks; "
                "untie them, or exclude both (exclude=...)"
            )
    distribute(sites, distribution)
    layers: dict[int, nn.Module] = {}
    for index, site in enumerate(sites):
        try:
            layer = make(site.name, site.module, site.pattern, index)
        except GossamerError as error:
            raise type(error)(f"{site.label}: {error}") from None
        layers[id(site.module)] = layer
    check_swap(model, layers)
    if notes:
        warnings.warn("left dense: " + "\n  ".join(notes), UserWarning, stacklevel=3)
    model = _swap(model, layers)
    warn_of_empty_rows(model, "prepare", [site.module for site in sites])
    return model


def densify(model: nn.Module) -> nn.Module:
    """Replace every layer with a mask by an equivalent layer of torch, in place.

    Layers that share a `SparseWeight` share one Parameter afterwards. A swapped `Conv1D` becomes an
    `nn.Linear`. A recipe's layer keeps the weight that its forward pass uses; a layer of several
    sparse layers keeps its form, with dense parts. What `sparsify_activations` replaced is
    restored, with its classes and the names of its parameters; an activation that it changed stays
    ReLU.

    Args:
        model: any module; if it is a layer with a mask itself, use the returned module.

    Returns:
        The model.

    Raises:
        PatternError: the layers of one feed-forward network are not all in the model.

    Example:
        >>> import torch
        >>> from gossamer import SparseLinear
        >>> densify(SparseLinear(8, 4, pattern="2:4"))
        Linear(in_features=8, out_features=4, bias=True)
    """
    check(densify, locals())
    weights: dict[nn.Module, nn.Parameter] = {}
    transposed: dict[int, nn.Parameter] = {}
    layers: dict[int, nn.Module] = {}
    networks = ActivationSparseFFN.find_in(model)
    for name, network in networks.items():
        check_absorbed(model, name, network.origin)
    for network in networks.values():
        if network.origin is not None:
            layers[id(network)] = network.origin.restore(network.parts, transposed)
        elif network.sparse_parts:
            layers[id(network)] = network.to_dense()
    for module in model.modules():
        if isinstance(module, MaskedLayer):
            linear = module.to_dense()
            linear.weight = weights.setdefault(module.weight_owner, linear.weight)  # type: ignore[arg-type]
            if module.bias is None or len(module.bias) == len(linear.weight):
                linear.bias = module.bias  # type: ignore[assignment]  # of a split layer a part
            layers[id(module)] = linear
    check_swap(model, layers)
    model = _swap(model, layers)
    put_back_absorbed(model)
    # What was put back may have sparse layers.
    return _swap(model, layers) if networks else model


def _checked_sites(
    model: nn.Module,
    pattern: str | Pattern,
    include: Globs,
    exclude: Globs,
    overrides: Mapping[str, str | Pattern | None] | None,
    convolutions: bool = True,
) -> tuple[list[Site], list[str]]:
    """Return the checked layers to swap, and notes about the others."""
    sites, notes = find_sites(
        model,
        parse_pattern(pattern),
        as_globs(include, "include"),
        as_globs(exclude, "exclude"),
        overrides,
        convolutions,
    )
    notes += drop_shared_with_others(model, sites)
    check_sites(sites)
    notes += drop_without_zeros(sites)
    if not sites:
        kinds = "nn.Linear, Conv1D or convolution" if convolutions else "nn.Linear or Conv1D"
        why = "; ".join(notes) or f"include= and exclude= leave no {kinds}"
        raise PatternError(f"sparsify found no layer to make sparse: {why}")
    return sites, notes


def _sparse_weight(site: Site, score: Score, transpose: Transpose) -> SparseWeight:
    dense = dense_weight(site.module).detach()
    pattern, mask, scores = site.pattern, dense_mask(site.module), None
    if isinstance(score, str):
        score = score_of(score) or score
    if isinstance(pattern, Nonzeros):
        # An override may be one of several patterns, of which the others need the score.
        if score != "magnitude" and not site.overridden:
            raise PatternError(
                f"score= was given with pattern {site.pattern}, which keeps what is not zero: drop "
                "score=, or choose a pattern such as 90%"
            )
        if mask is not None:  # of torch.nn.utils.prune, which may keep zeros
            mask = magnitude_mask(mask.to(dense.dtype), pattern)
            pattern = Unstructured.keeping(int(mask.sum()), mask.numel(), pattern.vector)
    elif isinstance(score, Mapping):
        found = [score[name] for name in site.names if name in score]
        if not found:
            raise PatternError("score= has no entry of this name; add one or exclude the layer")
        scores = found[0]
    elif callable(score):
        scores = score(site.name, dense)
    elif score == "random":
        seed = int(torch.randint(2**63 - 1, (), device="cpu"))
        mask = random_mask(tuple(dense.shape), site.pattern, seed)
    elif score != "magnitude":
        raise PatternError(
            f"score={score!r} was given; use 'magnitude', 'random', a name that "
            "gossamer.patterns.register_sparsifier knows, a function or a mapping"
        )
    if isinstance(scores, Tensor) and scores.shape == site.source.shape != dense.shape:
        scores = matrix_of(scores)
    weight = SparseWeight.from_dense(dense, pattern, mask, scores, transpose)
    weight.values.requires_grad_(site.source.requires_grad)
    return weight


def _bias(site: Site) -> nn.Parameter | None:
    return site.module.bias  # type: ignore[return-value]


def _adopt(new: nn.Module, old: nn.Module) -> None:
    """Give a module the training mode and the hooks of the one in whose place it comes."""
    new.train(old.training)
    for name in vars(nn.Module()):
        if "_hook" in name:
            setattr(new, name, getattr(old, name))


def _swap(model: nn.Module, layers: Mapping[int, nn.Module]) -> nn.Module:
    """Put new layers in the places of old ones, by the ids of these; in place where it goes."""
    others: dict[int, nn.Module] = {}
    for module in list(model.modules()):
        if (new := layers.get(id(module), module)) is module:
            continue
        if in_place(module, new):
            become(module, new)
        else:
            _adopt(new, module)
            others[id(module)] = new
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and id(child) in others:
                parent._modules[name] = others[id(child)]
    _leave_fast_paths(model)
    model = others.get(id(model), model)
    tell_configs(model)
    return model


def _leave_fast_paths(model: nn.Module) -> None:
    """Make torch's encoders call their layers.

    In inference they pass raw weights to a fused dense kernel, unless these attributes forbid it.
    """
    for module in model.modules():
        sparse = any(isinstance(child, MaskedLayer) for child in module.modules())
        if sparse or ActivationSparseFFN.find_in(module):
            if isinstance(module, nn.TransformerEncoderLayer):
                module.activation_relu_or_gelu = 0
            elif isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False


def replace_modules(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Replace modules of a model in place; the new ones get the old hooks and training mode.

    Args:
        model: any module; if it is replaced itself, use the returned module.
        new: new module by old module.

    Returns:
        The model.
    """
    layers = {id(old): layer for old, layer in new.items()}
    check_swap(model, layers)
    return _swap(model, layers)
