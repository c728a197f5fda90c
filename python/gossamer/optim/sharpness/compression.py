"""CrAM: the second pass is at weights that have been moved up and then pruned, at random strengths.

The pruned pass runs on the sparse kernels, so a step costs about 1 + density of a plain one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from gossamer import backend
from gossamer.arguments import NotNegative, check
from gossamer.backend import Structure
from gossamer.errors import CheckpointError, PatternError
from gossamer.masks import add_pruned_
from gossamer.masks.together import top_masks
from gossamer.nn.globs import Globs, as_globs
from gossamer.nn.layers.masked_state import select
from gossamer.nn.layers.pruned_pass import PrunedPass
from gossamer.nn.sites import (
    check_sites,
    distribute,
    drop_shared_with_others,
    find_sites,
    tied_groups,
)
from gossamer.optim.sharpness.attached import By, Sharpness
from gossamer.patterns import Block, Nonzeros, Pattern, Unstructured, parse_pattern

__all__ = ["CrAM"]

Share = Literal["uniform", "erk", "global"]


class _Pruned(NamedTuple):
    """A weight as the present step has pruned it, and the layers that multiply by it."""

    values: Tensor
    structure: Structure
    dense: Tensor
    layers: list[PrunedPass]


class CrAM(Sharpness):
    """Compression-aware minimisation: trains a dense model that can be pruned in one step.

    The second pass is at C(w + rho g), where C prunes the linear layers and convolutions to one of
    several patterns, drawn anew in every step. The optimizer gets its gradient at the kept entries,
    plus (CrAM+) the gradient at w. Afterwards `gossamer.sparsify(model, pattern, exclude=...)`
    costs little accuracy, without training. Re-estimate the statistics of batch normalisation after
    it (`torch.optim.swa_utils.update_bn`).

    `state_dict` is the state of the random draws; save it with the optimizer's. Under gradient
    scaling, `perturbed` needs the `loss_scale`.

    Args:
        patterns: what C draws from, patterns or their texts; () is the optimizer alone.
        rho: how far w is moved along g; 0 prunes the weights where they are.
        plus: whether the gradient at w is added (CrAM+).
        normalise: divide g by its norm, as SAM does.
        masked: whether dropped entries get no gradient from the second pass.
        distribution: how layers share the sparsity: "uniform" or "erk", as `sparsify` does it, or
            "global", which ranks all layers together, as the authors' code does.
        include: globs of the modules to prune.
        exclude: globs of the modules that stay dense; give the same to `sparsify`.
        seed: of the draws. Processes of one training need the same one.

    Raises:
        PatternError: an unknown pattern, or one that has no sparsity of its own.
        ArgumentError: a number out of range.

    Reference:
        Peste et al. 2023, "CrAM: A Compression-Aware Minimizer", algorithm 1; addition of the two
        gradients, their mask and the draw of patterns as in the authors' code.

    Example:
        >>> import gossamer
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> CrAM(["50%", "2:4"], exclude="2").attach(model, optimizer)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(4, 8)).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> _ = optimizer.step(closure)
        >>> gossamer.sparsify(model, "2:4", exclude="2")[0].weight.nnz
        64
    """

    def __init__(
        self,
        patterns: str | Pattern | Sequence[str | Pattern] = ("50%", "70%", "90%"),
        rho: NotNegative = 0.05,
        plus: bool = True,
        normalise: bool = False,
        masked: bool = True,
        distribution: Share = "uniform",
        include: Globs = ("*",),
        exclude: Globs = (),
        seed: int = 0,
    ) -> None:
        super().__init__()  # each process by its own batch would mean a mask of its own
        check(CrAM.__init__, locals())
        given = [patterns] if isinstance(patterns, str | Pattern) else patterns
        self.patterns = [parse_pattern(pattern) for pattern in given]
        for pattern in self.patterns:
            if isinstance(pattern, Nonzeros):
                raise PatternError(
                    f"CrAM got pattern {pattern}, which prunes nothing; choose one such as 70%"
                )
        self.rho, self.plus, self.normalise, self.masked = rho, plus, normalise, masked
        self.distribution: Share = distribution
        self.include, self.exclude = as_globs(include, "include"), as_globs(exclude, "exclude")
        self._random = torch.Generator().manual_seed(seed)
        # A list per weight: the layers that share it, with their pattern by that of the draw.
        self._groups: list[tuple[list[PrunedPass], list[Pattern]]] = []
        self._pruned: dict[nn.Parameter, _Pruned] = {}
        self._kept: dict[nn.Parameter, Tensor] = {}

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Follow the optimizer's steps from now on; see `Sharpness.attach`.

        Raises:
            PatternError: a layer does not fit a pattern, a glob matches nothing, or there is no
                layer to prune; nothing changes.
        """
        check(CrAM.attach, {"model": model})
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        groups = self._find(inner) if self.patterns else []
        super().attach(model, optimizer)
        self._groups = groups

    def detach(self) -> None:
        """Remove the hooks; the optimizer steps as before."""
        super().detach()
        self._groups, self._pruned, self._kept = [], {}, {}

    def is_off(self) -> bool:
        """Whether there is no pattern to draw."""
        return not self.patterns

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of the draws."""
        return {"random": self._random.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue the draws of a saved state.

        Raises:
            CheckpointError: not the state of a CrAM; nothing changes.
        """
        try:
            self._random.set_state(state["random"])
        except (KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"CrAM.load_state_dict got another state ({error!r:.100}); load what its "
                "state_dict() returned"
            ) from error

    def offsets(self, gradients: By) -> By:
        """Return rho g of what is not pruned, and prune the others, w + rho g, for `around`.

        Nothing moves if a gradient is not finite.
        """
        drawn = int(torch.randint(len(self.patterns), (), generator=self._random))
        factor = self._factor(gradients)
        moved = {
            layers[0].weight: self._moved(layers[0].weight, gradients, factor)
            for layers, _ in self._groups
        }
        matrices = [layers[0].matrix(moved[layers[0].weight]) for layers, _ in self._groups]
        offsets = {
            p: g * factor for p, g in gradients.items() if p not in moved and factor is not None
        }
        self._pruned = {}
        chosen = zip(self._groups, matrices, self._chosen(matrices, drawn), strict=True)
        for (layers, _), matrix, (values, structure) in chosen:
            weight = layers[0].weight
            add_pruned_(matrix, matrix, -1.0, structure)
            dense = layers[0].stored(matrix).contiguous()
            self._pruned[weight] = _Pruned(values, structure, dense, layers)
        return offsets

    def _factor(self, gradients: By) -> float | None:
        """Return by what the gradients are multiplied; None if one is not finite."""
        norm = float(get_total_norm(gradients.values())) if gradients else 0.0
        if not math.isfinite(norm):
            return None
        return self.rho / (norm + 1e-12) if self.normalise else self.rho

    def _moved(self, weight: nn.Parameter, gradients: By, factor: float | None) -> Tensor:
        """Return w + rho g, in memory that is kept: fresh pages would cost more than the sum."""
        if (kept := self._kept.get(weight)) is None or kept.shape != weight.shape:
            kept = self._kept[weight] = torch.empty_like(weight)
        if factor is None or weight not in gradients:
            return kept.copy_(weight.detach())
        return torch.add(weight.detach(), gradients[weight], alpha=factor, out=kept)

    def around(self) -> AbstractContextManager[None]:
        """Return a context in which the pruned weights are in place, on the sparse kernels."""
        return self._served()

    def combine(self, gradients: By, second: By) -> By:
        """Return g' at the kept entries, and with `plus` g + g'."""
        found = dict(second)
        for weight, (_, structure, _, layers) in self._pruned.items():
            # Of a layer whose weight somebody multiplies by beside its forward.
            if self.masked and weight in found and not all(layer.is_served for layer in layers):
                kept = backend.gather(layers[0].matrix(found[weight]), structure)
                found[weight] = layers[0].stored(backend.scatter(kept, structure))
        self._pruned = {}
        if not self.plus:
            return found
        both = [p for p in gradients if p in found]
        if both:
            torch._foreach_add_([found[p] for p in both], [gradients[p] for p in both])
        return {**gradients, **found}

    @contextmanager
    def _served(self) -> Iterator[None]:
        with ExitStack() as stack:
            for weight, pruned in self._pruned.items():
                # Other memory for the time of the pass: nothing is copied, there and back.
                stack.callback(setattr, weight, "data", weight.data)
                weight.data = pruned.dense
                for layer in pruned.layers:
                    layer.serve(pruned.values, pruned.structure, stack)
            yield

    def _chosen(self, matrices: Sequence[Tensor], drawn: int) -> Iterator[tuple[Tensor, Structure]]:
        """Yield values and structure of each matrix by the drawn pattern."""
        pattern = self.patterns[drawn]
        if self.distribution == "global" and isinstance(pattern, Unstructured | Block):
            for matrix, mask in zip(matrices, top_masks(matrices, pattern), strict=True):
                structure = backend.encode(mask, pattern.panel, *pattern.group)
                yield backend.gather(matrix, structure), structure
            return
        for matrix, (_, patterns) in zip(matrices, self._groups, strict=True):
            yield select(matrix, patterns[drawn])

    def _find(self, model: nn.Module) -> list[tuple[list[PrunedPass], list[Pattern]]]:
        """Return the layers to prune, by weight, with their pattern for each draw."""
        groups: dict[int, tuple[list[PrunedPass], list[Pattern]]] = {}
        notes: list[str] = []
        for pattern in self.patterns:
            sites, notes = find_sites(model, pattern, self.include, self.exclude, None)
            notes += drop_shared_with_others(model, sites)
            check_sites(sites)
            if self.distribution != "global":
                distribute(sites, self.distribution if pattern.adjustable else "uniform")
            for key, (site, tied) in tied_groups(sites).items():
                layers = [PrunedPass(one.module, self.masked) for one in tied]
                groups.setdefault(key, (layers, []))[1].append(site.pattern)
        if not groups:
            why = "; ".join(notes) or "include= and exclude= leave no linear layer or convolution"
            raise PatternError(f"CrAM found no layer to prune: {why}")
        if notes:
            warnings.warn("CrAM leaves dense: " + "\n  ".join(notes), UserWarning, stacklevel=3)
        return list(groups.values())
