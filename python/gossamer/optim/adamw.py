"""ProxAdamW: AdamW and the proximal operator in AdamW's own metric.

With m, v the moments and D = sqrt(v / bias2) + eps, one step is

    theta <- argmin_z 1/2 sum_i h_i (z_i - (theta - m' / h)_i)^2 + g(z),
    m' = m / bias1,   h = D / lr.

The bias-corrected m' estimates the gradient, so gradient and threshold have the same step 1/h. A
constant gradient f' and a threshold lam therefore balance at |f'| = lam from the first step on.
(Dividing the threshold by bias1 as well would make the first one ten times too large.)

With `accumulate` AdamW steps a latent copy u, with gradients at theta, and the operator is applied
to it with the sum of all steps so far: theta = argmin_z 1/2 sum_i (z_i - u_i)^2 / S_i + g(z),
S = sum of 1 / h. So theta minimises all linearised losses and penalties so far, not the last alone.
"""

from collections.abc import Callable, Iterable
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from gossamer.arguments import NotNegative, Range
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
from gossamer.prox.operators.elementwise import ElementOp, adamw_step_
from gossamer.prox.penalties.weighted import inverse

Beta = Annotated[float, Range(lambda v: 0 <= v < 1, "in [0, 1)")]


class ProxAdamW(Proximal, torch.optim.AdamW):
    """Adaptive proximal gradient: torch.optim.AdamW, then each group's penalty in its metric.

    A group without a penalty, or with one of strength 0, equals torch's AdamW bit for bit.
    Penalties on elements take one compiled pass per parameter; all others take AdamW's step and
    then their operator in the metric. A penalty need not be convex: its operator returns the global
    minimiser at any step size, which makes this ProxGen for every penalty of `gossamer.prox`.

    An entry that never had a gradient has v = 0 and the step lr / eps: any penalty sets it to 0.

    Args:
        params: parameters or parameter groups, as for torch's optimizers; a group may have its own
            `penalty=` and `half_space=`. For a `SparseWeight` pass its `values` and
            `penalty.on(weight)`, and set that penalty again after each `set_mask`.
        lr: learning rate; positive in groups with a penalty.
        betas: as in torch.
        eps: as in torch.
        weight_decay: as in torch: decoupled, applied before the step.
        amsgrad: as in torch; the metric then uses the largest v so far.
        penalty: default for the groups without a penalty of their own.
        half_space: default second stage for the groups without one of their own.
        accumulate: default for the groups without their own: True applies the operator to a latent
            copy, with the accumulated step of each entry. Meant for convex penalties. Of a schedule
            the present strength counts for all steps. `sparsity` and the model see theta; weight
            decay acts on the copy.
        maximize: maximise the loss minus the penalty.
        foreach: as in torch, for the groups that torch steps.
        capturable: as in torch; not allowed with a penalty.
        fused: as in torch, for the groups that torch steps.

    Raises:
        GossamerError: a setting is invalid; see `add_param_group` for the subclasses.

    Reference:
        Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization"; Yun, Lozano & Yang 2021,
        "Adaptive Proximal Gradient Methods for Structured Neural Networks" (ProxGen), Algorithm 1.
        Jin, Ma, Liu, Gromov, Defazio & Xiao 2025, "PARQ: Piecewise-Affine Regularized
        Quantization", for `accumulate` (AProx), which sums the learning rates; that each entry sums
        its own steps here, so that gradient and threshold keep one step, is ours.

    Example:
        >>> from gossamer.prox import L1
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 0.05]))
        >>> optimizer = ProxAdamW([weight], lr=0.1, weight_decay=0, penalty=L1(0.5))
        >>> weight.grad = torch.tensor([-1.0, 0.1])
        >>> optimizer.step()
        >>> [round(entry, 4) for entry in weight.tolist()]
        [1.05, 0.0]
    """

    _can_accumulate: ClassVar[bool] = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: NotNegative | Tensor = 1e-3,
        betas: tuple[Beta, Beta] = (0.9, 0.999),
        eps: NotNegative = 1e-8,
        weight_decay: NotNegative = 1e-2,
        amsgrad: bool = False,
        *,
        penalty: Penalty | None = None,
        half_space: HalfSpace | None = None,
        accumulate: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
    ) -> None:
        check_settings(ProxAdamW, locals())
        super().__init__(
            with_program(params, penalty, half_space, accumulate),
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
        self.defaults |= {"penalty": penalty, "half_space": half_space, "accumulate": accumulate}

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
        in_one_pass = [
            (group, operator)
            for group, penalty in penalised
            if (operator := penalty.element_op()) is not None
            and not group["amsgrad"]
            and not group["accumulate"]
            and not any(parameter in before for parameter in group["params"])
        ]
        done = {id(group) for group, _ in in_one_pass}
        latent = [group for group in self.param_groups if group["accumulate"]]
        self._restore_latent(latent)
        torch_step(
            self, torch.optim.AdamW, [group for group in self.param_groups if id(group) not in done]
        )
        for group, operator in in_one_pass:
            self._step_in_one_pass(group, operator)
        for group, penalty in penalised:
            if id(group) in done:
                continue
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.numel():
                    metric = self._metric(parameter, group)
                    if group["accumulate"]:
                        self._add_step(parameter, metric)
                        continue
                    prox_step_(
                        parameter,
                        penalty,
                        group["half_space"],
                        before.get(parameter),
                        metric=metric,
                    )
        self._leave_latent(latent)
        self._advance()
        return loss

    def _step_in_one_pass(self, group: Group, operator: ElementOp) -> None:
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
                **operator._asdict(),
            )

    def _restore_latent(self, groups: list[Group]) -> None:
        """Put the latent copies in place of the parameters, for AdamW's step."""
        for group in groups:
            for parameter in group["params"]:
                if (copy := self.state.get(parameter, {}).get("latent")) is not None:
                    parameter.copy_(copy)

    def _add_step(self, parameter: Tensor, metric: Tensor) -> None:
        """Add this step of each entry to the sum."""
        state = self.state[parameter]
        steps = inverse(1.0, metric)
        state["steps"] = state["steps"].add_(steps) if "steps" in state else steps

    def _leave_latent(self, groups: list[Group]) -> None:
        """Keep the parameters as latent copies, and apply the operators to the parameters."""
        for group in groups:
            penalty = self._penalty(group)
            for parameter in group["params"]:
                state = self.state.get(parameter, {})
                if "steps" in state:
                    state["latent"] = parameter.clone()
                    if penalty is not None:
                        penalty.prox_(parameter, metric=inverse(1.0, state["steps"]))

    def _metric(self, parameter: Tensor, group: Group) -> Tensor:
        """The metric h of the step that AdamW has just taken, in the parameter's shape."""
        state = self.state[parameter]
        bias2 = 1 - float(group["betas"][1]) ** int(state["step"])
        v: Tensor = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
        return (v / bias2).sqrt_().add_(group["eps"]).div_(float(group["lr"]))
