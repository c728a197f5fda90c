"""ProxLinear: model-based steps for a convex penalty of residuals that the model computes.

For a loss h(r(theta)) with residuals r [m] and a convex h, one step is

    theta <- argmin_z h(r_k + J_k (z - theta_k)) + |z - theta|^2 / (2 lr),

r_k and J_k the residuals and their Jacobian at theta_k. One linearisation, theta_k = theta, is the
prox-linear step, which is Gauss-Newton (Levenberg-Marquardt) if h is a sum of squares. With more,
each at the last answer, it becomes the stochastic proximal point, the minimiser of
h(r(z)) + |z - theta|^2 / (2 lr). The step is found in the dual, with one number per residual:
z = theta - lr J' u,

    u = argmax <u, r_k + J_k (theta - theta_k)> - h*(u) - lr/2 |J' u|^2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any

import torch
from torch import Tensor

from gossamer.arguments import Positive, Range, check
from gossamer.errors import ArgumentError, DTypeError, PenaltyError
from gossamer.prox import Penalty

Rounds = Annotated[int, Range(lambda v: v >= 1, ">= 1")]
_TOL, _SWEEPS = 1e-10, 5000


class ProxLinear(torch.optim.Optimizer):
    """Model-based stochastic steps: prox-linear, Gauss-Newton, stochastic proximal point.

    The model of the loss is convex and exact in h, so that steps stay bounded at learning rates
    where gradient steps diverge. It costs one Jacobian per step: one backward pass per residual,
    and a matrix [m, m]. Meant for small batches of residuals.

    Args:
        params: parameters or parameter groups, float32 or float64 on the CPU, all stepped together.
        lr: learning rate of all parameters; groups may have their own.
        outer: h, a convex penalty of `gossamer.prox` on the residuals, such as `L1(1 / m)` (mean
            absolute value), `ElasticNet(1 / m, rho=0)` (half the mean square) or `Huber`.
        rounds: linearisations per step; 1 is prox-linear.

    Raises:
        PenaltyError: the outer penalty is not convex, or has a schedule.
        DTypeError, ArgumentError: a setting is invalid.

    Reference:
        Davis & Drusvyatskiy 2019, "Stochastic model-based minimization of weakly convex functions",
        section 4, without a regulariser of theta; Duchi & Ruan 2018, "Stochastic methods for
        composite and weakly convex optimization problems".

    Example:
        >>> from gossamer.prox import L1
        >>> x = torch.nn.Parameter(torch.tensor([3.0, 0.0]))
        >>> optimizer = ProxLinear([x], lr=100.0, outer=L1(1.0))
        >>> _ = optimizer.step(lambda: (x.square().sum() - 4).view(1))  # |x|^2 = 4, on its tangent
        >>> [round(entry, 4) for entry in x.tolist()]
        [2.1667, 0.0]
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Positive = 1e-1,
        *,
        outer: Penalty,
        rounds: Rounds = 1,
    ) -> None:
        check(ProxLinear.__init__, {"lr": lr, "rounds": rounds})
        if not isinstance(outer, Penalty):
            raise DTypeError(
                f"ProxLinear got outer={outer!r:.60}; a penalty of gossamer.prox is needed, such "
                "as L1(1.0)"
            )
        if outer.weak_convexity() != 0:
            raise PenaltyError(
                f"ProxLinear got outer={outer!r:.60}, which is not convex; use L1, Huber or "
                "ElasticNet"
            )
        super().__init__(params, {"lr": lr})
        self.outer, self.rounds = outer, rounds

    @torch.no_grad()
    def step(  # type: ignore[override]  # residuals, not a loss
        self, closure: Callable[[], Tensor] | None = None
    ) -> Any:
        """Take a step.

        Args:
            closure: returns the residuals [m] with their graph; it calls no backward.

        Returns:
            The loss h(r) before the step.

        Raises:
            DTypeError: there is no closure, or it returns no tensor.
            ArgumentError: the residuals do not depend on the parameters, or are no vector.
        """
        if closure is None:
            raise DTypeError("ProxLinear.step got no closure; it needs one that returns residuals")
        start = [parameter.clone() for parameter in self._parameters()]
        loss = None
        for _ in range(self.rounds):
            residuals, jacobian = self._linearise(closure)
            loss = self.outer.value(residuals) if loss is None else loss
            moved = torch.cat(
                [
                    (s - p).double().reshape(-1)
                    for s, p in zip(start, self._parameters(), strict=True)
                ]
            )
            anchored = residuals + jacobian @ moved
            rates = self._rates()
            dual = self._dual(anchored, (jacobian * rates) @ jacobian.T)
            move = -rates * (jacobian.T @ dual)
            at = 0
            for parameter, origin in zip(self._parameters(), start, strict=True):
                own = move[at : at + parameter.numel()].view(parameter.shape)
                parameter.copy_(origin + own.to(parameter.dtype))
                at += parameter.numel()
        return loss

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _rates(self) -> Tensor:
        """The learning rate of each entry, float64."""
        parts = [
            torch.full((p.numel(),), float(group["lr"]), dtype=torch.float64)
            for group in self.param_groups
            for p in group["params"]
        ]
        return torch.cat(parts)

    def _linearise(self, closure: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """The residuals [m] and their Jacobian [m, entries], in float64."""
        with torch.enable_grad():
            residuals = closure()
            if not isinstance(residuals, Tensor):
                raise DTypeError(f"the closure returned {residuals!r:.60}; residuals are needed")
            if residuals.dim() != 1 or not residuals.numel() or not residuals.requires_grad:
                raise ArgumentError(
                    f"the closure returned residuals of shape {list(residuals.shape)}; a vector "
                    "that depends on the parameters is needed"
                )
            rows = []
            for i in range(len(residuals)):
                grads = torch.autograd.grad(
                    residuals[i], self._parameters(), retain_graph=True, allow_unused=True
                )
                rows.append(
                    torch.cat(
                        [
                            (torch.zeros_like(p) if g is None else g).double().reshape(-1)
                            for g, p in zip(grads, self._parameters(), strict=True)
                        ]
                    )
                )
        return residuals.detach().double(), torch.stack(rows)

    def _dual(self, residuals: Tensor, gram: Tensor) -> Tensor:
        """Maximise <u, r> - h*(u) - <u, K u> / 2 by accelerated steps with restart.

        The operator of h* comes from that of h by Moreau's identity.
        """
        size = float(torch.linalg.eigvalsh(gram)[-1])
        if not size > 0:
            return torch.zeros_like(residuals)
        u = ahead = torch.zeros_like(residuals)
        t, scale = 1.0, float(residuals.norm()) + 1e-300
        for _ in range(_SWEEPS):
            v = ahead + (residuals - gram @ ahead) / size
            following = v - self.outer.prox_(v * size, size) / size
            if float((following - ahead).norm()) * size <= _TOL * scale:
                return following
            if float((ahead - following) @ (following - u)) > 0:
                t = 1.0
            grown = (1 + (1 + 4 * t * t) ** 0.5) / 2
            ahead = following + ((t - 1) / grown) * (following - u)
            u, t = following, grown
        return u
