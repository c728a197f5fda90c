"""Sharpness methods written out over a list of parameters, without hooks and contexts."""

from collections.abc import Callable

import torch
from torch import Tensor

Grads = list[Tensor]
# The gradients at w + e, and nothing else changes.
At = Callable[[Grads], Grads]


def norm(tensors: Grads) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors]))


def up(grads: Grads, rho: float, of: Grads | None = None) -> Grads:
    factor = rho / (norm(of or grads) + 1e-12)
    return [g * factor for g in grads]


def sam(at: At, g: Grads, rho: float) -> Grads:
    return at(up(g, rho))


def asam(at: At, g: Grads, w: Grads, is_weight: list[bool], rho: float, eta: float) -> Grads:
    t = [p.abs() + eta if yes else torch.ones_like(p) for p, yes in zip(w, is_weight, strict=True)]
    tg = [a * b for a, b in zip(t, g, strict=True)]
    return at(up([a * b for a, b in zip(t, tg, strict=True)], rho, tg))


def only(at: At, g: Grads, chosen: list[bool], rho: float) -> Grads:
    some = [x for x, yes in zip(g, chosen, strict=True) if yes]
    factor = rho / (norm(some) + 1e-12)
    return at([x * factor if yes else x * 0 for x, yes in zip(g, chosen, strict=True)])


def fsam(at: At, g: Grads, masked: list[bool], rho: float, keep: float) -> Grads:
    flat = torch.cat([x.flatten() for x, yes in zip(g, masked, strict=True) if yes]).square()
    bar = flat.sort(descending=True).values[round(len(flat) * keep) - 1]
    moved = up(g, rho)
    masks = [
        x.square() >= bar if yes else torch.ones_like(x) for x, yes in zip(g, masked, strict=True)
    ]
    return at([a * b for a, b in zip(moved, masks, strict=True)])


def adasap(
    at: At, g: Grads, w: Grads, rows: list[Tensor | None], least: float, most: float, eta: float
) -> Grads:
    along, tg = [], []
    for x, p, row in zip(g, w, rows, strict=True):
        if row is None:
            along.append(x * 0)
            continue
        size = torch.stack([p.flatten()[row == i].square().sum().sqrt() for i in row.unique()])
        rho = most - (size - size.min()) / (size.max() - size.min()) * (most - least)
        t = p.abs() + eta
        tg.append(x * t)
        along.append(tg[-1] * t * rho[row].view_as(p))
    return at(up(along, 1.0, tg))


def penalty(at: At, g: Grads, gamma: float, eps: float) -> Grads:
    second = at([x * eps for x in g])
    return [x + gamma * (y - x) / eps for x, y in zip(g, second, strict=True)]


def gam(
    at: At, g0: Grads, rho: float, rho_norm: float, b: tuple[float, ...], gamma: float
) -> Grads:
    g1 = at(up(g0, rho_norm))
    there = up([x - y for x, y in zip(g1, g0, strict=True)], rho)
    g2 = at(there)
    g3 = at([x + y for x, y in zip(there, up(g2, rho_norm), strict=True)])
    v = [b[0] * x + b[2] * y for x, y in zip(g1, g3, strict=True)]
    m = [x + abs(b[1]) * y for x, y in zip(g0, g2, strict=True)]
    along = sum((x * y).sum() for x, y in zip(v, m, strict=True)) / norm(v) ** 2
    return [x - gamma * (y - along * x) for x, y in zip(v, m, strict=True)]
