"""Optimal transport of point clouds: a disc flows onto a spiral, down the gradient of a loss.

python examples/transport.py [steps]
"""

import sys

import torch

import gossamer


def main(steps: int = 60, count: int = 200) -> tuple[float, float]:
    """Return the divergence between the clouds before and after the flow."""
    torch.manual_seed(0)
    radius, angle = torch.rand(count).sqrt() * 0.3, torch.rand(count) * 2 * torch.pi
    x = torch.stack([0.5 + radius * angle.cos(), 0.5 + radius * angle.sin()], 1)
    turn = torch.rand(count).sqrt()
    y = 0.5 + (0.45 * turn * torch.stack([(12 * turn).cos(), (12 * turn).sin()])).T

    x.requires_grad_()
    first = last = 0.0
    for step in range(steps):
        loss = gossamer.ot.loss(x, y, reg=1e-2)  # a debiased divergence: 0 for equal clouds
        (gradient,) = torch.autograd.grad(loss, x)
        with torch.no_grad():
            x -= 0.5 * count * gradient
        last = loss.item()
        first = first or last
        if step % 20 == 0:
            print(f"step {step}: divergence {last:.5f}")

    plan = gossamer.ot.solve(torch.cdist(x.detach(), y) ** 2, reg=1e-3)
    print(f"{plan.status}; mean squared distance {plan.value_linear:.5f}")
    return first, last


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
