"""sparsify() and densify(): swap the linear layers and convolutions of a model in place, and back.

All checks run before the first layer is swapped, so a failed call does not change the model. One
warning names every matching layer that stays dense.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.arguments import Size, check
from gossamer.errors import GossamerError, PatternError
from gossamer.masks import Distribution, magnitude_mask
from gossamer.nn.empty_rows import warn_of_empty_rows
from gossamer.nn.globs import Globs, as_globs, covers
from gossamer.nn.layers.activation_sparse import ActivationSparseFFN
from gossamer.nn.layers.base import MaskedLayer
from gossamer.nn.layers.linear import dense_mask, dense_weight
from gossamer.nn.layers.origin import check_absorbed, put_back_absorbed
from gossamer.nn.layers.parameter import SparseParameter
from gossamer.nn.layers.permuted import order_of
from gossamer.nn.layers.replacing import is_convolution, sparse_like
from gossamer.nn.parameter_sites import ParameterSite, find_parameter_sites
from gossamer.nn.probing import taken_back, try_out, turned_parameters
from gossamer.nn.ranking import Score, ranking
from gossamer.nn.sites import (
    Site,
    check_sites,
    distribute,
    drop_shared_with_others,
    drop_without_zeros,
    find_sites,
    tied_groups,
)
from gossamer.nn.swapping import check_swap, swap
from gossamer.nn.timing_check import dense_wins
from gossamer.patterns import Nonzeros, Pattern, Unstructured, parse_pattern
from gossamer.weight import SparseWeight, Transpose


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
    parameters: Globs = (),
    example: Any = None,
    group_rows: Globs | bool = False,
) -> nn.Module:
    """Replace the weights of a model by sparse weights, in place.

    `nn.Linear`, transformers' `Conv1D`, `nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d` become sparse
    layers. The projections of `nn.MultiheadAttention`, the matrices of `nn.LSTM`, `GRU`, `RNN` and
    their cells, `nn.Bilinear` and the experts of transformers keep their modules; a
    `SparseParameter` comes in the place of each parameter, by which they multiply as before. So
    does a parameter that `parameters` names. One warning names what else stays dense, one line
    per kind with its share of the weights: subclasses, depthwise and transposed convolutions, bare
    matrices (embedding tables only in `summary`).
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
        parameters: globs of further parameters to swap, matrices [out, in] or stacks of such that a
            module multiplies by in its own code, such as `F.linear(x, self.w)` or `x @ self.w.t()`.
            A matrix [in, out] works too; without `example`, its N:M runs along its outputs.
        example: arguments of a call of the model: a tensor, a tuple, or a mapping by keyword. One
            call before tells which of `parameters` are [in, out]; one after finds code that uses a
            weight in a way that has no sparse form, before the training does.
        group_rows: linear layers, True for all or globs, in which rows that want the same columns
            become neighbours before V of them share their columns, see `gossamer.masks.group_rows`.
            Such a layer is a `gossamer.nn.PermutedLinear`, which gathers its outputs; where the
            next layer can take the order over, call `gossamer.pruning.group_hidden` before.

    Returns:
        The model.

    Raises:
        PatternError: a layer does not fit its pattern, a glob matches nothing, nothing is left to
            swap, something that hangs on a layer cannot be carried over, or the sparse model fails
            on the example; the model is unchanged.
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
    named = as_globs(parameters, "parameters")
    turned = turned_parameters(model, example) if named and example is not None else ()
    found = find_parameter_sites(model, named, turned)
    sites, notes = _checked_sites(model, pattern, include, exclude, overrides, True, found, named)
    distribute(sites, distribution)

    weights: dict[int, tuple[SparseWeight, Tensor | None]] = {}
    layers: dict[int, nn.Module] = {}
    inside = {id(part) for one in found for part in one.parts}
    for site in sites:
        if id(site.source) not in weights:
            try:
                group = id(site.module) not in inside and _is_grouped(site, group_rows)
                weights[id(site.source)] = _sparse_weight(site, score, transpose, group)
            except GossamerError as error:
                raise type(error)(f"{site.label}: {error}") from None
        weight, order = weights[id(site.source)]
        layers[id(site.module)] = sparse_like(site.module, weight, _bias(site), order)

    if keep_dense_if_slower:
        for site, tied in tied_groups(sites).values():
            lost = dense_wins(site.name, layers[id(site.module)], batch)  # type: ignore[arg-type]
            if lost is not None:
                notes.append(lost)
                for other in tied:
                    del layers[id(other.module)]
    watched = [s.module for s in sites if id(s.module) in layers]
    watched += _put_together(found, layers)
    check_swap(model, layers)
    if notes:
        warnings.warn("sparsify left dense: " + "\n  ".join(notes), UserWarning, stacklevel=2)
    with taken_back(model) if example is not None else nullcontext():
        swapped = swap(model, layers)
        if example is not None:
            try_out(swapped, example)
    warn_of_empty_rows(swapped, "sparsify", watched)
    return swapped


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
    found = find_parameter_sites(model)
    sites, notes = _checked_sites(model, pattern, include, exclude, None, convolutions, found)
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
    watched = [*(site.module for site in sites), *_put_together(found, layers)]
    check_swap(model, layers)
    if notes:
        warnings.warn("left dense: " + "\n  ".join(notes), UserWarning, stacklevel=3)
    model = swap(model, layers)
    warn_of_empty_rows(model, "prepare", watched)
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
    parameters = SparseParameter.find_in(model)
    inside = {layer for parameter in parameters for layer in parameter.children()}
    for parameter in parameters:
        layers[id(parameter)] = parameter.to_dense()  # type: ignore[assignment]
    for module in model.modules():
        if isinstance(module, MaskedLayer) and module not in inside:
            linear = module.to_dense()
            linear.weight = weights.setdefault(module.weight_owner, linear.weight)  # type: ignore[arg-type]
            if module.bias is None or len(module.bias) == len(linear.weight):
                linear.bias = module.bias  # type: ignore[assignment]  # of a split layer a part
            layers[id(module)] = linear
    check_swap(model, layers)
    model = swap(model, layers)
    put_back_absorbed(model)
    # What was put back may have sparse layers.
    return swap(model, layers) if networks else model


def _checked_sites(
    model: nn.Module,
    pattern: str | Pattern,
    include: Globs,
    exclude: Globs,
    overrides: Mapping[str, str | Pattern | None] | None,
    convolutions: bool = True,
    parameters: Sequence[ParameterSite] = (),
    named: Sequence[str] = (),
) -> tuple[list[Site], list[str]]:
    """Return the checked layers to swap, and notes about the others."""
    sites, notes = find_sites(
        model,
        parse_pattern(pattern),
        as_globs(include, "include"),
        as_globs(exclude, "exclude"),
        overrides,
        convolutions,
        parameters,
        named,
    )
    notes += drop_shared_with_others(model, sites)
    check_sites(sites)
    notes += drop_without_zeros(sites)
    if not sites:
        kinds = "nn.Linear, Conv1D or convolution" if convolutions else "nn.Linear or Conv1D"
        why = "; ".join(notes) or f"include= and exclude= leave no {kinds}"
        raise PatternError(f"sparsify found no layer to make sparse: {why}")
    return sites, notes


def _is_grouped(site: Site, group_rows: Globs | bool) -> bool:
    """Whether the rows of a layer are to be grouped."""
    if isinstance(group_rows, bool):
        chosen = group_rows
    else:
        globs = as_globs(group_rows, "group_rows")
        chosen = any(covers(glob, name) for glob in globs for name in site.names)
    return chosen and not is_convolution(site.module) and not isinstance(site.pattern, Nonzeros)


def _sparse_weight(
    site: Site, score: Score, transpose: Transpose, group: bool
) -> tuple[SparseWeight, Tensor | None]:
    """Return the weight, and the order of its rows if they were grouped."""
    dense = dense_weight(site.module).detach()
    pattern, mask, scores = site.pattern, dense_mask(site.module), None
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
    else:
        drawn, scores = ranking(score, site.names, dense, site.source.shape, pattern)
        mask = mask if drawn is None else drawn
    order = order_of(dense, pattern, mask, scores) if group else None
    if order is not None and torch.equal(order, torch.arange(len(order))):
        order = None
    if order is not None:
        dense = dense[order]
        mask, scores = (t if t is None else t[order] for t in (mask, scores))
    weight = SparseWeight.from_dense(dense, pattern, mask, scores, transpose)
    weight.values.requires_grad_(site.source.requires_grad)
    return weight, order


def _put_together(
    parameters: Sequence[ParameterSite], layers: dict[int, nn.Module]
) -> list[nn.Module]:
    """Replace, in new layers by the ids of old ones, the parts of parameters by their wholes.

    Returns:
        The layers that stand in parameters.
    """
    placed: list[nn.Module] = []
    for site in parameters:
        whole = site.of(layers)
        for part in site.parts:
            layers.pop(id(part), None)
        if whole is not None:
            layers[id(site.parameter)] = whole
            placed += whole.children()
    return placed


def _bias(site: Site) -> nn.Parameter | None:
    return site.module.bias  # type: ignore[return-value]
