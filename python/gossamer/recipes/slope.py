"""SLoPe: static N:M masks, a double-pruned backward pass, and low-rank adapters at the end.

Only the kept entries are stored, with their gradients and moments; there is no dense copy. The
gradient of a layer's input comes from the weight pruned along its columns as well; that choice is
repeated every `every` steps. For the last share of the steps each layer has a low-rank adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from gossamer.arguments import check
from gossamer.errors import RecipeError
from gossamer.nn.layers.adapted import AdaptedLinear, for_inference
from gossamer.nn.layers.linear import SparseLinear
from gossamer.nn.lr_scaling import unscaled_lr
from gossamer.nn.swapping import replace_modules
from gossamer.patterns import NM, Pattern
from gossamer.recipes.base.checks import check_count, check_number
from gossamer.recipes.base.recipe import Recipe
from gossamer.weight.transpose import Backward

# Marks the optimizer's group that waits for the adapters.
_RESERVED = "adapters"


@dataclass(eq=False)
class SLoPe(Recipe):
    """Sparse from the first step to the last, with adapters for the last share of the steps.

    The mask keeps the largest initial weights, which are random, and never moves.

    Pass `recipe.parameters(model)` to the optimizer: it reserves an empty group for the adapters,
    so that learning-rate schedules know the group from the start. Otherwise a group is added when
    the adapters are inserted, and most of torch's schedulers then fail.

    Args:
        pattern: the pattern of the weights; double pruning needs N:M.
        distribution: how layers share the sparsity: "uniform" or "erk".
        adapter_rank: rank of the adapters; 0 for none.
        adapter_share: share of the steps, at the end, with adapters; at least one step.
        adapter_weight_decay: weight decay of the adapters.
        every: steps between two choices of the double-pruned entries; published: 1 in training,
            100 in the fast kernels.
        backward: "double_pruned", "exact" or "transposable", see `gossamer.SparseWeight`. None is
            "double_pruned" for N:M with one row per panel and "exact" otherwise: with 4 or 8 rows
            per panel the exact product needs no transpose and is faster.
        seed: seed of the adapters.

    Raises:
        RecipeError: a value out of range.
        PatternError: an unknown pattern.

    Reference:
        Mozaffari et al. 2025, "SLoPe: Double-Pruned Sparse Plus Lazy Low-Rank Adapter
        Pretraining of LLMs" (algorithm 1).

    Example:
        >>> import torch
        >>> recipe = SLoPe("1:4", adapter_rank=2)
        >>> model = recipe.prepare(torch.nn.Sequential(torch.nn.Linear(8, 4)))
        >>> optimizer = torch.optim.AdamW(recipe.parameters(model))
        >>> recipe.attach(model, optimizer, total_steps=100)
        >>> recipe.insertion, model[0].weight.backward
        (99, 'double_pruned')
    """

    adapter_rank: int = 0
    adapter_share: float = 0.01
    adapter_weight_decay: float = 0.01
    every: int = 100
    backward: Backward | None = None
    seed: int = 0

    renamed: ClassVar[dict[str, str]] = {"refresh_every": "every"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.adapter_rank, "SLoPe got adapter_rank", least=0)
        check_count(self.every, "SLoPe got every")
        if not 0.0 < self.adapter_share <= 1.0:
            raise RecipeError(
                f"SLoPe got adapter_share={self.adapter_share!r:.40}; it must be in (0, 1], the "
                "share of the steps with adapters: choose 0.01, or adapter_rank=0 for none"
            )
        check_number(self.adapter_weight_decay, "SLoPe got adapter_weight_decay")
        if self.backward not in (None, *get_args(Backward)):
            raise RecipeError(
                f"SLoPe got backward={self.backward!r:.40}; it is one of "
                f"{', '.join(get_args(Backward))}, or None to choose by the pattern"
            )

    @property
    def insertion(self) -> int | None:
        """The first step with adapters; None without adapters."""
        if not self.adapter_rank:
            return None
        return self.total_steps - max(1, round(self.adapter_share * self.total_steps))

    def takes_scores(self) -> bool:
        """Yes: a score then takes the place of the magnitudes."""
        return True

    def works_sharded(self) -> bool:
        """Without adapters only: they come when the model has been sharded."""
        return not self.adapter_rank

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A layer that stores its kept entries only."""
        narrow = isinstance(pattern, NM) and pattern.panel == 1
        backward: Backward = self.backward or ("double_pruned" if narrow else "exact")
        kind = AdaptedLinear if self.adapter_rank else SparseLinear
        layer = kind.from_dense(linear, pattern, backward=backward)
        if self.adapter_rank > min(layer.in_features, layer.out_features):
            raise RecipeError(
                f"SLoPe got adapter_rank={self.adapter_rank} for a weight of {layer.out_features}"
                f"x{layer.in_features}; choose a smaller rank, or exclude the layer"
            )
        return layer

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameters of a prepared model, and an empty group for the adapters."""
        check(SLoPe.groups, locals())
        groups = super().groups(model)
        if self.adapter_rank:
            groups.append(
                {"params": [], "weight_decay": self.adapter_weight_decay, _RESERVED: True}
            )
        return groups

    def start(self) -> None:
        """Choose the double-pruned entries from the initial weights."""
        if self.adapter_rank and isinstance(self.optimizer, torch.optim.LBFGS):
            raise RecipeError(
                f"SLoPe got adapter_rank={self.adapter_rank} and L-BFGS, which has one group of "
                "parameters; adapters come later and need their own: choose adapter_rank=0, or an "
                "optimizer that takes groups"
            )
        self._refresh()
        if self.insertion == 0:
            self._insert()

    def after_step(self, t: int) -> None:
        """Choose the double-pruned entries, and insert the adapters, when due."""
        if (t + 1) % self.every == 0:
            self._refresh()
        if t + 1 == self.insertion:
            self._insert()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume. Attach first, load this, then the model's state, then the optimizer's.

        Adapters of the checkpoint are inserted here, so that model and checkpoint fit.
        """
        check(SLoPe.load_state_dict, locals())
        there = any(layer.adapter is not None for _, _, layer in self.of_type(AdaptedLinear))
        step = state.get("step")
        due = self.insertion is not None and isinstance(step, int) and step >= self.insertion
        if there and not due:
            raise RecipeError(
                "the checkpoint was saved before the adapters were inserted, and the model has "
                "them; resume with a freshly prepared model"
            )
        super().load_state_dict(state)
        if due:
            self._insert()

    def finish(
        self, model: nn.Module, adapters: Literal["folded", "merged"] = "folded"
    ) -> nn.Module:
        """Detach, and turn the trained model into one for inference in place.

        Args:
            model: a model trained by this recipe.
            adapters: "folded" keeps each layer sparse plus low rank, with 1 / r folded into R;
                "merged" replaces layers with an adapter by `nn.Linear`, with the dense sum.

        Returns:
            The model. Layers without an adapter are `SparseLinear` with exact backward.

        Raises:
            RecipeError: `adapters` is neither of the two.
        """
        check(SLoPe.finish, locals())
        if adapters not in ("folded", "merged"):
            raise RecipeError(f"finish got adapters={adapters!r:.40}; it is 'folded' or 'merged'")
        self.detach()
        return replace_modules(model, for_inference(model, adapters))

    def _refresh(self) -> None:
        for _, _, layer in self.of_type(SparseLinear):
            layer.weight.refresh_transpose()

    def _insert(self) -> None:
        """Insert the adapters, and add them to the optimizer."""
        assert self.optimizer is not None  # noqa: S101
        fresh: list[nn.Parameter] = []
        values: nn.Parameter | None = None
        for index, _, layer in self.of_type(AdaptedLinear):
            if layer.adapter is None:
                layer.insert(self.adapter_rank, self.generator(0, index, self.seed))
                fresh.extend(layer.adapter.parameters())  # type: ignore[attr-defined]
                values = layer.weight.values
        if values is None:
            return
        if self._groups:
            # DistributedDataParallel knows only the parameters that it was built with.
            for parameter in fresh:
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    self._share_gradient
                )
        for group in self.optimizer.param_groups:
            if group.get(_RESERVED):
                group["params"].extend(fresh)
                return
        like = next(g for g in self.optimizer.param_groups if any(p is values for p in g["params"]))
        added = {"lr": unscaled_lr(like), "weight_decay": self.adapter_weight_decay}
        if "initial_lr" in like:
            added["initial_lr"] = like["initial_lr"]
        self.optimizer.add_param_group({"params": fresh, **added})

    def _share_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.average(parameter.grad)
