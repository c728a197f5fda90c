"""Accelerated proximal gradient (FISTA) with restarts, for full-batch problems.

    y = x_k + (t_k - 1) / t_{k+1} * (x_k - x_{k-1}),   t_{k+1} = (1 + sqrt(1 + 4 t_k^2)) / 2
    x_{k+1} = prox_{lr g}(y - lr * grad f(y))

Without a restart the iterates oscillate once the momentum is too large for the conditioning. Both
restarts detect this and set t = 1; neither needs a constant of the problem.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from gossamer.arguments import Positive
from gossamer.errors import DTypeError
from gossamer.optim.proximal import Group, Proximal, check_settings, evaluate, with_program
from gossamer.prox import Penalty

Restart = Literal["gradient", "objective"]


class AcceleratedProxGradient(Proximal):
    """FISTA with adaptive restart: minimises a smooth loss plus a penalty.

    The loss must be free of noise; a closure computes it at each step. Between steps the parameters
    hold x_k. Convergence is proven for a convex loss, a convex penalty and lr <= 1 / L, where L is
    the Lipschitz constant of the loss's gradient. For other losses and the same lr,
    restart="objective" still never increases the penalised loss.

    Args:
        params: parameters or parameter groups, as for torch's optimizers; a group may have its own
            `penalty=`.
        lr: step size, at most 1 / L.
        restart: "gradient" restarts when the step points against the momentum, at no extra cost.
            "objective" repeats the step without momentum when the penalised loss would rise; it
            calls the closure twice per step, and twice more at a restart. None is plain FISTA.
        penalty: default for the groups without a penalty of their own.

    Raises:
        GossamerError: a setting is invalid; see `add_param_group` for the subclasses.

    Reference:
        Beck & Teboulle 2009, "A Fast Iterative Shrinkage-Thresholding Algorithm for Linear Inverse
        Problems", section 4; O'Donoghue & Candes 2015, "Adaptive Restart for Accelerated Gradient
        Schemes", section 3.2.

    Example:
        >>> from gossamer.prox import L1
        >>> x = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = AcceleratedProxGradient([x], lr=0.5, penalty=L1(1.0))
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (x - torch.tensor([3.0, 0.5])).square().sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(60):
        ...     loss = optimizer.step(closure)
        >>> [round(entry, 5) for entry in x.tolist()]
        [2.0, 0.0]
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Positive | Tensor,
        *,
        restart: Restart | None = "gradient",
        penalty: Penalty | None = None,
    ) -> None:
        check_settings(AcceleratedProxGradient, locals())
        defaults = {"lr": lr, "restart": restart, "momentum_t": 1.0, "objective": None}
        super().__init__(with_program(params, penalty, None), defaults)
        self.defaults |= {"penalty": penalty, "half_space": None}

    def add_param_group(self, param_group: Group) -> None:
        """Add a parameter group, with its own `penalty=` if given.

        Args:
            param_group: as for torch's optimizers.

        Raises:
            DTypeError: the group has a `half_space=`.
            GossamerError: the penalty does not fit the group; see `Proximal.add_param_group`.
        """
        if isinstance(param_group, dict) and param_group.get("half_space") is not None:
            raise DTypeError(
                "AcceleratedProxGradient got half_space=; the half-space stage is for stochastic "
                "gradients: use ProxSGD or ProxAdamW"
            )
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step.

        Args:
            closure: clears the gradients, computes the loss, calls backward and returns the loss.
                If it raises, the parameters are restored.

        Returns:
            The closure's return value at the extrapolated point y.

        Raises:
            DTypeError: no closure was given.
        """
        if closure is None:
            raise DTypeError(
                "AcceleratedProxGradient.step got no closure; it needs one that clears the "
                "gradients, computes the loss, calls backward and returns the loss"
            )
        here = self._snapshot()
        try:
            return self._take(closure, here)
        except BaseException:
            for parameter, x in here.items():
                parameter.copy_(x)
            raise

    def _take(self, closure: Callable[[], Any], here: dict[Tensor, Tensor]) -> Any:
        first = self.param_groups[0]
        restart, t = first["restart"], first["momentum_t"]
        following = (1 + math.sqrt(1 + 4 * t * t)) / 2
        for parameter, x in here.items():
            previous = self.state[parameter].get("previous")
            if previous is not None:
                parameter.add_(x - previous, alpha=(t - 1) / following)
        loss = evaluate(closure)
        alignment = self._forward_backward(here)

        if restart == "gradient" and alignment > 0:
            following = 1.0
        objective = None
        if restart == "objective":
            objective = self._objective(closure)
            if first["objective"] is not None and objective > first["objective"]:
                following = 1.0
                for parameter, x in here.items():
                    parameter.copy_(x)
                evaluate(closure)
                self._forward_backward(here)
                objective = self._objective(closure)
        for parameter, x in here.items():
            self.state[parameter]["previous"] = x
        for group in self.param_groups:
            group["momentum_t"], group["objective"] = following, objective
        self._advance()
        return loss

    def _forward_backward(self, here: dict[Tensor, Tensor]) -> float:
        """Move each parameter from y by one proximal gradient step.

        Returns:
            <y - x_new, x_new - x>, each group divided by its lr; it is positive when the step
            points against the momentum that led to y.
        """
        penalties = {id(group): penalty for group, penalty in self._penalised()}
        alignment = 0.0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None or not parameter.numel():
                    continue
                y, step = parameter.clone(), float(group["lr"])
                parameter.sub_(parameter.grad, alpha=step)
                if id(group) in penalties:
                    penalties[id(group)].prox_(parameter, step)
                back, on = (y - parameter).double(), (parameter - here[parameter]).double()
                alignment += float((back * on).sum()) / step
        return alignment

    def _objective(self, closure: Callable[[], Any]) -> float:
        """The loss plus the penalties at the current parameters."""
        value = float(evaluate(closure))
        for group, penalty in self._penalised():
            value += sum(penalty.value(parameter) for parameter in group["params"])
        return value

    def _snapshot(self) -> dict[Tensor, Tensor]:
        return {p: p.clone() for group in self.param_groups for p in group["params"]}
