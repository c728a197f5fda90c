"""What the topics that time a step of training share."""

import torch
from torch import Tensor, nn

SEED = 0
# Of the demo's tokens, which are bytes.
VOCABULARY = 256


def state_bytes(layer: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of everything that training keeps between steps.

    Args:
        layer: with gradients.
        optimizer: of its parameters, once it has stepped.

    Returns:
        Bytes of parameters, buffers (the structure; also those that are not saved), gradients and
        the optimizer's tensors.
    """
    parameters = list(layer.parameters())
    tensors: list[Tensor] = [*parameters, *layer.buffers()]
    tensors += [p.grad for p in parameters if p.grad is not None]
    for state in optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.nbytes for tensor in tensors)
