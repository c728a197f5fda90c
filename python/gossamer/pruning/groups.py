"""Groups: what can be removed from a model by itself, with its parameters, cost and size.

A group is a set of joined channels, or one unit. A family is the groups of one layer's outputs, and
of all layers that share some of them: they compete for the family's places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from gossamer.nn.globs import covers
from gossamer.pruning.analysis import Analysis
from gossamer.pruning.channels import Channels, Channelwise, Mixing
from gossamer.pruning.units import Unit, energies
from gossamer.pruning.weights import is_weighted, oriented

Budget: TypeAlias = Literal["flops", "bytes"]


class Site(NamedTuple):
    """The parameters of one layer, or of the units of one module, by group.

    Attributes:
        name: name of the module.
        rows: int64 [outputs], the group of each output.
        columns: int64 [inputs], the group of each input; None if the layer keeps channels apart.
        price: cost per pair of an output and an input, or per output.
        extra: cost per output beside it.
        multiple: the number of outputs is a multiple of it; 0 if it does not matter.
    """

    name: str
    rows: Tensor
    columns: Tensor | None
    price: float
    extra: float
    multiple: int


class Family(NamedTuple):
    """Groups that compete for places.

    Attributes:
        name: name of the first module that makes them.
        groups: int64, their numbers.
        allowed: numbers of groups that may be kept, ascending; the last is all.
    """

    name: str
    groups: Tensor
    allowed: tuple[int, ...]


class Groups:
    """The groups of a model that has been followed.

    Args:
        analysis: what is known of the channels.
        model: the model, or a copy.
        budget: what a group costs: operations on the example, or bytes of parameters.
        total: the cost of the whole model.
        round_to: the numbers of features that layers keep are multiples of it.
        exclude: globs of modules that do not change.

    Attributes:
        of: int64 [channels], the group of each channel.
        count: number of groups.
        free: bool [groups], True for those that may be removed.
        sites: parameters by group.
        families: the free groups.
    """

    def __init__(
        self,
        analysis: Analysis,
        model: nn.Module,
        budget: Budget,
        total: float,
        round_to: int,
        exclude: Sequence[str],
    ) -> None:
        self.analysis, self.budget = analysis, budget
        channels = analysis.channels
        for layer in analysis.layers:
            if any(covers(glob, layer.name) for glob in exclude):
                source = layer.source.ids if isinstance(layer, Mixing) else layer.source
                channels.pin(torch.cat([source, layer.out]), "excluded")
        for unit, ids in analysis.units:
            if any(covers(glob, unit.name) for glob in exclude):
                channels.pin(ids, "excluded")
        roots = channels.roots(torch.arange(len(channels)))
        found, self.of = torch.unique(roots, return_inverse=True)
        self.count = len(found)
        self.free = torch.ones(self.count, dtype=torch.bool)
        self.free[self.of[channels.pinned()]] = False
        self.sites = [_layer_site(self.of, model, layer, budget) for layer in analysis.layers]
        self.sites += [
            _unit_site(self.of[ids], model, unit, budget) for unit, ids in analysis.units
        ]
        self.families = self._families(round_to)
        self.rest = total - self._structural(torch.ones(self.count, dtype=torch.bool))

    def cost(self, kept: Tensor) -> float:
        """Return the cost of the model with some groups, bool [groups]."""
        return self.rest + self._structural(kept)

    def _structural(self, kept: Tensor) -> float:
        total = 0.0
        for site in self.sites:
            rows = int(kept[site.rows].sum())
            columns = 1 if site.columns is None else int(kept[site.columns].sum())
            total += rows * (columns * site.price + site.extra)
        return total

    def hold(self, families: Sequence[Family], why: str) -> None:
        """Keep all groups of some families."""
        for family in families:
            self.free[family.groups] = False
            mine = torch.isin(self.of, family.groups).nonzero().flatten()
            self.analysis.channels.pin(mine, why)
        self.families = [f for f in self.families if bool(self.free[f.groups].all())]

    def alive(self, kept: Tensor) -> Tensor:
        """Return the channels of some groups, bool [channels]."""
        return kept[self.of]

    def sizes(self, model: nn.Module) -> Tensor:
        """Return the relative size of each group's parameters, float64 [groups].

        The sums of squares of a group's outputs and of its inputs are divided by the layer's mean,
        so that each layer counts alike; then the mean over the layers is taken.
        """
        total = torch.zeros(self.count, dtype=torch.float64)
        seen = torch.zeros(self.count, dtype=torch.float64)

        def add(groups: Tensor, squares: Tensor) -> None:
            mean = squares.mean()
            if float(mean) > 0:
                total.index_add_(0, groups, squares / mean)
                seen.index_add_(0, groups, torch.ones(len(groups), dtype=torch.float64))

        for layer in self.analysis.layers:
            module = model.get_submodule(layer.name)
            if isinstance(layer, Mixing):
                weight = oriented(module).double()
                squares = weight.flatten(2).square().sum(2) if weight.dim() > 2 else weight.square()
                add(self.of[layer.out], squares.sum(1).cpu())
                add(self.of[layer.source.ids], squares.sum(0).cpu())
                continue
            scale = module.weight
            if isinstance(scale, Tensor) and len(scale) == len(layer.out):
                rows = scale.detach().double().view(len(scale), -1)
                add(self.of[layer.out], rows.square().sum(1).cpu())
        for unit, ids in self.analysis.units:
            add(self.of[ids], energies(unit.slices(model.get_submodule(unit.name))))
        return total / seen.clamp(min=1)

    def parts(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Return the parameters that make the groups' features.

        Returns:
            Views [rows, ...] of parameters of the model, with the group of each row, int64 [rows].
            A group whose rows are all zero gives a constant feature.
        """
        found: list[tuple[Tensor, Tensor]] = []
        for layer in self.analysis.layers:
            module = model.get_submodule(layer.name)
            if isinstance(module, nn.PReLU):
                continue
            tensors = [oriented(module) if isinstance(layer, Mixing) else module.weight]
            tensors.append(module.bias)
            own = [t.detach() for t in tensors if isinstance(t, Tensor)]
            found += [(tensor, self.of[layer.out]) for tensor in own]
        for unit, ids in self.analysis.units:
            slices = unit.slices(model.get_submodule(unit.name))
            found += [(part, self.of[ids]) for part in slices]
        return found

    def squares(self, model: nn.Module) -> Tensor:
        """Return the sum of squares of each group's `parts`, float64 [groups]."""
        total = torch.zeros(self.count, dtype=torch.float64)
        for part, groups in self.parts(model):
            rows = torch.linalg.vector_norm(
                part.flatten(1) if part.dim() > 1 else part[:, None], dim=1
            )
            total.index_add_(0, groups, rows.double().square().cpu())
        return total

    def scale_(self, model: nn.Module, gains: Tensor) -> None:
        """Multiply each group's `parts` in a model by a number, float64 [groups], in place."""
        for part, groups in self.parts(model):
            gain = gains[groups].to(part)
            part.mul_(gain.view(-1, *[1] * (part.dim() - 1)))

    @torch.no_grad()
    def zero_(self, model: nn.Module, kept: Tensor) -> None:
        """Zero the parameters of all other groups in a model, in place."""
        for part, groups in self.parts(model):
            part[~kept[groups]] = 0
        for layer in self.analysis.layers:
            if isinstance(layer, Mixing):
                weight = oriented(model.get_submodule(layer.name))
                weight[:, ~kept[self.of[layer.source.ids]]] = 0

    def notes(self, model: nn.Module) -> list[str]:
        """Return what keeps its features, and why: layers with the same reason in one line."""
        because: dict[str, list[str]] = {}
        channels = self.analysis.channels
        made = [(layer.name, layer.out) for layer in self.analysis.layers]
        made += [(unit.name, ids) for unit, ids in self.analysis.units]
        for name, ids in made:
            reasons = channels.why(ids)
            for why in dict.fromkeys(why for why in reasons if why is not None):
                some = "" if reasons.count(why) == len(reasons) else " in part"
                because.setdefault(why, []).append(name + some)
        for name, why in self.analysis.skipped.items():
            if is_weighted(model.get_submodule(name)):
                because.setdefault(why, []).append(name)
        return [f"{', '.join(names)}: {why}" for why, names in because.items()]

    def _families(self, round_to: int) -> list[Family]:
        related = Channels()
        related.fresh(self.count)
        made = [site for site in self.sites if len(site.rows)]
        names: dict[int, str] = {}
        for site in made:
            free = site.rows[self.free[site.rows]]
            related.join(free[:1].expand(len(free)), free)
            for group in free.tolist():
                names.setdefault(group, site.name)
        roots = related.roots(torch.arange(self.count))
        families = []
        for root in torch.unique(roots[self.free]).tolist():
            groups = ((roots == root) & self.free).nonzero().flatten()
            name = names[min(groups.tolist())]
            families.append(Family(name, groups, self._allowed(groups, made, round_to)))
        return families

    def _allowed(self, groups: Tensor, made: list[Site], round_to: int) -> tuple[int, ...]:
        """Return how many of the groups may stay: with each number layers keep rounded sizes."""
        count = len(groups)
        mine = torch.zeros(self.count, dtype=torch.bool)
        mine[groups] = True
        fits = torch.ones(count, dtype=torch.bool)
        for site in made:
            step = math.lcm(round_to, site.multiple)
            if step <= 1 or not bool(mine[site.rows].any()):
                continue
            each = torch.bincount(site.rows[mine[site.rows]], minlength=self.count)[groups]
            if not bool((each == each[0]).all()):
                return (count,)
            others = int((~mine[site.rows]).sum())
            fits &= (others + int(each[0]) * torch.arange(1, count + 1)) % step == 0
        return tuple(sorted({*(fits.nonzero().flatten() + 1).tolist(), count}))


def _layer_site(of: Tensor, model: nn.Module, layer: Mixing | Channelwise, budget: Budget) -> Site:
    module = model.get_submodule(layer.name)
    rows = of[layer.out]
    columns = of[layer.source.ids] if isinstance(layer, Mixing) else None
    multiple = 0 if columns is None else 1
    if budget == "flops":
        return Site(layer.name, rows, columns, 2.0 * layer.products, 0.0, multiple)
    own = [p for p in module.parameters(recurse=False) if p.dim()]
    size = own[0].element_size() if own else 0
    if isinstance(layer, Mixing):
        taps = math.prod(oriented(module).shape[2:])
        return Site(layer.name, rows, columns, size * taps, size * (len(own) - 1), 1)
    return Site(layer.name, rows, None, size * sum(p[0].numel() for p in own), 0.0, 0)


def _unit_site(groups: Tensor, model: nn.Module, unit: Unit, budget: Budget) -> Site:
    if budget == "flops":
        return Site(unit.name, groups, None, 2.0 * unit.products, 0.0, unit.multiple)
    size = next(model.get_submodule(unit.name).parameters()).element_size()
    return Site(unit.name, groups, None, float(size * unit.parameters), 0.0, unit.multiple)
