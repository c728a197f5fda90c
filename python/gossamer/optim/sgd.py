"""ProxSGD: torch's SGD, then the proximal operator with the step that the gradients have.

torch's momentum buffer is a sum of gradients: b_1 = g_1, b_t = mu b_{t-1} + (1 - tau) g_t. A
constant gradient g moves theta by lr * w_t * g, where w_1 = 1, w_t = mu w_{t-1} + (1 - tau), and
1 + mu w_t under Nesterov. The proximal operator takes that step, lr * w_t. With lr alone a run with
momentum settles at the minimiser for (1 - mu) times the penalty.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from gossamer.optim.half_space import HalfSpace, prox_step_
from gossamer.optim.proximal import Group, Proximal, evaluate, torch_step, with_program
from gossamer.prox import Penalty


class ProxSGD(Proximal, torch.optim.SGD):
    """Stochastic proximal gradient: torch.optim.SGD, then each group's penalty.

    A group without a penalty, or with one of strength 0, is torch's SGD bit for bit. With momentum
    the threshold has the step that the gradients have (see the module), so that a fixed point
    solves the penalised problem. A non-convex penalty takes its global minimiser at any step.

    Args:
        params: parameters or groups of them, as torch takes them; a group may hold its own
            ``penalty=`` and ``half_space=``. For a `SparseWeight` give its ``values`` and
            ``penalty.on(weight)``, anew after each `set_mask`.
        lr: learning rate; positive where there is a penalty.
        momentum: of torch.
        dampening: of torch.
        weight_decay: of torch: a part of the gradient.
        nesterov: of torch.
        penalty: of the groups that name none.
        half_space: second stage of the groups that name none.
        maximize: ascend on the loss minus the penalty.
        foreach: of torch.
        fused: of torch.

    Raises:
        GossamerError: a subclass of it for a setting that does not fit: see `add_param_group`.

    Example:
        >>> from gossamer.prox import L1
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 0.05]))
        >>> optimizer = ProxSGD([weight], lr=0.1, penalty=L1(1.0))
        >>> weight.grad = torch.zeros(2)
        >>> optimizer.step()
        >>> weight.tolist()
        [0.8999999761581421, 0.0]

    Reference:
        Beck & Teboulle 2009, "A Fast Iterative Shrinkage-Thresholding Algorithm", section 2, for
        the step; Davis & Drusvyatskiy 2019, "Stochastic model-based minimization of weakly convex
        functions", for stochastic gradients and weakly convex penalties.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        penalty: Penalty | None = None,
        half_space: HalfSpace | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
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
            closure: computes the loss and its gradients anew; optional.

        Returns:
            What the closure returned, or None.
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
        """Carry w_t on, one for each parameter: their first gradients may come at any step."""
        momentum, share = float(group["momentum"]), 1 - float(group["dampening"])
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_weight"] = 1.0
            else:  # a buffer from torch's SGD is as old as it may be
                before = state.get("momentum_weight", share / (1 - momentum))
                state["momentum_weight"] = momentum * before + share

    def _weight(self, parameter: Tensor, group: Group) -> float:
        """How far a constant gradient of 1 has moved the parameter in this step, over lr."""
        if not group["momentum"]:
            return 1.0
        weight: float = self.state[parameter]["momentum_weight"]
        return 1 + float(group["momentum"]) * weight if group["nesterov"] else weight
