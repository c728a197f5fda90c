"""Recipes under the Trainer of Lightning, against a plain loop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gossamer import CheckpointError, RecipeError
from gossamer.recipes import GMP, IMP, SET, SRSTE, Recipe, RigL, SLoPe

pl = pytest.importorskip("pytorch_lightning")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of the library

from gossamer.integrations.lightning import FollowRecipe  # noqa: E402

RECIPES: dict[str, Callable[[], Recipe]] = {
    "rigl": lambda: RigL("75%", every=2),
    "set": lambda: SET("75%", every=2),
    "srste": lambda: SRSTE("2:4"),
    "gmp": lambda: GMP("75%"),
    "imp": lambda: IMP("75%"),
    "slope": lambda: SLoPe("2:4"),
}
STEPS = 8
# Four batches per epoch, in order: a checkpoint after four steps ends an epoch.
X = torch.randn(32, 16, generator=torch.Generator().manual_seed(1))


class Model(pl.LightningModule):
    def __init__(self, recipe: Recipe, way: str = "automatic") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = recipe.prepare(nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16)))
        self.parts = recipe.parameters(self.net)
        self.way = way
        self.automatic_optimization = way == "automatic"

    def loss(self, x: Tensor) -> Tensor:
        return (self.net(x) - x).square().mean()

    def training_step(self, batch: tuple[Tensor], index: int) -> Tensor | None:
        (x,) = batch
        if self.way == "automatic":
            return self.loss(x)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        if self.way == "closure":

            def closure() -> Tensor:
                loss = self.loss(x)
                self.manual_backward(loss)
                return loss

            optimizer.step(closure=closure)
        else:
            self.manual_backward(self.loss(x))
            optimizer.step()
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parts, lr=1e-2)


def trainer(folder: Path, *callbacks: Any, **given: Any) -> Any:
    keep = pl.callbacks.ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=4, save_top_k=-1
    )
    return pl.Trainer(
        **{"max_steps": STEPS} | given, callbacks=[*callbacks, keep], logger=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip


def fit(
    folder: Path, recipe: Recipe, way: str = "automatic", resume: Path | None = None, **given: Any
) -> dict[str, Tensor]:
    model = Model(recipe, way)
    data = DataLoader(TensorDataset(X), batch_size=8)
    trainer(folder, FollowRecipe(recipe, **given)).fit(model, data, ckpt_path=resume)
    assert recipe.step == STEPS
    assert not recipe.layers  # it can be attached again
    return {name: tensor.clone() for name, tensor in model.net.state_dict().items()}


def plain(recipe: Recipe) -> dict[str, Tensor]:
    model = Model(recipe)
    optimizer = model.configure_optimizers()
    recipe.attach(model.net, optimizer, total_steps=STEPS)
    for x in 2 * X.split(8):
        optimizer.zero_grad()
        model.loss(x).backward()
        optimizer.step()
    return model.net.state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@pytest.mark.parametrize("way", ["automatic", "closure", "manual"])
@pytest.mark.parametrize("name", RECIPES)
def test_it_is_a_plain_loop(name: str, way: str, tmp_path: Path) -> None:
    given = {} if way == "automatic" else {"total_steps": STEPS}
    assert same(fit(tmp_path, RECIPES[name](), way, **given), plain(RECIPES[name]()))


@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_trainer_ends_at_the_same_bits(name: str, tmp_path: Path) -> None:
    whole = fit(tmp_path, RECIPES[name]())
    again = fit(tmp_path / "again", RECIPES[name](), resume=tmp_path / "step=4.ckpt")
    assert same(whole, again)


def test_what_does_not_belong_to_the_checkpoint_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, RECIPES["rigl"]())
    with pytest.raises(RecipeError, match="every"):
        fit(tmp_path, RigL("75%", every=3), resume=tmp_path / "step=4.ckpt")
    data = DataLoader(TensorDataset(X), batch_size=8)
    trainer(tmp_path / "bare").fit(Model(RECIPES["rigl"]()), data)
    with pytest.raises(CheckpointError, match="has no state of a recipe"):
        fit(tmp_path, RECIPES["rigl"](), resume=tmp_path / "bare" / "step=4.ckpt")


def test_what_the_trainer_cannot_know_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="total_steps="):
        fit(tmp_path, RECIPES["rigl"](), "manual")
    recipe = RECIPES["rigl"]()
    data = DataLoader(TensorDataset(X), batch_size=8)
    with pytest.raises(RecipeError, match="has no end"):
        trainer(tmp_path, FollowRecipe(recipe), max_steps=-1, max_epochs=-1).fit(
            Model(recipe), data
        )
    with pytest.raises(RecipeError, match=r"optimizer=1.*has 1"):
        fit(tmp_path, RECIPES["rigl"](), optimizer=1)
