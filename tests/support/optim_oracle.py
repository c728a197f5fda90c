"""AdamW and SGD by their formulas, in float64, with the proximal operators written out."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Prox = Callable[[Tensor, Tensor], Tensor]


def soft(lam: float) -> Prox:
    def prox(v: Tensor, step: Tensor) -> Tensor:
        return v.sign() * (v.abs() - lam * step).clamp_min(0)

    return prox


def hard(lam: float) -> Prox:
    def prox(v: Tensor, step: Tensor) -> Tensor:
        return torch.where(v.abs() > (2 * lam * step).sqrt(), v, 0.0)

    return prox


def half(lam: float) -> Prox:
    """lam |x|^(1/2): the closed form of Xu, Chang, Xu & Zhang 2012, entry by entry."""

    def scalar(v: float, t: float) -> float:
        if abs(v) <= 1.5 * t ** (2 / 3):
            return 0.0
        angle = math.acos(t / 4 * (abs(v) / 3) ** -1.5)
        return 2 / 3 * v * (1 + math.cos(2 * math.pi / 3 - 2 / 3 * angle))

    def prox(v: Tensor, step: Tensor) -> Tensor:
        pairs = zip(v.flatten().tolist(), (lam * step).expand_as(v).flatten().tolist(), strict=True)
        return torch.tensor([scalar(*pair) for pair in pairs], dtype=v.dtype).view_as(v)

    return prox


def adamw(
    x: Tensor,
    grads: list[Tensor],
    prox: Prox,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    once: bool = True,
) -> Tensor:
    """Parameters after one step a gradient; once=False divides the threshold by bias1 too."""
    x = x.double()
    m, v, top = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x)
    for t, g in enumerate(grads, 1):
        g = g.double()
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        top = torch.maximum(top, v)
        bias1, bias2 = 1 - betas[0] ** t, 1 - betas[1] ** t
        denominator = ((top if amsgrad else v) / bias2).sqrt() + eps
        step = lr / denominator
        x = x * (1 - lr * weight_decay) - step * m / bias1
        x = prox(x, step if once else step / bias1)
    return x


def sgd(
    x: Tensor,
    grads: list[Tensor],
    prox: Prox,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
) -> Tensor:
    """Parameters after one step a gradient; the threshold's step is a constant gradient's move."""
    x = x.double()
    buffer, weight = torch.zeros_like(x), 0.0
    for t, g in enumerate(grads):
        g, share = g.double(), 1 - dampening if t else 1.0
        buffer, weight = momentum * buffer + share * g, momentum * weight + share
        move, moved = buffer, weight
        if nesterov:
            move, moved = g + momentum * buffer, 1 + momentum * weight
        x = prox(x - lr * move, torch.tensor(lr * moved, dtype=torch.float64))
    return x
