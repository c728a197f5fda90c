"""prune() on small members of torchvision's families; `sweep.py` prunes all of its models."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from gossamer.pruning import prune
from support.submodels import close, redrawn, zeroed
from support.torchvision_models import imported

models = imported()
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(models is None, reason="torchvision is not installed"),
]

SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": [2, 2]}
VIT = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 4, "hidden_dim": 32}
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "ResNet": lambda: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1]),
    "ResNeXt": lambda: models.ResNet(
        models.resnet.Bottleneck, [1, 1, 1, 1], groups=8, width_per_group=4
    ),
    "DenseNet": lambda: models.DenseNet(8, (2, 3), 16),
    "SqueezeNet": lambda: models.squeezenet1_1(num_classes=10),
    "ShuffleNet": lambda: models.ShuffleNetV2([2, 2, 2], [24, 32, 48, 64, 128]),
    "MobileNet": lambda: models.mobilenet_v3_small(num_classes=10),
    "VisionTransformer": lambda: models.VisionTransformer(mlp_dim=64, **VIT),
    "Swin": lambda: models.SwinTransformer([4, 4], **SWIN),
    "ConvNeXt": lambda: models.ConvNeXt(
        [models.convnext.CNBlockConfig(16, 32, 1), models.convnext.CNBlockConfig(32, None, 1)]
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_half_of_the_operations_go(name: str) -> None:
    torch.manual_seed(0)
    model: Any = redrawn(FAMILIES[name]()).eval()
    for parameter in model.parameters():
        parameter.data *= 0.1
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    smaller, report = prune(model, x, 0.6, report=True)
    assert 0.5 * report.flops[0] < report.flops[1] <= 0.6 * report.flops[0]
    y = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        close(smaller(y), zeroed(model, smaller)(y), 1e-10)
