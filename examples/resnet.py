"""A ResNet-18 of CIFAR's size learns generated textures, dense and sparse.

python examples/resnet.py [steps] [width]
"""

import sys
import time
from itertools import pairwise, starmap

import torch
from torch import Tensor, nn

import gossamer


class Block(nn.Module):
    """Two convolutions of 3 x 3, and a way around them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        first = nn.Conv2d(inputs, outputs, 3, outputs // inputs, 1), nn.BatchNorm2d(outputs)
        second = nn.Conv2d(outputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs)
        self.body = nn.Sequential(*first, nn.ReLU(), *second)
        self.around = nn.Conv2d(inputs, outputs, 1, 2) if outputs > inputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map [images, inputs, height, width] to [images, outputs, ...]."""
        return torch.relu(self.body(x) + self.around(x))


def main(steps: int = 60, width: int = 64) -> dict[str, list[float]]:
    """Train each; print a table, and return the losses."""
    losses: dict[str, list[float]] = {"dense": [], "2:4:v4": [], "90%:v4": [], "95%:v4": []}
    for pattern, found in losses.items():
        torch.manual_seed(0)
        sizes = pairwise(width * times for times in (1, 1, 1, 2, 2, 4, 4, 8, 8))
        head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10)
        model = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), *starmap(Block, sizes), *head)
        if pattern != "dense":  # the stem reads three channels, the head makes ten numbers
            gossamer.sparsify(model, pattern, exclude=("0", "11"))
        optimizer = torch.optim.AdamW(gossamer.parameter_groups(model, weight_decay=0.01), 1e-3)
        start = time.perf_counter()
        for _ in range(steps):
            kind = torch.randint(10, (32, 1, 1, 1))  # gratings of ten directions, under noise
            angle, phase, side = kind * torch.pi / 10, 6 * torch.rand(32, 1, 1, 1), torch.arange(32)
            wave = torch.sin(side * angle.cos() + side[:, None] * angle.sin() + phase)
            logits = model(wave + torch.randn(32, 3, 32, 32))
            (loss := nn.functional.cross_entropy(logits, kind.flatten())).backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        last, seconds = sum(found[-10:]) / 10, (time.perf_counter() - start) / steps
        size = gossamer.summary(model, optimizer).total / 1e6
        print(f"{pattern:7} loss {last:.3f}, {1e3 * seconds:4.0f} ms a step, {size:5.1f} MB")
    return losses


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
