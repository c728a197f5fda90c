"""sparsify() and densify(): swap the linear layers of a model in place, and back.

Everything that can fail happens before the first layer is swapped: a model is changed whole or
not at all. Nothing stays dense in silence: what was meant to be swapped and was not is told in
one warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TypeAlias

import torch
from torch import Tensor, nn

from gossamer.errors import GossamerError, PatternError
from gossamer.nn.contest import dense_wins
from gossamer.nn.linear import SparseLinear, dense_weight, is_conv1d, linear_of_parts
from gossamer.patterns import NM, Pattern, parse_pattern
from gossamer.sparsifiers import Distribution, allocate, random_mask
from gossamer.weight import SparseWeight, Transpose, check_dense

Score: TypeAlias = str | Callable[[str, Tensor], Tensor] | Mapping[str, Tensor]
Globs: TypeAlias = str | Sequence[str]

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


@dataclass
class _Site:
    """A dense layer to be swapped, under all the names by which the model knows it."""

    module: nn.Module
    names: list[str]
    pattern: Pattern
    overridden: bool

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def label(self) -> str:
        return f"layer {self.name!r}" if self.name else "the model"

    @property
    def source(self) -> nn.Parameter:
        """The Parameter itself; layers that share it are tied."""
        return self.module.weight  # type: ignore[return-value]


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
    batch: int = 512,
) -> nn.Module:
    """Replace the linear layers of a model by sparse ones, in place.

    Replaced are `nn.Linear` itself and transformers' `Conv1D`; a subclass may do more than its
    name says and stays, with a warning. Kept entries hold their dense values, not rescaled.
    Build the optimizer afterwards: the parameters are new. Layers that share one Parameter share
    one `SparseWeight`; where another kind of layer (an embedding) shares it, they stay dense, with
    a warning.

    A glob (`*`, `?`, `[…]`; `*` crosses dots) names a module and all that is inside it. One that
    matches nothing is an error, for it is a slip of the pen.

    Args:
        model: any module; when it is a linear layer itself, use what is returned.
        pattern: a pattern or its text, such as "2:4:v4" or "90%".
        include: globs of modules to be swapped.
        exclude: globs of modules to be left alone; stronger than `include`.
        overrides: pattern of the modules that a glob matches, None to leave them dense; the
            first that matches counts. Stronger than `include`, weaker than `exclude`.
        distribution: how layers share the sparsity, "uniform" or "erk", see
            `gossamer.sparsifiers.allocate`. Overridden layers take no part. Not for N:M.
        score: which entries are kept: "magnitude", "random" (from torch's generator), a function
            of (name, weight [out, in]) that returns scores, or scores by name.
        transpose: "packed" or "none", see `gossamer.weight.SparseWeight`.
        keep_dense_if_slower: time each layer against itself dense, forward and backward, after
            its result was compared with a dense product; where dense wins, it stays, with a
            warning that has both times.
        batch: rows of the input for that contest.

    Returns:
        The model.

    Raises:
        PatternError: a layer does not fit its pattern, a glob matches nothing, or nothing is left
            to swap; the model is unchanged.
        DTypeError, DeviceError: a layer has a dtype or device that the kernels have not.

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
    sites, told = _find(model, parse_pattern(pattern), _globs(include), _globs(exclude), overrides)
    told += _drop_shared_with_others(model, sites)
    if not sites:
        why = "; ".join(told) or "it has no nn.Linear or Conv1D that include= and exclude= leave"
        raise PatternError(f"sparsify found no layer to make sparse: {why}")
    _check(sites)
    _distribute(sites, distribution)

    weights: dict[int, SparseWeight] = {}
    layers: dict[int, SparseLinear] = {}
    for site in sites:
        if id(site.source) not in weights:
            try:
                weights[id(site.source)] = _sparse_weight(site, score, transpose)
            except GossamerError as error:
                raise type(error)(f"{site.label}: {error}") from None
        weight = weights[id(site.source)]
        layer = SparseLinear.of_parts(weight, _bias(site))
        _adopt(layer, site.module)
        layers[id(site.module)] = layer

    if keep_dense_if_slower:
        for site, tied in _tied_groups(sites).values():
            lost = dense_wins(site.name, layers[id(site.module)], batch)
            if lost is not None:
                told.append(lost)
                for other in tied:
                    del layers[id(other.module)]
    if told:
        warnings.warn("sparsify left dense: " + "; ".join(told), UserWarning, stacklevel=2)
    return _swap(model, layers)


def densify(model: nn.Module) -> nn.Module:
    """Replace every SparseLinear of a model by the `nn.Linear` of the same function, in place.

    Layers that share a `SparseWeight` share one Parameter afterwards. A `Conv1D` that sparsify()
    swapped comes back as `nn.Linear`.

    Args:
        model: any module; when it is a SparseLinear itself, use what is returned.

    Returns:
        The model.

    Example:
        >>> import torch
        >>> densify(SparseLinear(8, 4, pattern="2:4"))
        Linear(in_features=8, out_features=4, bias=True)
    """
    weights: dict[int, nn.Parameter] = {}
    layers: dict[int, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, SparseLinear):
            sparse = module.weight
            if id(sparse) not in weights:
                weights[id(sparse)] = nn.Parameter(
                    sparse.to_dense().detach(), sparse.values.requires_grad
                )
            linear = linear_of_parts(weights[id(sparse)], module.bias)
            _adopt(linear, module)
            layers[id(module)] = linear
    return _swap(model, layers)


def _find(
    model: nn.Module,
    pattern: Pattern,
    include: Sequence[str],
    exclude: Sequence[str],
    overrides: Mapping[str, str | Pattern | None] | None,
) -> tuple[list[_Site], list[str]]:
    """The layers to be swapped, and what is to be told of those that cannot be."""
    rules = {g: None if p is None else parse_pattern(p) for g, p in (overrides or {}).items()}
    names: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
        modules[id(module)] = module
    everything = [name for aliases in names.values() for name in aliases]
    for what, globs in (("include", include), ("exclude", exclude), ("overrides", list(rules))):
        for glob in globs:
            if not any(fnmatchcase(name, glob) for name in everything):
                linear = [n[0] for k, n in names.items() if _is_dense_linear(modules[k])]
                raise PatternError(
                    f"{what}={glob!r} matches no module of the model; its linear layers are "
                    f"{', '.join(linear) or 'none'}: correct the glob or drop it"
                )
    sites, told = [], []
    for key, aliases in names.items():
        module = modules[key]
        if not isinstance(module, nn.Linear) and not is_conv1d(module):
            continue
        if any(_covers(glob, name) for glob in exclude for name in aliases):
            continue
        rule = next((g for g in rules if any(_covers(g, name) for name in aliases)), None)
        if rule is None and not any(_covers(g, name) for g in include for name in aliases):
            continue
        chosen = pattern if rule is None else rules[rule]
        if chosen is None:
            continue
        if not _is_dense_linear(module):
            told.append(
                f"{aliases[0]} ({type(module).__name__}; only nn.Linear itself and Conv1D can be "
                "swapped)"
            )
            continue
        sites.append(_Site(module, aliases, chosen, rule is not None))
    return sites, told


def _drop_shared_with_others(model: nn.Module, sites: list[_Site]) -> list[str]:
    """Take out the layers whose Parameter someone else uses too; a line for each."""
    swapped = {id(site.module) for site in sites}
    holders: dict[int, str] = {}
    for name, module in model.named_modules():
        if id(module) not in swapped:
            for own, parameter in module.named_parameters(recurse=False):
                holders.setdefault(id(parameter), f"{name}.{own}" if name else own)
    told = [
        f"{site.name} (its weight is also {holders[id(site.source)]}, which is no layer to be "
        "swapped)"
        for site in sites
        if id(site.source) in holders
    ]
    sites[:] = [site for site in sites if id(site.source) not in holders]
    return told


def _check(sites: list[_Site]) -> None:
    """Everything about shapes, dtypes and ties that would stop the surgery, in one error."""
    misfits = {}
    for site in sites:
        weight = check_dense(dense_weight(site.module), site.label)
        try:
            site.pattern.check_shape(weight.shape[0], weight.shape[1], site.label)
        except PatternError as error:
            misfits[site.name] = str(error)
    if misfits:
        raise PatternError(
            "\n".join(misfits.values())
            + f"\nNothing was changed; exclude={list(misfits)} leaves what does not fit dense."
        )
    for site, others in _tied_groups(sites).values():
        for other in others:
            if other.pattern != site.pattern or is_conv1d(other.module) != is_conv1d(site.module):
                raise PatternError(
                    f"{site.label} and {other.label} share one weight, but were given "
                    f"{site.pattern} and {other.pattern}, or store it differently; give both one "
                    "pattern or exclude both (exclude=...)"
                )


def _distribute(sites: list[_Site], distribution: Distribution) -> None:
    """Give each layer that was not overridden its share of the sparsity."""
    free = {key: group for key, group in _tied_groups(sites).items() if not group[0].overridden}
    if not free:
        return
    pattern = next(iter(free.values()))[0].pattern
    if distribution != "uniform" and isinstance(pattern, NM):
        raise PatternError(
            f"distribution={distribution!r} was given with pattern {pattern}, whose sparsity is "
            "the same everywhere; use an unstructured or block pattern, or 'uniform'"
        )
    shapes = {s.name: tuple(dense_weight(s.module).shape) for s, _ in free.values()}
    shares = allocate(shapes, pattern.sparsity, distribution)
    if isinstance(pattern, NM):
        return
    for site, others in free.values():
        for other in others:
            other.pattern = replace(pattern, sparsity=shares[site.name])


def _tied_groups(sites: list[_Site]) -> dict[int, tuple[_Site, list[_Site]]]:
    """The layers by the Parameter that they share: the first, and all of them."""
    groups: dict[int, tuple[_Site, list[_Site]]] = {}
    for site in sites:
        groups.setdefault(id(site.source), (site, []))[1].append(site)
    return groups


def _sparse_weight(site: _Site, score: Score, transpose: Transpose) -> SparseWeight:
    dense = dense_weight(site.module).detach()
    mask = scores = None
    if isinstance(score, Mapping):
        found = [score[name] for name in site.names if name in score]
        if not found:
            raise PatternError("score= has no entry under this name; add one or exclude the layer")
        scores = found[0]
    elif callable(score):
        scores = score(site.name, dense)
    elif score == "random":
        seed = int(torch.randint(2**63 - 1, (), device="cpu"))
        mask = random_mask(tuple(dense.shape), site.pattern, seed)
    elif score != "magnitude":
        raise PatternError(
            f"score={score!r} was given; it is 'magnitude', 'random', a function or a mapping"
        )
    weight = SparseWeight.from_dense(dense, site.pattern, mask, scores, transpose)
    weight.values.requires_grad_(site.source.requires_grad)
    return weight


def _bias(site: _Site) -> nn.Parameter | None:
    return site.module.bias  # type: ignore[return-value]


def _adopt(new: nn.Module, old: nn.Module) -> None:
    """Carry over what a user hung onto the old layer: its mode and its hooks."""
    new.train(old.training)
    for name in _HOOKS:
        setattr(new, name, getattr(old, name))


def _swap(model: nn.Module, layers: Mapping[int, nn.Module]) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and id(child) in layers:
                parent._modules[name] = layers[id(child)]
    _leave_fast_paths(model)
    return layers.get(id(model), model)


def _leave_fast_paths(model: nn.Module) -> None:
    """Make torch's own encoders call their layers.

    In inference they hand raw weights to one fused dense kernel, and ask these attributes first.
    """
    for module in model.modules():
        if any(isinstance(child, SparseLinear) for child in module.modules()):
            if isinstance(module, nn.TransformerEncoderLayer):
                module.activation_relu_or_gelu = 0
            elif isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False


def _globs(globs: Globs) -> Sequence[str]:
    return [globs] if isinstance(globs, str) else list(globs)


def _covers(glob: str, name: str) -> bool:
    """Whether a glob matches a module or one that contains it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:i]), glob) for i in range(1, len(parts) + 1))


def _is_dense_linear(module: nn.Module) -> bool:
    return (type(module) is nn.Linear and "weight" in module._parameters) or is_conv1d(module)
