"""Handwritten digits: a penalty zeroes whole neurons while the network trains; then they go.

python examples/digits.py [epochs]
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import gossamer
from gossamer.prox import WGSEF


def main(epochs: int = 40) -> tuple[float, int]:
    """Return the test accuracy of the shrunk network and its number of hidden neurons."""
    torch.manual_seed(0)
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    x = torch.tensor(digits.data, dtype=torch.float32)[order] / 16
    y = torch.tensor(digits.target)[order]
    train, test = slice(0, 1300), slice(1300, None)
    model = nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    penalised = [
        {"params": [layer.weight], "penalty": WGSEF(lam=0.002, k="12.5%", groups="neuron")}
        for layer in (model[0], model[2])
    ]
    free = [p for name, p in model.named_parameters() if name not in ("0.weight", "2.weight")]
    optimizer = gossamer.optim.ProxAdamW([*penalised, {"params": free}], lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(1300).split(50):
            loss = nn.functional.cross_entropy(model(x[train][batch]), y[train][batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    smaller = gossamer.shrink(model, x[:1])  # an ordinary torch model without the zero neurons
    accuracy = (smaller(x[test]).argmax(1) == y[test]).float().mean().item()
    neurons = sum(layer.out_features for layer in smaller if isinstance(layer, nn.Linear)) - 10
    print(f"{neurons} of 384 hidden neurons are left; test accuracy {accuracy:.1%}")
    return accuracy, neurons


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
