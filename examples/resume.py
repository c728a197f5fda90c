"""RigL, interrupted and resumed: the weights are bit-equal to those of an uninterrupted run.

python examples/resume.py [steps]
"""

import io
import sys

import torch
from torch import nn

import gossamer


def build(steps: int) -> tuple[nn.Module, torch.optim.Optimizer, gossamer.recipes.Recipe]:
    """A model with its optimizer and its recipe."""
    torch.manual_seed(0)
    recipe = gossamer.recipes.RigL("90%", every=5)
    model = recipe.prepare(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8)))
    optimizer = torch.optim.AdamW(recipe.parameters(model), lr=1e-2)
    recipe.attach(model, optimizer, total_steps=steps)
    return model, optimizer, recipe


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    """Steps [first, last); the batch of a step depends on its number alone."""
    for step in range(first, last):
        x = torch.randn(128, 64, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x[:, :8] * x[:, 8:16]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main(steps: int = 60) -> bool:
    """Return whether both runs end with the same bits."""
    straight, optimizer, _ = build(steps)
    train(straight, optimizer, 0, steps)

    parts = build(steps)
    train(parts[0], parts[1], 0, steps // 2)
    checkpoint = io.BytesIO()
    torch.save([part.state_dict() for part in parts], checkpoint)

    model, optimizer, recipe = build(steps)
    checkpoint.seek(0)
    saved = torch.load(checkpoint)
    recipe.load_state_dict(saved[2])  # the recipe first, then the model, then the optimizer
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    train(model, optimizer, steps // 2, steps)

    pairs = zip(straight.state_dict().values(), model.state_dict().values(), strict=True)
    same = all(torch.equal(one, other) for one, other in pairs)
    print(f"bit-equal after {steps} steps: {same}")
    return same


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
