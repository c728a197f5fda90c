"""Routers of a mixture of experts: they assign tokens to experts and weigh the assignments.

A router scores every pair of token and expert, assigns tokens, and weighs each assignment by a
differentiable function of its score. `TopKRouter` assigns each token to its best experts.
`SinkhornRouter` assigns by a transport plan, which loads all experts equally.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from gossamer.arguments import check
from gossamer.errors import ArgumentError, DTypeError, ShapeError
from gossamer.ot import constrained, core
from gossamer.patterns import as_integer

Solver = Literal["sinkhorn", "sparse"]


class Routing(NamedTuple):
    """The decision of a router.

    Attributes:
        gates: [..., experts], the weight of each assigned expert, else 0.
        assigned: bool [..., experts], True where a token is assigned to an expert.
    """

    gates: Tensor
    assigned: Tensor

    @property
    def load(self) -> Tensor:
        """The number of tokens per expert, int64 [experts]."""
        return self.assigned.flatten(0, -2).sum(0)


class TopKRouter(nn.Module):
    """Assign each token to its k highest-scoring experts, weighed by the softmax of the scores.

    The experts' loads are not balanced.

    Args:
        d_model: features per token.
        experts: number of experts.
        k: experts per token.

    Raises:
        DTypeError: a size is not an integer.
        ArgumentError: a size is below 1, or k is above `experts`.

    Reference:
        Shazeer et al. 2017, "Outrageously large neural networks"; scores in float32 as in
        Fedus et al. 2022, "Switch transformers".

    Example:
        >>> import torch
        >>> routing = TopKRouter(16, experts=4, k=2)(torch.randn(2, 8, 16))
        >>> routing.gates.shape, routing.load.sum()
        (torch.Size([2, 8, 4]), tensor(32))
    """

    def __init__(self, d_model: int, experts: int, k: int = 1) -> None:
        super().__init__()
        self.d_model = _size(self, "d_model", d_model)
        self.experts = _size(self, "experts", experts)
        self.k = _size(self, "k", k)
        if self.k > self.experts:
            raise ArgumentError(
                f"{type(self).__name__} got k={k} with experts={experts}; a token can go to each "
                "expert once: lower k or add experts"
            )
        # A parameter, not an nn.Linear, so that sparsify() leaves this small matrix dense.
        self.weight = nn.Parameter(torch.empty(self.experts, self.d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight again; it is small, so that initial scores are well below 1."""
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Routing:
        """Route tokens.

        Args:
            x: floating [..., d_model] with at least two dimensions.

        Returns:
            The routing; its gates are differentiable and float32 (float64 for float64 x).

        Raises:
            ShapeError: x has fewer than two dimensions, or its last size is not `d_model`.
            DTypeError: x is not a floating tensor.
        """
        name = type(self).__name__
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise DTypeError(f"{name} got x of {kind}; a floating tensor is needed")
        if x.dim() < 2 or x.shape[-1] != self.d_model:
            raise ShapeError(
                f"{name} got x of shape {list(x.shape)}; [..., {self.d_model}] with at least two "
                "dimensions is needed"
            )
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            scores = x.to(dtype) @ self.weight.to(dtype).T
            assigned = self.assign(scores.detach().flatten(0, -2)).view_as(scores)
            return Routing(self.weigh(scores) * assigned, assigned)

    def assign(self, scores: Tensor) -> Tensor:
        """Return the assignment for scores [tokens, experts] as bool of the same shape."""
        return _largest(scores, self.k, 1)

    def weigh(self, scores: Tensor) -> Tensor:
        """Return the gates of all pairs, whether assigned or not."""
        return scores.softmax(-1)

    def extra_repr(self) -> str:
        """Return the line that `print(model)` shows."""
        return f"d_model={self.d_model}, experts={self.experts}, k={self.k}"


class SinkhornRouter(TopKRouter):
    """Assign tokens to experts by optimal transport, which balances the experts' loads.

    In training, one plan matches all tokens of a call with all experts. Each token has mass 1, each
    expert has mass tokens / experts, and the cost is minus the score. A token is assigned to the k
    largest entries of its row of the plan. No expert gets more than
    `ceil(capacity * k * tokens / experts)` tokens; the gates of a token without an expert are all
    0. A gate is the sigmoid of the score, because the softmax is small wherever the plan moves a
    token away from its highest-scoring expert.

    A plan over all tokens would show a language model the future. So in evaluation each token is
    routed alone, by its highest scores plus `balance`: the experts' potentials in the plan,
    averaged over the training steps.

    Args:
        d_model: features per token.
        experts: number of experts.
        capacity: largest number of tokens per expert over its even share; at least 1.
        k: largest number of experts per token.
        reg: smoothing of the plan in units of the scores' standard deviation; a higher value
            spreads a token over more experts. None is 0.05 for k = 1, else 1.
        solver: "sinkhorn" is entropic transport, where each expert keeps its largest entries of the
            plan (Clark et al.); "sparse" bounds the entries per expert in the plan itself (Liu et
            al.) and is slower.

    Raises:
        DTypeError: a size is not an integer.
        ArgumentError: a size is below 1, k is above `experts`, capacity is below 1, reg is not
            positive, or the solver is unknown.

    Reference:
        Clark et al. 2022, "Unified scaling laws for routed language models" (S-BASE: a
        Sinkhorn plan in training, each token alone in inference; the potentials are ours).
        Lewis et al. 2021, "BASE layers" (the sigmoid gate).
        Liu, Puigcerver, Blondel 2023, "Sparsity-constrained optimal transport" (the capacity as
        a bound on the non-zeros per column).

    Example:
        >>> import torch
        >>> router = SinkhornRouter(16, experts=4, capacity=1.0)
        >>> router(torch.randn(2, 32, 16)).load.max() <= 16
        tensor(True)
    """

    balance: Tensor
    momentum = 0.9  # of balance: averages about ten steps
    steps, tol = 50, 1e-3  # of the plan; its error does not affect capacity

    def __init__(
        self,
        d_model: int,
        experts: int,
        capacity: float = 1.25,
        k: int = 1,
        reg: float | None = None,
        solver: Solver = "sinkhorn",
    ) -> None:
        super().__init__(d_model, experts, k)
        if not 1 <= capacity < math.inf:
            raise ArgumentError(
                f"SinkhornRouter got capacity={capacity}; it must be at least 1, so that all "
                "tokens fit: raise it"
            )
        reg = (0.05 if k == 1 else 1.0) if reg is None else reg
        if not 0 < reg < math.inf:
            raise ArgumentError(f"SinkhornRouter got reg={reg}; a positive number is needed")
        if solver not in ("sinkhorn", "sparse"):
            raise ArgumentError(
                f"SinkhornRouter got solver={solver!r:.80}; choose sinkhorn or sparse"
            )
        self.capacity, self.reg, self.solver = capacity, reg, solver
        self.register_buffer("balance", torch.zeros(experts))

    def limit(self, tokens: int) -> int:
        """Return the largest number of tokens per expert when `tokens` are routed."""
        check(SinkhornRouter.limit, locals())
        return min(tokens, math.ceil(self.capacity * self.k * tokens / self.experts))

    def assign(self, scores: Tensor) -> Tensor:
        """Return the assignment for scores [tokens, experts] as bool of the same shape.

        Raises:
            ArgumentError: a score is NaN or infinite.
        """
        if not bool(torch.isfinite(scores).all()):
            raise ArgumentError(
                "SinkhornRouter got tokens whose scores are not finite: x or the weight holds NaN "
                "or infinity; lower the learning rate, or find the layer that made them"
            )
        if not self.training:
            return super().assign(scores + self.balance.to(scores.dtype))
        if not len(scores):
            return torch.zeros_like(scores, dtype=torch.bool)
        plan, potentials = self._transport(-scores.double().cpu(), self.limit(len(scores)))
        self.balance.lerp_((potentials - potentials.mean()).to(self.balance), 1 - self.momentum)
        plan = plan * _largest(plan, self.k, 1)
        return (_largest(plan, self.limit(len(scores)), 0) & (plan > 0)).to(scores.device)

    def weigh(self, scores: Tensor) -> Tensor:
        """Return the gates of all pairs, whether assigned or not."""
        return scores.sigmoid()

    def _transport(self, cost: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        """Return the plan [tokens, experts] for a cost, and the experts' potentials."""
        tokens = torch.ones(len(cost), dtype=torch.float64)
        experts = torch.full((self.experts,), len(cost) / self.experts, dtype=torch.float64)
        spread = float(cost.std(correction=0))
        reg = self.reg * (spread if spread > 0 else 1.0)
        if self.solver == "sparse":
            sparse = constrained.solve(
                cost, tokens, experts, limit, reg, max_iter=self.steps, tol=self.tol
            )
            return sparse.plan.dense(), sparse.g
        options = core.Options(tol=self.tol * len(cost), max_iter=self.steps)
        found = core.solve_dual(cost, tokens, experts, reg, options)
        return core.plan(cost, found.f, found.g, reg), found.g

    def extra_repr(self) -> str:
        """Return the line that `print(model)` shows."""
        return f"{super().extra_repr()}, capacity={self.capacity}, solver={self.solver}"


def _largest(x: Tensor, count: int, dim: int) -> Tensor:
    """Return True at the `count` largest entries along a dimension."""
    chosen = x.topk(min(count, x.shape[dim]), dim).indices
    return torch.zeros_like(x, dtype=torch.bool).scatter_(dim, chosen, True)


def _size(router: nn.Module, name: str, value: int) -> int:
    value = as_integer(value, f"{type(router).__name__} got {name}")
    if value < 1:
        raise ArgumentError(f"{type(router).__name__} got {name}={value}; it must be at least 1")
    return value
