"""An oracle of pruning: a smaller model is the model with zeros in what the smaller one has not.

It knows nothing of groups. Each number of a redrawn model occurs once, so that the kept rows and
columns of every weight are found by their values.
"""

import copy

import torch
from torch import Tensor, nn


def redrawn(model: nn.Module) -> nn.Module:
    """The model in float64 with other random numbers, of which no two are equal."""
    model = model.double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def zeroed(model: nn.Module, smaller: nn.Module) -> nn.Module:
    """A copy of the model with zeros in each row and column that the smaller one does not have."""
    twin = copy.deepcopy(model)
    pairs = zip(twin.named_parameters(), smaller.named_parameters(), strict=True)
    for (name, tensor), (other, small) in pairs:
        assert name == other
        values = set(small.flatten().tolist())
        kept = torch.tensor([v in values for v in tensor.flatten().tolist()]).view(tensor.shape)
        if tensor.dim() > 1:
            tensor.data *= kept
            for axis in range(tensor.dim()):  # it is a box of the larger one
                others = [a for a in range(tensor.dim()) if a != axis]
                assert int(kept.any(dim=others).sum()) == small.shape[axis]
    return twin


def close(found: object, expected: object, atol: float) -> None:
    """Compare tensors in nested outputs; what is no tensor does not count."""
    if isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=atol)
    elif isinstance(expected, dict):
        for key, value in expected.items():
            close(found[key], value, atol)  # type: ignore[index]
    elif isinstance(expected, tuple | list):
        for one, value in zip(found, expected, strict=True):  # type: ignore[call-overload]
            close(one, value, atol)
