"""ProxAdamW: AdamW and the proximal operator in AdamW's own metric.

With m, v the moments and D = sqrt(v / bias2) + eps, one step is

    theta <- argmin_z 1/2 sum_i h_i (z_i - (theta - m' / h)_i)^2 + g(z),
    m' = m / bias1,   h = D / lr.

The bias-corrected m' estimates the gradient, so gradient and threshold have the same step 1/h: a
constant gradient f' and a threshold lam come to rest against each other where |f'| = lam, from the
first step on. (Dividing the threshold by bias1 as well would make it ten times too long there.)
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from gossamer.optim.half_space import HalfSpace, prox_step_
from gossamer.optim.proximal import Group, Proximal, evaluate, torch_step, with_program
from gossamer.prox import Penalty
from gossamer.prox.operators.elementwise import adamw_step_


class ProxAdamW(Proximal, torch.optim.AdamW):
    """Adaptive proximal gradient: torch.optim.AdamW, then each group's penalty in its metric.

    A group without a penalty, or with one of strength 0, is torch's AdamW bit for bit. Penalties on
    elements take one compiled pass a parameter; the others AdamW's step and then their operator in
    the metric. Penalties may be convex or not: their operators give the global minimiser at any
    step, so that this is ProxGen for l0, lp, MCP and every other penalty of `gossamer.prox`.

    An entry that never had a gradient has v = 0 and a step of lr / eps: any penalty sets it to 0.

    Args:
        params: parameters or groups of them, as torch takes them; a group may hold its own
            ``penalty=`` and ``half_space=``. For a `SparseWeight` give its ``values`` and
            ``penalty.on(weight)``, anew after each `set_mask`.
        lr: learning rate; positive where there is a penalty.
        betas: of torch.
        eps: of torch.
        weight_decay: of torch: decoupled, before the step.
        amsgrad: of torch; the metric then has the largest v so far.
        penalty: of the groups that name none.
        half_space: second stage of the groups that name none.
        maximize: ascend on the loss minus the penalty.
        foreach: of torch, in the groups that torch steps.
        capturable: of torch; not with a penalty.
        fused: of torch, in the groups that torch steps.

    Raises:
        GossamerError: a subclass of it for a setting that does not fit: see `add_param_group`.

    Example:
        >>> from gossamer.prox import L1
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 0.05]))
        >>> optimizer = ProxAdamW([weight], lr=0.1, weight_decay=0, penalty=L1(0.5))
        >>> weight.grad = torch.tensor([-1.0, 0.1])
        >>> optimizer.step()
        >>> [round(entry, 4) for entry in weight.tolist()]
        [1.05, 0.0]

    Reference:
        Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization"; Yun, Lozano & Yang 2021,
        "Adaptive Proximal Gradient Methods for Structured Neural Networks" (ProxGen), Algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        penalty: Penalty | None = None,
        half_space: HalfSpace | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            with_program(params, penalty, half_space),
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
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
        in_one_pass = [
            (group, *operator)
            for group, penalty in penalised
            if (operator := penalty.element_op()) is not None
            and not group["amsgrad"]
            and not any(parameter in before for parameter in group["params"])
        ]
        done = {id(group) for group, _, _ in in_one_pass}
        torch_step(
            self, torch.optim.AdamW, [group for group in self.param_groups if id(group) not in done]
        )
        for group, kind, values in in_one_pass:
            self._step_in_one_pass(group, kind, values)
        for group, penalty in penalised:
            if id(group) in done:
                continue
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.numel():
                    prox_step_(
                        parameter,
                        penalty,
                        group["half_space"],
                        before.get(parameter),
                        metric=self._metric(parameter, group),
                    )
        self._advance()
        return loss

    def _step_in_one_pass(self, group: Group, kind: str, values: tuple[float, ...]) -> None:
        beta1, beta2 = group["betas"]
        for parameter in group["params"]:
            if parameter.grad is None or not parameter.numel():
                continue
            state = self.state[parameter]
            if not state:  # as torch makes it, which may step this group at other times
                dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
                state["step"] = torch.zeros((), dtype=torch.float32 if group["fused"] else dtype)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["step"] += 1
            adamw_step_(
                parameter,
                -parameter.grad if group["maximize"] else parameter.grad,
                state["exp_avg"],
                state["exp_avg_sq"],
                lr=float(group["lr"]),
                beta1=float(beta1),
                beta2=float(beta2),
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                step=int(state["step"]),
                kind=kind,
                params=values,
            )

    def _metric(self, parameter: Tensor, group: Group) -> Tensor:
        """The metric h of the step that AdamW has just taken, as large as the parameter."""
        state = self.state[parameter]
        bias2 = 1 - float(group["betas"][1]) ** int(state["step"])
        v: Tensor = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
        return (v / bias2).sqrt_().add_(group["eps"]).div_(float(group["lr"]))
