"""Finds the layers of a model to replace, and checks them before the surgery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from gossamer.errors import PatternError, ShapeError
from gossamer.masks import Distribution, allocate, magnitude_mask
from gossamer.nn.computed import PRUNED, why_computed
from gossamer.nn.globs import check_globs, covers
from gossamer.nn.layers.linear import dense_weight, is_conv1d, is_pruned, trained_weight
from gossamer.nn.layers.replacing import check_pattern, is_convolution, is_depthwise
from gossamer.nn.left_dense import BY_DESIGN, LINEAR, dense_kinds, has_no_shape, is_dense_linear
from gossamer.nn.parameter_sites import ParameterSite
from gossamer.patterns import Nonzeros, Pattern, parse_pattern
from gossamer.weight import check_dense


@dataclass
class Site:
    """A dense layer to replace, with all its names in the model."""

    module: nn.Module
    names: list[str]
    pattern: Pattern
    overridden: bool

    @property
    def name(self) -> str:
        """The first name of the layer."""
        return self.names[0]

    @property
    def label(self) -> str:
        """The name of the layer in error messages."""
        return f"layer {self.name!r}" if self.name else "the model"

    @property
    def source(self) -> nn.Parameter:
        """The weight's Parameter; layers with the same one are tied."""
        return trained_weight(self.module)


def find_sites(
    model: nn.Module,
    pattern: Pattern,
    include: Sequence[str],
    exclude: Sequence[str],
    overrides: Mapping[str, str | Pattern | None] | None,
    convolutions: bool = True,
    parameters: Sequence[ParameterSite] = (),
    named: Sequence[str] = (),
) -> tuple[list[Site], list[str]]:
    """Return the layers to replace, and notes about layers that cannot be replaced.

    They are linear layers, and convolutions if these are asked for; depthwise ones only where an
    override names them. Of the parameters to replace, the layers that stand for their matrices are
    among them; those whose name one of the globs `named` matches need no other one.
    """
    rules = {g: None if p is None else parse_pattern(p) for g, p in (overrides or {}).items()}
    names: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
        modules[id(module)] = module
    found = {
        key: module
        for key, module in modules.items()
        if is_dense_linear(module)
        or (convolutions and is_convolution(module) and why_computed(module) is None)
        or (why_computed(module) == PRUNED and (convolutions or not is_convolution(module)))
    }
    unshaped = {key: m for key, m in modules.items() if has_no_shape(m, convolutions)}
    globs = {"include": include, "exclude": exclude, "overrides": list(rules)}
    others = [n for kind in dense_kinds(model) if kind.what != LINEAR for n in kind.names]
    others += [n for p in parameters for i in range(len(p.parts)) for n in p.part_names(i)]
    convolved = any(is_convolution(module) for module in found.values())
    what = "linear layers and convolutions" if convolved else "linear layers"
    check_globs(model, globs, what, [names[key][0] for key in found | unshaped], others)

    def choose(aliases: Sequence[str], wanted: bool = False) -> tuple[Pattern | None, bool]:
        """Return the pattern for a layer of these names, and whether an override gave it."""
        if any(covers(glob, name) for glob in exclude for name in aliases):
            return None, False
        rule = next((g for g in rules if any(covers(g, name) for name in aliases)), None)
        if rule is not None:
            return rules[rule], True
        wanted = wanted or any(covers(g, n) for g in include for n in aliases)
        return pattern if wanted else None, False

    for key, module in unshaped.items():
        if choose(names[key])[0] is not None:
            raise ShapeError(
                f"layer {names[key][0]!r} is a {type(module).__name__} without a shape; run the "
                "model once on an input, which gives it one, or exclude the layer (exclude=...)"
            )
    sites = []
    for key, module in found.items():
        chosen, overridden = choose(names[key])
        kept = isinstance(chosen, Nonzeros) or not is_pruned(module)
        if chosen is not None and kept and (overridden or not is_depthwise(module)):
            sites.append(Site(module, names[key], chosen, overridden))
    swapped = {name for site in sites for name in site.names}
    for parameter in parameters:
        wanted = any(fnmatchcase(name, glob) for glob in named for name in parameter.names)
        names_of = [parameter.part_names(index) for index in range(len(parameter.parts))]
        found_for = [choose(aliases, wanted) for aliases in names_of]
        if all(chosen is not None for chosen, _ in found_for):
            swapped |= {*parameter.names, *parameter.layers}
            for part, aliases, (chosen, overridden) in zip(
                parameter.parts, names_of, found_for, strict=True
            ):
                assert chosen is not None  # noqa: S101
                sites.append(Site(part, aliases, chosen, overridden))
    kinds = dense_kinds(model, lambda n: n not in swapped and choose([n])[0] is not None)
    return sites, [str(kind) for kind in kinds if kind.what not in BY_DESIGN]


def drop_shared_with_others(model: nn.Module, sites: list[Site]) -> list[str]:
    """Remove the layers whose Parameter another kind of module uses too; return one note each."""
    swapped = {id(site.module) for site in sites}
    holders: dict[int, str] = {}
    for name, module in model.named_modules():
        if id(module) not in swapped:
            for own, parameter in module.named_parameters(recurse=False):
                holders.setdefault(id(parameter), f"{name}.{own}" if name else own)
    notes = [
        f"{site.name} (its weight is also {holders[id(site.source)]}, which is not a layer to swap)"
        for site in sites
        if id(site.source) in holders
    ]
    sites[:] = [site for site in sites if id(site.source) not in holders]
    return notes


def drop_without_zeros(sites: list[Site]) -> list[str]:
    """Remove the layers that were to keep their own zeros and have too few; return their notes."""
    notes = {}
    for site in sites:
        if not isinstance(site.pattern, Nonzeros):
            continue
        mask = magnitude_mask(dense_weight(site.module), site.pattern)
        kept = int(mask.sum())
        if kept == mask.numel():
            found = "no zeros in it"
        elif kept > site.pattern.densest * mask.numel():
            found = f"{100 * kept / mask.numel():.3g} % of it kept"
        else:
            continue
        notes[id(site)] = f"{site.name} (pattern {site.pattern} finds {found})"
    sites[:] = [site for site in sites if id(site) not in notes]
    return list(notes.values())


def check_sites(sites: list[Site]) -> None:
    """Check all shapes, dtypes and ties before the surgery.

    Raises:
        PatternError: layers do not fit their patterns (all are named), or tied layers differ.
        DTypeError, DeviceError: the kernels do not support a layer's dtype or device.
    """
    misfits = {}
    for site in sites:
        check_dense(dense_weight(site.module), site.label)
        try:
            check_pattern(site.module, site.pattern, site.label)
        except PatternError as error:
            misfits[site.name] = str(error)
    if misfits:
        raise PatternError(
            "\n".join(misfits.values())
            + f"\nNothing was changed; exclude={list(misfits)} keeps these layers dense."
        )
    for site, others in tied_groups(sites).values():
        for other in others:
            if other.pattern != site.pattern or is_conv1d(other.module) != is_conv1d(site.module):
                raise PatternError(
                    f"{site.label} and {other.label} share one weight, but were given "
                    f"{site.pattern} and {other.pattern}, or store it differently; give both one "
                    "pattern or exclude both (exclude=...)"
                )


def distribute(sites: list[Site], distribution: Distribution) -> None:
    """Set the sparsity of each layer without an override."""
    free = {key: group for key, group in tied_groups(sites).items() if not group[0].overridden}
    if not free:
        return
    pattern = next(iter(free.values()))[0].pattern
    if not pattern.adjustable:
        if distribution != "uniform":
            own = "the same everywhere" if any(pattern.group) else "each layer's own"
            raise PatternError(
                f"distribution={distribution!r} was given with pattern {pattern}, whose sparsity "
                f"is {own}; use an unstructured or block pattern, or 'uniform'"
            )
        return
    shapes = {s.name: tuple(dense_weight(s.module).shape) for s, _ in free.values()}
    shares = allocate(shapes, pattern.sparsity, distribution)
    for site, others in free.values():
        for other in others:
            other.pattern = pattern.at_sparsity(shares[site.name])


def tied_groups(sites: list[Site]) -> dict[int, tuple[Site, list[Site]]]:
    """Group the layers by their Parameter: the first layer of each group, and all of them."""
    groups: dict[int, tuple[Site, list[Site]]] = {}
    for site in sites:
        groups.setdefault(id(site.source), (site, []))[1].append(site)
    return groups
