"""Small networks of many shapes, whose channels are shared by sums, products and concatenations."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """The basic block of a ResNet, with a projection where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.skip = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.skip(x)
        return self.relu(y)


class Squeeze(nn.Module):
    """Squeeze and excitation, written with sizes that are asked for."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, 4), nn.Linear(4, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.shape
        y = F.adaptive_avg_pool2d(x, 1).view(b, c)
        y = torch.sigmoid(self.up(F.relu(self.down(y))))
        return x * y.view(b, c, 1, 1)


class Branches(nn.Module):
    """Two convolutions side by side, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 6, 3, padding=1)
        self.right = nn.Conv2d(3, 5, 1)
        self.bn = nn.BatchNorm2d(11)
        self.mix = nn.Conv2d(11, 7, 3)
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.bn(torch.cat([self.left(x), self.right(x)], 1)))
        y = F.max_pool2d(torch.tanh(self.mix(y)), 2)
        return self.head(y.mean((2, 3)))


def mlp() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(12, 30), nn.ReLU(), nn.Dropout(0.5), nn.Linear(30, 20), nn.Sigmoid()),
        *(nn.Linear(20, 16), nn.GELU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 5)),
    )


def lenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in [(3, 8), (8, 8), (8, 12)]:
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    layers += [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(192, 24), nn.BatchNorm1d(24), nn.PReLU(24)]
    return nn.Sequential(*layers, nn.Dropout(), nn.Linear(24, 6))


def resnet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        *(Residual(8, 8), Residual(8, 12, 2), Squeeze(12), Residual(12, 12)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)),
    )


def separable() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU6()),
        *(nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.Hardswish()),
        *(nn.Conv2d(8, 12, 1), nn.ReLU(), nn.Conv2d(12, 24, 3, groups=12), nn.ReLU()),
        *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(24, 4)),
    )


def signal() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(2, 9, 5, stride=2), nn.BatchNorm1d(9), nn.LeakyReLU(0.1), nn.MaxPool1d(2)),
        *(nn.Conv1d(9, 6, 3, padding=1, padding_mode="circular"), nn.ELU(), nn.Flatten()),
        nn.Linear(18, 3),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (3, 12)),
    "lenet": (lenet, (2, 1, 8, 8)),
    "vgg": (vgg, (2, 3, 8, 8)),
    "resnet": (resnet, (2, 3, 8, 8)),
    "separable": (separable, (2, 3, 9, 9)),
    "concat": (Branches, (2, 3, 8, 8)),
    "signal": (signal, (2, 2, 16)),
}
