"""Checkpoints as an earlier version wrote them, with all options of a training in one flat dict.

Each was written by SIGINT in step 5 of 8; the text and the options are those of ``CONFIG``. The
first five steps may be those of another processor, which rounds in its own way. Keys and texts are
as they were then; the numbers are those of the masks that a seed gives today.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.errors import CheckpointError
from gossamer.train import PenaltyOptions, TrainConfig, load_checkpoint, resumed_config, train
from gossamer.train.checkpoint import CHECKPOINT
from gossamer.train.metrics import METRICS
from support.training import QUIET, computed, fingerprint

WRITTEN = Path(__file__).parent / "written_before"
CONFIG = TrainConfig(
    runs=("dense", "2:4"), steps=8, batch=2, context=4, width=8, depth=1, heads=2, threads=1,
    level="char", data="text.txt", eval_every=4, checkpoint_every=0,
)  # fmt: skip
PENALISED = replace(CONFIG, penalty=PenaltyOptions("l1", lam=0.01, groups="neuron"))
BY_RECIPES = replace(CONFIG, runs=("dense", "rigl@50%", "srste@2:4"))


@pytest.fixture(autouse=True)
def _in_a_folder_with_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("what is written here, and what is not. " * 60)
    for name in ("penalty", "recipes"):
        Path(name).mkdir()
        shutil.copy(WRITTEN / f"{name}.safetensors", Path(name, CHECKPOINT))
        shutil.copy(WRITTEN / f"{name}.jsonl", Path(name, METRICS))


def check_close(one: Any, other: Any) -> None:
    """Equal, but for the rounding of floating-point numbers."""
    assert type(one) is type(other)
    if isinstance(one, Tensor | float):
        # A step of AdamW is a hundred times the tolerance: none is left out or taken twice.
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            check_close(one[key], other[key])
    elif isinstance(one, list | tuple):
        for mine, theirs in zip(one, other, strict=True):
            check_close(mine, theirs)
    else:
        assert one == other


def without_srste(state: dict[str, Any], rows: list[dict[str, Any]]) -> tuple[Any, Any]:
    """What a training computed, but for its run of SR-STE."""
    del state["runs"]["srste@2:4"]
    return state, [row for row in rows if row["run"] != "srste@2:4"]


def test_the_options_are_read() -> None:
    assert resumed_config("penalty") == PENALISED
    assert resumed_config("penalty", lam=0.01, penalty_groups="neuron") == PENALISED
    assert resumed_config("recipes") == BY_RECIPES
    with pytest.raises(CheckpointError, match=r"trained with lam=0\.01, asked is 0\.1"):
        resumed_config("penalty", lam=0.1)


def test_a_training_goes_on_to_the_same_end() -> None:
    assert load_checkpoint(Path("penalty", CHECKPOINT))["step"] == 5
    train(resumed_config("penalty"), "penalty", resume=True, console=QUIET)
    train(PENALISED, "whole", console=QUIET)
    check_close(computed(Path("penalty")), computed(Path("whole")))


def test_recipes_go_on_to_the_same_end_or_are_refused_in_one_sentence() -> None:
    before = fingerprint(Path("recipes"))
    refusal = ""
    try:
        train(resumed_config("recipes"), "recipes", resume=True, console=QUIET)
    except CheckpointError as error:
        refusal = str(error)
    train(BY_RECIPES, "whole", console=QUIET)
    assert "\n" not in refusal
    if refusal:
        assert fingerprint(Path("recipes")) == before
    else:
        # SR-STE goes on by the present rule: its decay was none of the gradient when this was
        # written, so its first five steps were others.
        check_close(*(without_srste(*computed(Path(out))) for out in ("recipes", "whole")))
