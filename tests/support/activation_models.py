"""A feed-forward network to swap, and questions about swapped models."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gossamer.nn import ActivationSparseFFN


class Written(nn.Module):
    """A network whose parts can be changed."""

    def __init__(self, dropout: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(8, 24), nn.Linear(8, 24)
        self.down = nn.Linear(24, 8)
        self.act = nn.ReLU()
        self.drop = nn.Dropout(dropout)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(self.drop(self.up(x) * self.act(self.gate(x))))
        return y if self.scale == 1.0 else y * self.scale


def networks(model: nn.Module) -> dict[str, ActivationSparseFFN]:
    return {n: m for n, m in model.named_modules() if isinstance(m, ActivationSparseFFN)}


def classes(model: nn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules()}


def same_state(a: nn.Module, b: nn.Module, **tolerance: float) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert list(first) == list(second)
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], msg=name, **tolerance)


def step(model: nn.Module, run: Callable[[nn.Module], Tensor]) -> Tensor:
    """One step of gradient descent; the outputs before it."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    y = run(model)
    y.square().mean().backward()
    optimizer.step()
    return y.detach()
