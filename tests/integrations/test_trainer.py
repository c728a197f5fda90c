"""Recipes under the Trainer of transformers and under accelerate, against plain loops."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer import CheckpointError, DTypeError, RecipeError
from gossamer.recipes import GMP, IMP, SET, SRSTE, Recipe, RigL, SLoPe

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of the two packages

from accelerate import Accelerator  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments  # noqa: E402

from gossamer.integrations.trainer import FILE, FollowRecipe  # noqa: E402

RECIPES: dict[str, Callable[[], Recipe]] = {
    "rigl": lambda: RigL("75%", every=2),
    "set": lambda: SET("75%", every=2),
    "srste": lambda: SRSTE("2:4"),
    "gmp": lambda: GMP("75%"),
    "imp": lambda: IMP("75%"),
    "slope": lambda: SLoPe("2:4"),
}
TOKENS = torch.randint(64, (32, 16), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": row, "labels": row} for row in TOKENS]


def train(
    folder: Path, recipe: Recipe, resume: Path | None = None, **given: Any
) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = recipe.prepare(
        GPT2LMHeadModel(
            GPT2Config(
                n_layer=1, n_embd=32, n_head=2, vocab_size=64, n_positions=16, bos_token_id=0,
                eos_token_id=1,
            )
        )
    )  # fmt: skip
    arguments = TrainingArguments(
        str(folder), max_steps=8, per_device_train_batch_size=4, use_cpu=True, save_steps=4,
        report_to=[], disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=DATA, callbacks=[FollowRecipe(recipe, **given)]
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    assert recipe.step == 8
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_trainer_ends_at_the_same_bits(name: str, tmp_path: Path) -> None:
    whole = train(tmp_path, RECIPES[name]())
    # Dropout is on: torch's random state is resumed too.
    assert same(whole, train(tmp_path, RECIPES[name](), tmp_path / "checkpoint-4"))


def test_the_checkpoint_may_lie_elsewhere(tmp_path: Path) -> None:
    make = RECIPES["rigl"]
    whole, moved = train(tmp_path / "a", make()), tmp_path / "moved"
    (tmp_path / "a" / "checkpoint-4").rename(moved)
    with pytest.raises(CheckpointError, match="resume_from="):
        train(tmp_path / "b", make(), moved)
    assert same(whole, train(tmp_path / "b", make(), moved, resume_from=moved))


def test_what_does_not_belong_to_the_checkpoint_is_refused(tmp_path: Path) -> None:
    train(tmp_path, RECIPES["rigl"]())
    with pytest.raises(RecipeError, match="every"):
        train(tmp_path, RigL("75%", every=3), tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4" / FILE).unlink()
    with pytest.raises(CheckpointError, match=FILE):
        train(tmp_path, RECIPES["rigl"](), tmp_path / "checkpoint-4")
    with pytest.raises(DTypeError, match="a Recipe is needed"):
        FollowRecipe("rigl")  # type: ignore[arg-type]


@pytest.mark.parametrize("when", ["before", "after"])
def test_accelerate_changes_nothing(when: str) -> None:
    def trained(accelerated: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        recipe = RECIPES["rigl"]()
        model = recipe.prepare(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)))
        optimizer = torch.optim.AdamW(recipe.parameters(model), lr=1e-2)
        outer: Any = (model, optimizer)
        if when == "before" or not accelerated:
            recipe.attach(model, optimizer, total_steps=6)
        if accelerated:
            accelerator = Accelerator(cpu=True)
            outer = accelerator.prepare(model, optimizer)
            if when == "after":
                recipe.attach(*outer, total_steps=6)
        for _ in range(6):
            x = torch.randn(8, 16)
            outer[1].zero_grad()
            loss = (outer[0](x) - x).square().mean()
            accelerator.backward(loss) if accelerated else loss.backward()
            outer[1].step()
        return model.state_dict()

    assert same(trained(False), trained(True))
    AcceleratorState._reset_state(True)
