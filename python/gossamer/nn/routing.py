"""Routers of a mixture of experts: which expert sees which token, and with what weight.

A router scores tokens against experts, decides, and weighs what it decided by a function of the
scores, through which it learns. The decision is each token's own best (`TopKRouter`), or a
transport plan between tokens and experts, which fills all experts alike (`SinkhornRouter`).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from gossamer.errors import DTypeError, ShapeError
from gossamer.ot import constrained, core

Solver = Literal["sinkhorn", "sparse"]


class Routing(NamedTuple):
    """What a router decided.

    Attributes:
        gates: [..., experts], the weight of an expert where a token is sent, else 0.
        assigned: bool [..., experts], True where a token is sent.
    """

    gates: Tensor
    assigned: Tensor

    @property
    def load(self) -> Tensor:
        """Tokens that each expert gets, int64 [experts]."""
        return self.assigned.flatten(0, -2).sum(0)


class TopKRouter(nn.Module):
    """Send each token to the k experts that score highest, weighed by the softmax of the scores.

    Nothing keeps the experts' loads equal.

    Args:
        d_model: features of a token.
        experts: number of experts.
        k: experts that a token is sent to.

    Raises:
        ShapeError: a size below 1, or k above experts.

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
        if k > experts:
            raise ShapeError(
                f"{type(self).__name__} got k={k} with experts={experts}; a token can go to each "
                "expert once: lower k or add experts"
            )
        # A parameter and no nn.Linear: so small that sparsify() should leave it alone.
        self.weight = nn.Parameter(torch.empty(experts, d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight anew: scores of a normalised token start well below 1."""
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Routing:
        """Route tokens.

        Args:
            x: [..., d_model], floating.

        Returns:
            The routing; its gates are float32 (float64 for float64) and carry the gradient.

        Raises:
            ShapeError: the last size is not d_model.
            DTypeError: x is not floating.
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
        """Decide from scores [tokens, experts]: bool, of the same shape."""
        return _largest(scores, self.k, 1)

    def weigh(self, scores: Tensor) -> Tensor:
        """The gates of all pairs, before the decision."""
        return scores.softmax(-1)

    def extra_repr(self) -> str:
        """The line that `print(model)` shows."""
        return f"d_model={self.d_model}, experts={self.experts}, k={self.k}"


class SinkhornRouter(TopKRouter):
    """Send tokens to experts by optimal transport, so that all experts get their share.

    In training all tokens of a call are matched with all experts at once. Token i has mass 1, each
    expert takes tokens / experts, the cost is minus the score; a token goes to the k largest
    entries of its row of the plan. No expert gets more than
    ``ceil(capacity * k * tokens / experts)`` tokens; a token can be left without an expert, then
    its gates are all 0. A gate is the sigmoid of the score: the softmax would be small wherever
    the plan sends a token away from the expert that scores highest.

    A decision that looks at all tokens would let a language model see the future. So in evaluation
    each token decides alone, for the highest scores plus `balance`: the experts' potentials of the
    plan, averaged over the training steps, under which the loads were equal.

    Args:
        d_model: features of a token.
        experts: number of experts.
        capacity: tokens an expert may take, over its even share; at least 1.
        k: experts that a token is sent to, at most.
        reg: smoothing of the plan in units of the scores' standard deviation: higher spreads a
            token over more experts. 0.05 for k = 1, else 1, when None.
        solver: "sinkhorn" (entropic transport, of whose plan each expert keeps its largest
            entries, Clark et al.) or "sparse" (transport in which no expert can have more entries
            than that, Liu et al.; slower).

    Raises:
        ShapeError: a size below 1, k above experts, capacity below 1, or reg not positive.

    Reference:
        Clark et al. 2022, "Unified scaling laws for routed language models" (S-BASE: the plan of
        Sinkhorn in training, each token alone in inference; the potentials there are ours).
        Lewis et al. 2021, "BASE layers" (the sigmoid).
        Liu, Puigcerver, Blondel 2023, "Sparsity-constrained optimal transport" (the capacity of
        an expert as a bound on the non-zeros of its column).

    Example:
        >>> import torch
        >>> router = SinkhornRouter(16, experts=4, capacity=1.0)
        >>> router(torch.randn(2, 32, 16)).load.max() <= 16
        tensor(True)
    """

    balance: Tensor
    momentum = 0.9  # of balance: an average over the last ten steps or so
    steps, tol = 50, 1e-3  # of the plan, which only decides: capacity holds whatever its error

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
            raise ShapeError(
                f"SinkhornRouter got capacity={capacity}; it must be at least 1: below that some "
                "tokens find no expert"
            )
        reg = (0.05 if k == 1 else 1.0) if reg is None else reg
        if not 0 < reg < math.inf:
            raise ShapeError(f"SinkhornRouter got reg={reg}; a positive number is needed")
        if solver not in ("sinkhorn", "sparse"):
            raise ShapeError(f"SinkhornRouter got solver={solver!r:.80}; choose sinkhorn or sparse")
        self.capacity, self.reg, self.solver = capacity, reg, solver
        self.register_buffer("balance", torch.zeros(experts))

    def limit(self, tokens: int) -> int:
        """Tokens that an expert may take of so many."""
        return min(tokens, math.ceil(self.capacity * self.k * tokens / self.experts))

    def assign(self, scores: Tensor) -> Tensor:
        """Decide from scores [tokens, experts]: bool, of the same shape.

        Raises:
            ShapeError: a score is NaN or infinite.
        """
        if not bool(torch.isfinite(scores).all()):
            raise ShapeError(
                "SinkhornRouter got tokens whose scores are not finite: x or the weight holds NaN "
                "or infinity; lower the learning rate, or look for the layer that made them"
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
        """The gates of all pairs, before the decision."""
        return scores.sigmoid()

    def _transport(self, cost: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        """The plan [tokens, experts] of a cost and the experts' potentials."""
        tokens = torch.ones(len(cost), dtype=torch.float64)
        experts = torch.full((self.experts,), len(cost) / self.experts, dtype=torch.float64)
        spread = float(cost.std(correction=0))
        reg = self.reg * (spread if spread > 0 else 1.0)
        if self.solver == "sparse":
            sparse = constrained.solve(
                cost, tokens, experts, limit, reg, max_iter=self.steps, tol=self.tol
            )
            return sparse.plan.dense(), sparse.g
        tol = self.tol * len(cost)
        found = core.solve_dual(cost, tokens, experts, reg, tol=tol, max_iter=self.steps)
        return core.plan(cost, found.f, found.g, reg), found.g

    def extra_repr(self) -> str:
        """The line that `print(model)` shows."""
        return f"{super().extra_repr()}, capacity={self.capacity}, solver={self.solver}"


def _largest(x: Tensor, count: int, dim: int) -> Tensor:
    """True at the `count` largest entries along a dimension."""
    chosen = x.topk(min(count, x.shape[dim]), dim).indices
    return torch.zeros_like(x, dtype=torch.bool).scatter_(dim, chosen, True)


def _size(router: nn.Module, name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ShapeError(
            f"{type(router).__name__} got {name}={value!r:.80}; an integer of at least 1 is needed"
        )
    return value
