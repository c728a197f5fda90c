"""ProxSGD: torch's SGD, then the proximal operator with the gradients' effective step size.

torch's momentum buffer is a sum of gradients: b_1 = g_1, b_t = mu b_{t-1} + (1 - tau) g_t. A
constant gradient g moves theta by lr * w_t * g, where w_1 = 1 and w_t = mu w_{t-1} + (1 - tau);
under Nesterov by lr * (1 + mu w_t) * g. The proximal operator uses the same step size. With lr
alone, a run with momentum would converge to the minimiser for (1 - mu) times the penalty.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from gossamer.arguments import NotNegative
from gossamer.optim.half_space import HalfSpace, prox_step_
from gossamer.optim.proximal import (
    Group,
    Proximal,
    check_settings,
    evaluate,
    torch_step,
    with_program,
)
from gossamer.prox import Penalty


class ProxSGD(Proximal, torch.optim.SGD):
    """Stochastic proximal gradient: torch.optim.SGD, then each group's penalty.

    A group without a penalty, or with one of strength 0, equals torch's SGD bit for bit. With
    momentum the threshold uses the gradients' effective step size, so that a fixed point solves the
    penalised problem. The operator of a non-convex penalty returns its global minimiser.

    Args:
        params: parameters or parameter groups, as for torch's optimizers; a group may have its own
            `penalty=` and `half_space=`. For a `SparseWeight` pass its `values` and
            `penalty.on(weight)`, and set that penalty again after each `set_mask`.
        lr: learning rate; positive in groups with a penalty.
        momentum: as in torch.
        dampening: as in torch.
        weight_decay: as in torch: added to the gradient.
        nesterov: as in torch.
        penalty: default for the groups without a penalty of their own.
        half_space: default second stage for the groups without one of their own.
        maximize: maximise the loss minus the penalty.
        foreach: as in torch.
        fused: as in torch.

    Raises:
        GossamerError: a setting is invalid; see `add_param_group` for the subclasses.

    Reference:
        Beck & Teboulle 2009, "A Fast Iterative Shrinkage-Thresholding Algorithm", section 2, for
        the step; Davis & Drusvyatskiy 2019, "Stochastic model-based minimization of weakly convex
        functions", for stochastic gradients and weakly convex penalties.

    Example:
        >>> from gossamer.prox import L1
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 0.05]))
        >>> optimizer = ProxSGD([weight], lr=0.1, penalty=L1(1.0))
        >>> weight.grad = torch.zeros(2)
        >>> optimizer.step()
        >>> weight.tolist()
        [0.8999999761581421, 0.0]
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: NotNegative | Tensor = 1e-3,
        momentum: NotNegative = 0,
        dampening: float = 0,
        weight_decay: NotNegative = 0,
        nesterov: bool = False,
        *,
        penalty: Penalty | None = None,
        half_space: HalfSpace | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        check_settings(ProxSGD, locals())
        super().__init__(
            with_program(params, penalty, half_space),
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            fused=fused,
        )
        self.defaults |= {"penalty": penalty, "half_space": half_space}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step.

        Args:
            closure: recomputes the loss and its gradients; optional.

        Returns:
            The closure's return value, or None.
        """
        loss = evaluate(closure)
        penalised = list(self._penalised())
        before = self._before(penalised)
        for group in self.param_groups:
            if group["penalty"] is not None and group["momentum"]:
                self._count_momentum(group)
        torch_step(self, torch.optim.SGD, self.param_groups)
        for group, penalty in penalised:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.numel():
                    step = float(group["lr"]) * self._weight(parameter, group)
                    prox_step_(
                        parameter, penalty, group["half_space"], before.get(parameter), step=step
                    )
        self._advance()
        return loss

    def _count_momentum(self, group: Group) -> None:
        """Update w_t per parameter: a parameter's first gradient may come at any step."""
        momentum, share = float(group["momentum"]), 1 - float(group["dampening"])
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_weight"] = 1.0
            else:  # assume that a buffer from torch's SGD has reached its limit
                before = state.get("momentum_weight", share / (1 - momentum))
                state["momentum_weight"] = momentum * before + share

    def _weight(self, parameter: Tensor, group: Group) -> float:
        """The distance, in units of lr, that a constant gradient of 1 moves the parameter."""
        if not group["momentum"]:
            return 1.0
        weight: float = self.state[parameter]["momentum_weight"]
        return 1 + float(group["momentum"]) * weight if group["nesterov"] else weight
