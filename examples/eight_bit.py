"""An 8-bit optimizer of torchao or bitsandbytes under a recipe whose mask moves.

python examples/eight_bit.py [steps] [torchao|bitsandbytes]
"""

import importlib
import sys
from typing import Any

import torch

from gossamer.recipes import RigL


def main(steps: int = 100, library: str = "torchao") -> tuple[list[float], int]:
    """Train; return the losses, and the bytes of the optimizer's state per kept entry."""
    torch.manual_seed(0)
    make: Any = importlib.import_module(f"{library}.optim").AdamW8bit
    recipe = RigL("2:4:v4", every=10)
    layers = [torch.nn.Linear(256, 512), torch.nn.GELU(), torch.nn.Linear(512, 16)]
    model = recipe.prepare(torch.nn.Sequential(*layers))
    optimizer = make(recipe.parameters(model), lr=1e-3)
    recipe.attach(model, optimizer, total_steps=steps)
    x = torch.randn(256, 256)
    target = x[:, :16] * x[:, 16:32]
    losses = []
    for _ in range(steps):
        loss = torch.nn.functional.mse_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    values = model[0].weight.values
    state = optimizer.state[values].values()
    kept = [getattr(tensor, "codes", tensor) for tensor in state if torch.is_tensor(tensor)]
    size = sum(tensor.nbytes for tensor in kept if tensor.shape == values.shape) // len(values)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; {size} bytes of state per kept entry")
    return losses, size


if __name__ == "__main__":
    main(*(int(word) if word.isdigit() else word for word in sys.argv[1:]))
