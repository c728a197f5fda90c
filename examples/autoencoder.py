"""A sparse autoencoder finds the dictionary from which its data were made.

python examples/autoencoder.py [steps]
"""

import sys

import torch

import gossamer


def main(steps: int = 600) -> tuple[float, float]:
    """Return the explained variance and the share of the true directions that were found."""
    torch.manual_seed(0)
    features, true_latents, active = 32, 64, 3
    dictionary = torch.nn.functional.normalize(torch.randn(true_latents, features), dim=1)

    def batch(rows: int = 512) -> torch.Tensor:
        """Rows that are each a positive sum of `active` directions."""
        chosen = torch.rand(rows, true_latents).topk(active).indices
        strengths = torch.zeros(rows, true_latents).scatter_(1, chosen, 0.5 + torch.rand(rows, 3))
        return strengths @ dictionary

    model = gossamer.codes.TopKAutoencoder(features, 128, active, aux_k=32, dead_tokens=20_000)
    model.start_from(batch(4096))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        losses = model.loss(batch())
        optimizer.zero_grad()
        losses.total.backward()
        model.project_gradient_()  # dictionary rows stay on the unit sphere
        optimizer.step()
        model.normalise_()
        if step % 100 == 0:
            print(f"step {step}: loss {losses.total.item():.4f}")

    x = batch(4096)
    explained = float(gossamer.codes.explained_variance(x, model(x)))
    found = (dictionary @ model.decoder.detach().T).max(1).values > 0.9
    share = found.float().mean().item()
    print(f"explained variance {explained:.3f}; {share:.0%} of the directions found")
    return explained, share


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
