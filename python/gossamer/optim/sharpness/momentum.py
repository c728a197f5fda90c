"""MSAM: sharpness-aware minimisation without another pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from gossamer.arguments import check
from gossamer.errors import RecipeError
from gossamer.optim.sharpness.attached import check_free
from gossamer.optim.steps import first, follow, unwrapped

# What optimizers call their average of gradients.
MOMENTA = ("exp_avg", "momentum_buffer")


class MSAM:
    """Momentum-SAM: every gradient is taken at w - rho m / ||m||, m the optimizer's momentum.

    A step costs one pass. The weights are moved by the first forward pass in training mode after a
    step, and put back bit for bit when the gradients are there, so that the optimizer, recipes and
    masks see the weights that are not moved. A forward pass in eval mode and `state_dict` put them
    back too. The state of a training is the optimizer's.

    Args:
        rho: radius; the published code moves against the average of the gradients, a negative rho
            moves along it, and 0 is the optimizer alone.

    Raises:
        ArgumentError: rho is not finite.

    Reference:
        Becker et al. 2024, "Momentum-SAM: Sharpness Aware Minimization without Computational
        Overhead"; the sign is that of the authors' code.

    Example:
        >>> model = nn.Linear(4, 1)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> MSAM(rho=0.3).attach(model, optimizer)
        >>> for _ in range(2):
        ...     model(torch.randn(8, 4)).square().mean().backward()
        ...     optimizer.step()
    """

    def __init__(self, rho: float = 1.0) -> None:
        check(MSAM.__init__, locals())
        self.rho = rho
        self.model: nn.Module | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self._handles: list[Any] = []
        self._before: dict[nn.Parameter, Tensor] = {}  # while the weights are moved
        self._kept: dict[nn.Parameter, Tensor] = {}

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Follow the model's passes and the optimizer's steps from now on.

        Args:
            model: the model, or the DistributedDataParallel around it: what the loop calls.
            optimizer: an optimizer with momentum: Adam and its kind, or SGD(momentum=…).

        Raises:
            RecipeError: it is attached already, a parameter is sharded over processes, or the
                optimizer is SGD without momentum; nothing changes.
        """
        check(MSAM.attach, {"model": model})
        check_free(self, model)
        inner = unwrapped(optimizer)
        if any(group.get("momentum", 1) == 0 for group in inner.param_groups):
            raise RecipeError(
                f"MSAM moves by the momentum, and the {type(inner).__name__} has none; give "
                "momentum=0.9, or use SAM"
            )
        self.model, self.optimizer = model, inner
        handles = follow(inner, lambda _: self.restore(), lambda: None)
        first(inner, handles[0])  # recipes look at the weights
        module = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        self._handles = [
            *handles,
            model.register_forward_pre_hook(_Hook(self)),
            module.register_state_dict_pre_hook(_Hook(self)),
        ]

    def detach(self) -> None:
        """Put the weights back and remove the hooks."""
        self.restore()
        for handle in self._handles:
            handle.remove()
        self._handles, self.model, self.optimizer, self._kept = [], None, None, {}

    @torch.no_grad()
    def move(self) -> None:
        """Move the weights, unless they are moved."""
        if self._before or self.optimizer is None or self.rho == 0:
            return
        momenta = dict(_momenta(self.optimizer))
        if not momenta:
            return
        parameters: list[Any] = list(momenta)
        along = list(momenta.values())
        factor = -self.rho / (get_total_norm(along) + 1e-12)
        # Memory that is kept: fresh pages would cost more than the copy.
        for p in parameters:
            if (kept := self._kept.get(p)) is None or kept.shape != p.shape:
                self._kept[p] = torch.empty_like(p)
        self._before = {p: self._kept[p] for p in parameters}
        torch._foreach_copy_(list(self._before.values()), parameters)
        if factor.device.type == "cpu":  # elsewhere a number would wait for the device
            torch._foreach_add_(parameters, along, alpha=factor.item())
        else:
            torch._foreach_add_(parameters, torch._foreach_mul(along, factor))

    @torch.no_grad()
    def restore(self) -> None:
        """Put the weights back, if they are moved."""
        if self._before:
            parameters: list[Any] = list(self._before)
            torch._foreach_copy_(parameters, list(self._before.values()))
            self._before = {}


def _momenta(optimizer: torch.optim.Optimizer) -> Iterator[tuple[nn.Parameter, Tensor]]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            found = next((state[name] for name in MOMENTA if state.get(name) is not None), None)
            if found is not None and found.shape == parameter.shape:
                yield parameter, found.to(parameter.dtype)


class _Hook:
    """Moves the weights before a forward pass that trains; puts them back before anything else."""

    def __init__(self, method: MSAM | None) -> None:
        self.method = method

    def __call__(self, module: nn.Module, *rest: Any) -> None:
        if self.method is None:
            return
        is_pass = bool(rest) and isinstance(rest[0], tuple)  # a state dict gets a prefix
        if is_pass and module.training and torch.is_grad_enabled():
            self.method.move()
        else:
            self.method.restore()

    def __reduce__(self) -> Any:
        return _Hook, (None,)  # a copy of the model is not trained by this optimizer


__all__ = ["MSAM"]
