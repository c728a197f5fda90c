"""PruneGroups: channels, hidden neurons and heads leave a network while it trains.

After each step the groups of each layer go through one exact proximal step,

    argmin_x 1/2 ||x - x_t||^2 + s (GS_k(x) - 1/2 ||x||^2),

where GS_k is the group sparse envelope. k is the number of groups for which the cost of the model,
in operations or bytes, lies on a cubic. The k largest groups keep their size, the others fade.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gossamer.arguments import check
from gossamer.errors import RecipeError
from gossamer.nn.globs import Globs, as_globs, check_globs
from gossamer.prox import WGSEF
from gossamer.pruning.choosing import chosen
from gossamer.pruning.groups import Groups
from gossamer.pruning.structured import all_notes, as_before, fitted, groups_of, smaller_of
from gossamer.recipes.base.attached import Attached
from gossamer.recipes.base.checks import check_choice, check_count, check_number, check_share
from gossamer.schedules import Cubic

_POINTS = 65  # at which the cost of a share of all groups is known
_LONGEST = 0.5  # of the steps s; the formula is convex below 1


@dataclass(eq=False)
class PruneGroups(Attached):
    """Prune channels, neurons and heads gradually, down to a budget; then remove them.

    What `gossamer.prune` does at once, over a training: the network adapts while groups fade, and
    the gradients decide which. A group is what makes a feature: rows and biases of all layers that
    write it, and its BatchNorm. Groups compete within a layer, or within the layers that a sum
    joins, and every layer keeps the same share: in a contest of all layers those whose groups cost
    most would lose nearly all of them. When the schedule ends, the largest groups within the budget
    are fixed and all others zero.

    Args:
        keep: share of the cost that stays at most, in (0, 1].
        budget: what costs, see `gossamer.prune`: "flops" or "bytes".
        round_to: see `gossamer.prune`.
        begin_share: share of the steps before the budget begins to fall.
        end_share: share of the steps at which it is reached.
        strength: how fast groups beyond the budget fade: the step s of the formula, summed over the
            schedule; 0 prunes all at the end.

    Raises:
        RecipeError: a value is out of range.
        DTypeError: a value has another type.

    Reference:
        Zhu and Gupta 2017, "To prune, or not to prune", equation 1, for the cubic; Refael, Arbel
        and Huleihel 2022, "Sparse envelope functions", for the penalty; Chen et al. 2023, "OTOv2",
        for groups of what writes a feature.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> x = torch.randn(16, 4)
        >>> recipe = PruneGroups(keep=0.25)
        >>> model = recipe.prepare(model, x[:1])
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> recipe.attach(model, optimizer, total_steps=20)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     model(x).square().mean().backward()
        ...     _ = optimizer.step()
        >>> recipe.finish(model)[0]
        Linear(in_features=4, out_features=16, bias=True)
    """

    keep: float = 0.5
    budget: Literal["flops", "bytes"] = "flops"
    round_to: int = 1
    begin_share: float = 0.0
    end_share: float = 0.75
    strength: float = 50.0

    id: ClassVar[str] = "prune-groups"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.budget, "PruneGroups got budget", ("flops", "bytes"))
        check_count(self.round_to, "PruneGroups got round_to")
        check_number(self.strength, "PruneGroups got strength")
        for name in ("keep", "begin_share", "end_share"):
            check_share(getattr(self, name), f"PruneGroups got {name}")
        if self.keep == 0:
            raise RecipeError("PruneGroups got keep=0; something must stay: pass 0.5")
        if self.end_share <= self.begin_share:
            raise RecipeError(
                f"PruneGroups got begin_share={self.begin_share}, end_share={self.end_share}; the "
                "schedule must end after its beginning"
            )
        self.notes: list[str] = []
        self._groups_of: Groups | None = None
        self._inputs: tuple[Any, ...] = ()
        self._model: nn.Module | None = None
        self._total = 0.0

    # ---- what a user calls ---------------------------------------------------------------------

    def prepare(self, model: nn.Module, example: Any, exclude: Globs = ()) -> nn.Module:
        """Find the groups of a model, and try whether it can become as small as it has to.

        Args:
            model: any module; it does not change.
            example: a tensor, or a tuple of the positional arguments of its forward.
            exclude: globs of modules that do not change, as in `gossamer.prune`.

        Returns:
            The model. `notes` says what keeps its size, and why.

        Raises:
            DTypeError: the model is not an `nn.Module`.
            ArgumentError: it cannot become that small, or does not take the example.
            PatternError: a glob matches nothing.
        """
        check(PruneGroups.prepare, locals())
        inputs = example if isinstance(example, tuple) else (example,)
        globs = as_globs(exclude, "exclude")
        check_globs(model, {"exclude": globs}, "modules", [n for n, _ in model.named_children()])
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            groups, total = groups_of(
                model, inputs, self.budget, self.round_to, globs, "PruneGroups.prepare"
            )
            fitted(model, groups, inputs, self.keep * total, "PruneGroups.prepare")
        self._groups_of, self._inputs, self._total = groups, inputs, total
        self.notes = all_notes(model, groups)
        return model

    def finish(self, model: nn.Module) -> nn.Module:
        """Detach, and return the smaller model.

        Args:
            model: the trained model. What is not in the smaller one is zero in it afterwards.

        Returns:
            A new model, see `gossamer.prune`. Its parameters are new.

        Raises:
            RecipeError: the recipe has not prepared this model.
            GossamerError: the smaller model computes something else.
        """
        check(PruneGroups.finish, locals())
        groups = self._ready()
        model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            kept = self.state.get("kept")
            if kept is None:
                kept = self._choose(model)
            self.detach()
            groups.zero_(model, kept)
            smaller, problem = smaller_of(model, groups, kept, self._inputs)
            if problem is not None:
                raise RecipeError(
                    f"PruneGroups.finish: the smaller model differs from the pruned one by "
                    f"{problem}; give the model that was prepared, or exclude layers"
                )
            as_before(model, smaller)
        return smaller

    def cost_at(self, t: int) -> float:
        """Return the largest share of the cost at step t: 1 at the beginning, `keep` at the end."""
        check(PruneGroups.cost_at, locals())
        return Cubic(1.0, self.keep, *self._span())(t)

    # ---- the hooks -----------------------------------------------------------------------------

    def find(self, model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
        """Return the layers whose features may be removed.

        Raises:
            RecipeError: `prepare` was not called, or nothing can be removed.
        """
        groups = self._ready()
        names = dict.fromkeys(s.name for s in groups.sites if bool(groups.free[s.rows].any()))
        missing = [name for name in names if name not in dict(model.named_modules())]
        if missing or not names:
            raise RecipeError(
                f"PruneGroups.attach got a model without {', '.join(missing[:3]) or 'free groups'};"
                " give the model that was prepared"
            )
        self._model = model
        return [(name, model.get_submodule(name)) for name in names]

    def minimum_steps(self) -> int:
        """Steps between which the schedule begins and ends."""
        total = 1
        while int(self.begin_share * total) >= int(self.end_share * total):
            total += 1
        return total

    def start(self) -> None:
        """Find out how the cost follows from the share of groups."""
        self._curve = [self._cost_of_share(i / (_POINTS - 1)) for i in range(_POINTS)]

    def after_step(self, t: int) -> None:
        """Shrink the groups beyond the budget, or keep them at zero."""
        groups, model = self._ready(), self._trained()
        first, last = self._span()
        if t + 1 >= last:
            if "kept" not in self.state:
                self.state["kept"] = self._choose(model)
            groups.zero_(model, self.state["kept"])
        elif t >= first and self.strength > 0:
            speed = min(self.strength / (last - first), _LONGEST)
            groups.scale_(model, self._gains(model, self.cost_at(t), speed))

    # ---- inside --------------------------------------------------------------------------------

    def _gains(self, model: nn.Module, cost: float, speed: float) -> Tensor:
        """Return the factor of each group in one proximal step, float64 [groups]."""
        groups = self._ready()
        sizes = groups.squares(model).sqrt()
        gains = torch.ones_like(sizes)
        share = self._share_at(cost)
        for family in groups.families:
            own = sizes[family.groups]
            k = max(share * len(own), 1.0)
            if k < len(own):
                penalty = WGSEF(speed, k=k, groups="element", unbiased=True)
                shrunk = penalty.prox(own)
                gains[family.groups] = torch.where(own > 0, shrunk / own.clamp(min=1e-300), 0.0)
        return gains

    def _choose(self, model: nn.Module) -> Tensor:
        groups = self._ready()
        sizes = groups.squares(model)
        return chosen(groups, sizes, self.keep * self._total, "PruneGroups", self.notes)

    def _cost_of_share(self, share: float) -> float:
        """Return the share of the cost of a model with the same share of groups in each family."""
        groups = self._ready()
        kept = ~groups.free
        for family in groups.families:
            kept[family.groups[: max(round(share * len(family.groups)), 1)]] = True
        return groups.cost(kept) / self._total

    def _share_at(self, cost: float) -> float:
        """Return the share of groups that has a share of the cost."""
        curve = self._curve
        above = bisect.bisect_right(curve, cost)
        if above in (0, _POINTS):
            return min(above, _POINTS - 1) / (_POINTS - 1)
        below = curve[above - 1]
        return (above - 1 + (cost - below) / (curve[above] - below)) / (_POINTS - 1)

    def _span(self) -> tuple[int, int]:
        return int(self.begin_share * self.total_steps), int(self.end_share * self.total_steps)

    def _ready(self) -> Groups:
        if self._groups_of is None:
            raise RecipeError(
                "PruneGroups has no groups yet; call prepare(model, example) before attach"
            )
        return self._groups_of

    def _trained(self) -> nn.Module:
        if self._model is None:
            raise RecipeError("PruneGroups is not attached; call attach first")
        return self._model


__all__ = ["PruneGroups"]
