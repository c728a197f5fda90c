"""A shallow ReLU network with its gradient written out: its sizes are too small for autograd.

    one input       f(x) = sum_k v_k relu(w_k x + b_k) + a x + c     penalty sum_k |v_k w_k|^p
    several inputs  f(x) = sum_k v_k relu(<w_k, [x; 1]>)             penalty sum_ki |v_k w_ki|^p

All parameters lie in one flat tensor, so that an optimizer's step is a handful of operations.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from experiments.sparsest_relu.points import Points

__all__ = ["Parts", "ShallowReLU"]

# Products below this are zero, as the paper counts: with one input, with several.
ZERO_UNIVARIATE, ZERO_MULTIVARIATE = 1e-8, 1e-6
# Kinks nearer than this share of the points' range are one kink of the function.
SAME_KINK = 1e-3


class Parts(NamedTuple):
    """Views into a flat tensor: [neurons], [neurons, inputs], and for one input b, (a, c)."""

    v: Tensor
    w: Tensor
    bias: Tensor | None
    line: Tensor | None


class ShallowReLU:
    """The network, and its gradient for the mean squared error at given points.

    Args:
        points: what it is to pass through.
        neurons: how many to begin with.
        seed: of the initial weights, uniform as in ``torch.nn.Linear``.

    Attributes:
        theta: float32, all parameters.
        grad: of the same size, after `gradient`.
        parts: views into theta.
        zero: products ``|v w|`` at or below it count as zero.
    """

    def __init__(self, points: Points, neurons: int, seed: int) -> None:
        self.points, self.univariate = points, points.univariate
        ones = torch.ones(len(points.y), 1)
        self.inputs = points.x if self.univariate else torch.cat([points.x, ones], 1)
        self.zero = ZERO_UNIVARIATE if self.univariate else ZERO_MULTIVARIATE
        width = self.inputs.shape[1]
        size = neurons * (1 + width) + (neurons + 2 if self.univariate else 0)
        self.theta, self.grad = torch.zeros(size), torch.zeros(size)
        self.parts = self._views(self.theta, neurons, width)
        self._grads = self._views(self.grad, neurons, width)
        generator = torch.Generator().manual_seed(seed)
        self.parts.v.uniform_(-1, 1, generator=generator).mul_(neurons**-0.5)
        self.parts.w.uniform_(-1, 1, generator=generator).mul_(width**-0.5)
        if self.parts.bias is not None:
            self.parts.bias.uniform_(-1, 1, generator=generator)

    def _views(self, flat: Tensor, neurons: int, width: int) -> Parts:
        end = neurons * (1 + width)
        v, w, rest = flat[:neurons], flat[neurons:end], flat[end:]
        if not self.univariate:
            return Parts(v, w.view(neurons, width), None, None)
        return Parts(v, w.view(neurons, width), rest[:neurons], rest[neurons:])

    def __call__(self, x: Tensor) -> Tensor:
        """Values at x [points, inputs] (without the column of ones)."""
        v, w, bias, line = self.parts
        if bias is None or line is None:
            return torch.cat([x, torch.ones(len(x), 1)], 1).mm(w.t()).relu_().mv(v)
        return torch.addmm(bias, x, w.t()).relu_().mv(v).add_(line[0] * x[:, 0]).add_(line[1])

    def gradient(self) -> float:
        """Write the gradient of the mean squared error into `grad`; returns that error."""
        x, y = self.inputs, self.points.y
        v, w, bias, line = self.parts
        before = torch.mm(x, w.t()) if bias is None else torch.addmm(bias, x, w.t())
        after = before.relu()
        error = torch.mv(after, v)
        if line is not None:
            error.addcmul_(x[:, 0], line[:1]).add_(line[1:])
        error.sub_(y)
        loss = float(error.dot(error)) / len(y)
        error.mul_(2 / len(y))
        torch.mv(after.t(), error, out=self._grads.v)
        inner = torch.outer(error, v).mul_(before > 0)
        torch.mm(inner.t(), x, out=self._grads.w)
        if self._grads.bias is not None and self._grads.line is not None:
            torch.sum(inner, 0, out=self._grads.bias)
            self._grads.line[0] = error.dot(x[:, 0])
            self._grads.line[1] = error.sum()
        return loss

    def products(self) -> Tensor:
        """``v_k w_ki``, a new tensor [neurons, inputs]."""
        return self.parts.v[:, None] * self.parts.w

    def alive(self) -> Tensor:
        """Bool [neurons, inputs]: the products that are not zero."""
        return self.products().abs() > self.zero

    def kinks(self) -> list[tuple[float, float]]:
        """With one input: (place, change of slope) of every active neuron, in order of place."""
        v, w, bias, _ = self.parts
        if bias is None:
            return []
        keep = self.alive()[:, 0]
        places = (-bias[keep] / w[keep, 0]).tolist()
        return sorted(zip(places, (v[keep] * w[keep, 0].abs()).tolist(), strict=True))

    def distinct_kinks(self) -> list[tuple[float, float]]:
        """Kinks with neighbours merged that no data could tell apart (`SAME_KINK`)."""
        width = SAME_KINK * float(self.points.x.max() - self.points.x.min())
        merged: list[tuple[float, float]] = []
        for place, change in self.kinks():
            if merged and place - merged[-1][0] <= width:
                before = merged[-1]
                merged[-1] = (before[0], before[1] + change)
            else:
                merged.append((place, change))
        return merged

    def refit(self) -> float:
        """Mean squared error with v (and a x + c) fitted again by least squares, all else kept."""
        keep = self.alive().any(1)
        _, w, bias, _ = self.parts
        x = self.inputs.double()
        before = x @ w[keep].double().t() + (0.0 if bias is None else bias[keep].double())
        columns = [before.relu()]
        if bias is not None:
            columns += [x, torch.ones_like(x)]
        design, y = torch.cat(columns, 1), self.points.y.double()
        if design.shape[1] == 0:
            return float(y.square().mean())
        solution = torch.linalg.lstsq(design, y[:, None], driver="gelsd").solution
        return float((design @ solution - y[:, None]).square().mean())
