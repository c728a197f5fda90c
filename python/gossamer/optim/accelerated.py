"""Accelerated proximal gradient (FISTA) with restarts, for full-batch problems.

    y = x_k + (t_k - 1) / t_{k+1} * (x_k - x_{k-1}),   t_{k+1} = (1 + sqrt(1 + 4 t_k^2)) / 2
    x_{k+1} = prox_{lr g}(y - lr * grad f(y))

Without a restart the iterates ripple once the momentum is larger than the conditioning asks for;
both restarts set t = 1 when that shows, and need no number of the problem.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from gossamer.errors import ArgumentError, DTypeError
from gossamer.optim.proximal import Group, Proximal, evaluate, with_program
from gossamer.prox import Penalty
from gossamer.prox.checks import is_number

Restart = Literal["gradient", "objective"]


class AcceleratedProxGradient(Proximal):
    """FISTA with adaptive restart: the minimiser of a smooth loss plus a penalty.

    For losses without noise, computed by a closure at each step. At rest, the parameters hold x_k.
    Convergence is proven for a convex loss and penalty and lr at most 1 / L, L the Lipschitz
    constant of the loss's gradient; otherwise restart="objective" still never ascends for such lr.

    Args:
        params: parameters or groups of them, as torch takes them; a group may hold ``penalty=``.
        lr: step, at most 1 / L.
        restart: "gradient" when the step points against the momentum: free. "objective" when the
            penalised loss would rise: the step is then taken anew without momentum, so that it
            never rises; takes the closure twice a step, and twice more at a restart. None for
            plain FISTA.
        penalty: of the groups that name none.

    Raises:
        GossamerError: a subclass of it for a setting that does not fit: see `add_param_group`.

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

    Reference:
        Beck & Teboulle 2009, "A Fast Iterative Shrinkage-Thresholding Algorithm for Linear Inverse
        Problems", section 4; O'Donoghue & Candes 2015, "Adaptive Restart for Accelerated Gradient
        Schemes", section 3.2.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        *,
        restart: Restart | None = "gradient",
        penalty: Penalty | None = None,
    ) -> None:
        if restart not in ("gradient", "objective", None):
            raise DTypeError(
                f"AcceleratedProxGradient got restart={restart!r:.40}; choose 'gradient', "
                "'objective' or None"
            )
        if not ((is_number(lr) or isinstance(lr, Tensor)) and 0 < lr < math.inf):
            raise ArgumentError(
                f"AcceleratedProxGradient got lr={lr!r:.40}; it is a positive step, at most one "
                "over the Lipschitz constant of the gradient"
            )
        defaults = {"lr": lr, "restart": restart, "momentum_t": 1.0, "objective": None}
        super().__init__(with_program(params, penalty, None), defaults)
        self.defaults |= {"penalty": penalty, "half_space": None}

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters, with ``penalty=`` of their own if they need one: see `Proximal`."""
        if param_group.get("half_space") is not None:
            raise DTypeError(
                "AcceleratedProxGradient got half_space=; its stage is for noisy gradients: use "
                "ProxSGD or ProxAdamW"
            )
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step.

        Args:
            closure: clears the gradients, computes the loss, calls backward, returns the loss. If
                it raises, the parameters go back to where they were.

        Returns:
            What the closure returned at the extrapolated point y.

        Raises:
            DTypeError: there is no closure.
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
            <y - x_new, x_new - x> in the metric of the steps: positive when the step points
            against the momentum that led to y.
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
        """Loss plus penalties where the parameters are now."""
        value = float(evaluate(closure))
        for group, penalty in self._penalised():
            value += sum(penalty.value(parameter) for parameter in group["params"])
        return value

    def _snapshot(self) -> dict[Tensor, Tensor]:
        return {p: p.clone() for group in self.param_groups for p in group["params"]}
