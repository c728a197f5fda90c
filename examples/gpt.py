"""A small GPT on bytes: its large matrices are sparse from the first step to the last.

python examples/gpt.py [steps]
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer

CONTEXT, WIDTH, HEADS = 64, 128, 4


class Block(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        wide = 4 * WIDTH
        self.mlp = nn.Sequential(nn.Linear(WIDTH, wide), nn.GELU(), nn.Linear(wide, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Transform [batch, context, width]."""
        heads = self.qkv(self.norms[0](x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads.unbind(0), is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


def main(steps: int = 300) -> list[float]:
    """Train on the source of a Python module; return the loss of every step."""
    torch.manual_seed(0)
    text = torch.tensor(list(Path(argparse.__file__).read_bytes()))
    ends = nn.Embedding(256, WIDTH), nn.Linear(WIDTH, 256)
    model = nn.Sequential(ends[0], Block(), Block(), nn.LayerNorm(WIDTH), ends[1])
    gossamer.sparsify(model, "2:4:v4", exclude=["4"])  # the head stays dense
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        starts = torch.randint(len(text) - CONTEXT, (16, 1))
        batch = text[starts + torch.arange(CONTEXT + 1)]
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"{losses[0]:.3f} -> {losses[-1]:.3f} nats per byte")
    print(gossamer.summary(model, optimizer))
    return losses


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
