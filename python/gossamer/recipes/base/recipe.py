"""Recipe: the base class of the recipes that move masks.

A recipe is a dataclass of hyper-parameters with three hooks: `layer` replaces a linear layer,
`before_step` runs before a step of the optimizer (gradients are there), `after_step` after it.
How it follows the optimizer, and resumes, is in `base.attached`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, nn

from gossamer.arguments import check
from gossamer.errors import PatternError, RecipeError
from gossamer.masks import Distribution
from gossamer.nn import MaskedLayer
from gossamer.nn.empty_rows import warn_of_empty_rows
from gossamer.nn.globs import Globs
from gossamer.nn.layers.linear import dense_weight, trained_weight
from gossamer.nn.layers.rebuilding import MADE_BY
from gossamer.nn.lr_scaling import exponent_of, scaled_groups
from gossamer.nn.ranking import Score, mask_by
from gossamer.nn.surgery import replace_linears
from gossamer.nn.swapping import replace_modules
from gossamer.patterns import Nonzeros, Pattern, parse_pattern
from gossamer.recipes.base.attached import Attached
from gossamer.recipes.base.checks import check_choice
from gossamer.recipes.base.first_masks import start_at
from gossamer.recipes.base.identity import describe, difference, identity
from gossamer.recipes.base.source import Source, confine, find_sources, give_source

# The names of source masks in a recipe's state begin so.
_SOURCE = "source/"


@dataclass(eq=False)
class Recipe(Attached):
    """The base class of the recipes that move masks.

    A subclass is a dataclass that adds its own fields and overrides the hooks it needs: `layer`
    (always), `start` (called once by `attach`), `before_step` and `after_step`. Steps are counted
    from 0. Whatever a checkpoint must keep beyond the model and the optimizer goes into
    `self.state`: tensors, numbers and texts by name.

    Args:
        pattern: which entries are kept in the end: a pattern or its text.
        distribution: how layers share the sparsity. "uniform": every layer has the same. "erk":
            smaller layers stay denser (see `gossamer.masks.allocate`). None is the recipe's usual
            one. N:M patterns have a fixed density: only "uniform" is allowed.

    Raises:
        PatternError: an unknown pattern, or "erk" for an N:M pattern.
        RecipeError: an unknown distribution.
        DTypeError: a field has another type than its annotation.

    Example:
        >>> import torch
        >>> from gossamer.recipes import STE
        >>> recipe = STE("2:4")
        >>> model = recipe.prepare(torch.nn.Sequential(torch.nn.Linear(8, 4)))
        >>> optimizer = torch.optim.SGD(recipe.parameters(model), lr=0.1)
        >>> recipe.attach(model, optimizer, total_steps=10)
        >>> list(recipe.layers)
        ['0']
    """

    pattern: str | Pattern = "2:4"
    distribution: Distribution | None = field(default="uniform", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pattern: Pattern = parse_pattern(self.pattern)
        self._check_distribution()

    # ---- the hooks -----------------------------------------------------------------------------

    @abstractmethod
    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """Build the layer that replaces a linear layer.

        Args:
            name: name of the layer in the model.
            linear: an `nn.Linear` or `Conv1D`; its parameters may be reused.
            pattern: the layer's pattern, with its share of the sparsity.
            index: number of the layer, from 0.
        """

    def find(self, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Yield the layers that `prepare` of this recipe has made.

        Raises:
            RecipeError: it has made none.
        """
        makers = set()
        found = False
        for name, module in model.named_modules():
            maker = getattr(module, MADE_BY, None)
            if maker is None:
                continue
            if difference(maker, self) is None:
                found = True
                yield name, module
            else:
                makers.add(describe(maker))
        if not found:
            by = f"it was prepared by {', '.join(sorted(makers))}" if makers else "it was not"
            raise RecipeError(
                f"attach needs a model prepared by {describe(identity(self))}; {by}: "
                "call prepare(model) of the same recipe before the optimizer is built"
            )

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups of a prepared model, with what the recipe sets of them."""
        check(Recipe.groups, locals())
        return [{"params": list(model.parameters())}]

    def usual_distribution(self) -> Distribution:
        """The distribution that None stands for."""
        return "uniform"

    def takes_convolutions(self) -> bool:
        """Whether `prepare` replaces convolutions too; else they stay dense, with a warning."""
        return False

    def takes_scores(self) -> bool:
        """Whether `prepare` takes `score`: masks are sparse at first, and do not follow weights."""
        return False

    def stands_for(self, name: str, was: object, value: object) -> bool:
        """Whether None stands for the distribution that the recipe has chosen."""
        return was is None and name == "distribution" and value == self.usual_distribution()

    # ---- what a user calls ---------------------------------------------------------------------

    def prepare(
        self,
        model: nn.Module,
        include: Globs = ("*",),
        exclude: Globs = (),
        rescale: bool = False,
        score: Score | None = None,
        source: Source | None = None,
    ) -> nn.Module:
        """Replace the linear layers of a model in place. Build the optimizer afterwards.

        Most recipes replace convolutions too: see `takes_convolutions`.

        Args:
            model: any module; if it is a linear layer itself, use the returned one.
            include: globs of modules to replace, as in `gossamer.sparsify`.
            exclude: globs of modules to leave dense.
            rescale: scale each weight of a layer that stores kept entries only, so that its
                Frobenius norm stays that of the dense weight. For training from scratch (Evci et
                al. 2022); it would damage trained weights.
            score: by what the first masks are chosen, as in `gossamer.sparsify`, for a recipe whose
                `takes_scores` is True; None is the recipe's own way.
            source: a mask inside which the recipe's masks are searched from dense weights, for one
                whose `takes_scores` is False: a pattern, such as "50%", of which masks are drawn by
                torch's generator, or bool masks [out_features, in_features] by name. What it drops
                is 0 from now on.

        Returns:
            The model.

        Raises:
            PatternError: a layer does not fit the pattern, or the source does not hold a mask of
                it; the model is unchanged.
            RecipeError: a recipe has prepared the model already, or it does not take a `score` or
                a `source`.
        """
        check(Recipe.prepare, locals())
        self.check_fresh(model)
        self._check_score(score)

        def make(name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
            norm = linear.weight.detach().norm()  # type: ignore[operator]
            dense = None if score is None else dense_weight(linear).detach().clone()
            layer = self.layer(name, linear, pattern, index)
            if score is not None and dense is not None and isinstance(layer, MaskedLayer):
                stored = trained_weight(linear).shape
                start_at(layer, dense, mask_by(score, name, dense, stored, layer.pattern))
            sparse = layer.sparse_weight if isinstance(layer, MaskedLayer) else None
            if source is not None:
                if self.takes_scores() or sparse is not None or not isinstance(layer, MaskedLayer):
                    raise RecipeError(
                        f"{type(self).__name__}.prepare got source=, and searches no mask in dense "
                        "weights: choose its first masks by score=, or take a recipe such as GMP, "
                        "IMP or EdgePopup"
                    )
                give_source(layer, name, source)
            if rescale and sparse is not None and sparse.nnz:
                with torch.no_grad():
                    sparse.values.mul_(norm / sparse.values.norm())
            object.__setattr__(layer, MADE_BY, mine)
            return layer

        mine = identity(self)
        distribution = self.distribution or self.usual_distribution()
        model = replace_linears(
            model, make, self.pattern, include, exclude, distribution, self.takes_convolutions()
        )
        layers = dict(model.named_modules())
        confine(layers, find_sources(layers))
        return model

    @property
    def sources(self) -> dict[str, Tensor]:
        """The source masks of the attached model's layers, by name; see `prepare`."""
        return {
            key.removeprefix(_SOURCE): mask
            for key, mask in self.state.items()
            if key.startswith(_SOURCE)
        }

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        """Follow the optimizer's steps from now on, see `Attached.attach`."""
        super().attach(model, optimizer, total_steps)
        self.state |= {_SOURCE + name: m for name, m in find_sources(self.layers).items()}

    def parameters(self, model: nn.Module, scale_lr: float | bool = False) -> list[dict[str, Any]]:
        """Return the parameter groups of a prepared model, for an optimizer.

        With `scale_lr` the rate of each weight with a mask follows its density, also while the
        recipe prunes: see `gossamer.parameter_groups`.
        """
        check(Recipe.parameters, locals())
        exponent = exponent_of(scale_lr, f"{type(self).__name__}.parameters")
        return scaled_groups(self.groups(model), model, exponent)

    def finish(self, model: nn.Module) -> nn.Module:
        """Detach, and replace masked layers by `SparseLinear` in place.

        Returns:
            The model, which stores kept entries only.
        """
        check(Recipe.finish, locals())
        self.detach()
        stored_dense = [
            module
            for module in model.modules()
            if isinstance(module, MaskedLayer) and module.sparse_weight is None
        ]
        model = replace_modules(model, {layer: self.finished(layer) for layer in stored_dense})
        warn_of_empty_rows(model, f"{type(self).__name__}.finish")
        return model

    def finished(self, layer: MaskedLayer) -> nn.Module:
        """Return what `finish` replaces a masked layer by."""
        return layer.to_sparse()

    # ---- what subclasses use -------------------------------------------------------------------

    def check_fresh(self, model: nn.Module) -> None:
        """Raise RecipeError if a recipe has prepared a layer of the model."""
        check(Recipe.check_fresh, locals())
        for name, module in model.named_modules():
            if (maker := getattr(module, MADE_BY, None)) is not None:
                raise RecipeError(
                    f"layer {name!r} was prepared by {describe(maker)}; a model is prepared once: "
                    "prepare a fresh copy of the dense model"
                )

    def lr_of(self, parameter: nn.Parameter) -> float:
        """Return the learning rate of a parameter at this step, with its factor."""
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        for group in groups:
            if any(p is parameter for p in group["params"]):
                return float(group["lr"])
        raise RecipeError("the optimizer no longer holds a parameter of a prepared layer")

    def generator(self, t: int, index: int, seed: int) -> torch.Generator:
        """Return a generator that depends on the seed, the step and the layer alone."""
        check(Recipe.generator, locals())
        mixed = ((seed * 0x9E3779B97F4A7C15 + t) * 0xBF58476D1CE4E5B9 + index) % 2**63
        return torch.Generator("cpu").manual_seed(mixed)

    # ---- inside --------------------------------------------------------------------------------

    def _before(self, evaluation: int) -> None:
        super()._before(evaluation)
        confine(self.layers, self.sources)

    def _after(self) -> None:
        confine(self.layers, self.sources)  # for optimizers that mix the entries of a weight
        super()._after()

    def _check_score(self, score: Score | None) -> None:
        if score is not None and not self.takes_scores():
            raise RecipeError(
                f"{type(self).__name__}.prepare got score=; its masks begin dense or follow the "
                "weights, so there is none to choose: leave it out, or take a recipe such as "
                "Static, SET, RigL, DSL, SLoPe, or GMP with initial_sparsity"
            )

    def _check_distribution(self) -> None:
        who = type(self).__name__
        if isinstance(self.pattern, Nonzeros):
            raise PatternError(
                f"{who} got pattern {self.pattern}; a recipe chooses the mask itself: choose a "
                'pattern such as "90%", or train the zeros of a model with sparsify'
            )
        fixed = not parse_pattern(self.pattern).adjustable
        if self.distribution is None:
            self.distribution = "uniform" if fixed else self.usual_distribution()
        check_choice(self.distribution, f"{who} got distribution", get_args(Distribution))
        if fixed and self.distribution != "uniform":
            raise PatternError(
                f"{who} got distribution={self.distribution!r} with pattern {self.pattern}, whose "
                "density is the same everywhere or that of the shape: choose 'uniform', or a "
                "pattern such as '90%'"
            )
