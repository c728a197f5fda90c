"""RigL under the Trainer of Lightning, which saves and resumes the recipe with its checkpoints.

python examples/lightning_trainer.py [steps]
"""

import sys
import tempfile

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from gossamer.integrations.lightning import FollowRecipe
from gossamer.recipes import Recipe, RigL


class Denoiser(pl.LightningModule):
    """Removes noise from sums of a few waves."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        layers = [torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64)]
        self.net = recipe.prepare(torch.nn.Sequential(*layers))
        self.losses: list[float] = []

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        """Return the mean square error of a batch."""
        loss = torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make torch's own optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(steps: int = 200) -> list[float]:
    """Train; return the loss of every step."""
    torch.manual_seed(0)
    time, phase = torch.linspace(0, 6.28, 64), 6.28 * torch.rand(512, 3, 1)
    clean = torch.sin(torch.tensor([[1.0], [2.0], [3.0]]) * time + phase).mean(1)
    data = TensorDataset(clean + 0.3 * torch.randn_like(clean), clean)
    recipe = RigL("75%:v4", every=20)
    model = Denoiser(recipe)
    before = model.net[0].mask()
    trainer = pl.Trainer(
        max_steps=steps,
        callbacks=[FollowRecipe(recipe)],
        default_root_dir=tempfile.mkdtemp(),
        logger=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, DataLoader(data, batch_size=64, shuffle=True))
    moved = int((model.net[0].mask() & ~before).sum())
    print(f"loss {model.losses[0]:.3f} -> {model.losses[-1]:.3f}; {moved} entries grew")
    return model.losses


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
