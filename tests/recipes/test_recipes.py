"""What every recipe promises, whatever it does."""

from __future__ import annotations

import copy
import importlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from gossamer import backend
from gossamer.masks import check_mask
from gossamer.nn import MaskedLinear, SparseLinear
from gossamer.patterns import NM
from gossamer.recipes.base.identity import identity
from gossamer.recipes.base.registry import RECIPES, entry, make
from gossamer.train import load_checkpoint, save_checkpoint
from support.recipe_course import SPARSITY, STEPS, Course, batch, bits, mask_of, network, parts_of

ALL = list(RECIPES)
POINTS = (5, 12, 18)  # steps done when a training is saved: 17 is where the adapters come
# Settings with which a recipe does nothing, and the pattern it then keeps.
NEUTRAL: dict[str, dict[str, Any]] = {
    "slope": {"every": 10**6},
    "ste": {},
    "srste": {"gradient_decay": 0.0},
    "fst": {"gradient_decay": 0.0, "every": 10**6, "dense_finetune_share": 0.0},
    "sste": {},
    "bimask": {"gradient_decay": 0.0, "every": 10**6},
    "static": {},
    "static-erk": {},
    "set": {"every": 10**6},
    "rigl": {"every": 10**6},
    "cht": {"every": 10**6},
    "cht-soft": {"every": 10**6},
    "hebbian": {"every": 10**6},
    "sparse-ift-wide": {},
    "sparse-ift-parallel": {},
    "sparse-ift-factorized": {},
    "sparse-ift-doped": {},
}
# DistributedDataParallel fixes the number of values.
RESIZED = ("gmp-sparse",)
# Nothing is sparse in the end by design.
DENSE_END = ("fst",)


pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


@cache
def whole(name: str) -> tuple[Course, dict[int, dict[str, Any]]]:
    """A training without interruption, and what would have been saved on the way."""
    torch.set_num_threads(1)
    course, saved = Course(name), {}
    for t in range(STEPS):
        if t in POINTS:
            saved[t] = copy.deepcopy(course.state())
        course.step(t)
    return course, saved


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_can_be_made_at_every_sparsity(name: str) -> None:
    for sparsity, pattern in entry(name).patterns.items():
        recipe = make(name, pattern)
        density = recipe.pattern.density  # type: ignore[union-attr]
        assert density == pytest.approx(1 - sparsity / 100, abs=0.03)
        assert identity(make(name, pattern)) == identity(recipe)
    module = importlib.import_module("gossamer.recipes")
    assert getattr(module, entry(name).kind) is type(recipe)


@pytest.mark.parametrize("name", ALL)
def test_the_pattern_holds_at_every_step(name: str) -> None:
    course = Course(name)
    target = course.recipe.pattern
    static = {key: mask_of(part) for key, part in parts_of(course.model).items()}
    moved = 0
    for t in range(STEPS):
        course.step(t)
        for key, part in parts_of(course.model).items():
            mask = mask_of(part)
            if isinstance(part, SparseLinear):
                backend.validate(part.weight.structure, part.weight.nnz)
                check_mask(mask, part.weight.pattern)
                dense = part.weight.to_dense()
                assert not dense[~mask].any()
            else:
                backend.validate(part.structure)
                check_mask(mask, part.pattern)
                assert 0.0 <= part.masked_weight_share.item() <= 1.0
                if part.masked_weight_share.item() == 0.0:
                    assert not part.used_weight()[~mask_of(part)].any()
            if entry(name).static:
                assert torch.equal(mask, static[key])
            elif key in static and static[key].shape == mask.shape:
                moved += int((mask ^ static[key]).sum())
    for part in parts_of(course.model).values():
        own = part.pattern if isinstance(part, MaskedLinear) else part.weight.pattern
        if name in DENSE_END:
            assert own.density == 1.0
        elif isinstance(target, NM):
            assert own == target
    if not name.startswith(("static", "slope", "sparse-ift")):
        assert moved > 0, "no mask has moved in all these steps"


@pytest.mark.parametrize("name", [n for n in ALL if n not in DENSE_END and "ift" not in n])
def test_in_the_end_no_more_is_kept_than_the_pattern_allows(name: str) -> None:
    course, _ = whole(name)
    model = copy.deepcopy(course.model)
    Course(name, attach=False).recipe.finish(model)
    parts = list(parts_of(model).values())
    kept = sum(int((p.weight.values != 0).sum()) for p in parts)  # type: ignore[union-attr]
    entries = sum(p.in_features * p.out_features for p in parts)
    assert sum(p.weight.nnz for p in parts) <= round(entries * 0.25) + len(parts)  # type: ignore[union-attr]
    assert 0 < kept <= round(entries * 0.25) + len(parts)
    if name in ("slope", "ste", "srste", "static", "set", "rigl", "gmp", "top-l0"):
        assert kept >= 0.9 * entries * 0.25


# ---- resume --------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ALL)
def test_resuming_equals_no_interruption_bit_for_bit(name: str, tmp_path: Path) -> None:
    course, saved = whole(name)
    expected = bits(course.state())
    for t in POINTS:
        save_checkpoint(tmp_path / "saved", saved[t])
        again = Course(name, seed=7)
        again.load(load_checkpoint(tmp_path / "saved"))
        assert bits(again.model.state_dict()) == bits(saved[t]["model"])
        again.run(t)
        assert again.losses == course.losses[t:], f"resumed after {t} steps"
        assert bits(again.state()) == expected, f"resumed after {t} steps"


@pytest.mark.parametrize("name", ALL)
def test_the_same_training_gives_the_same_bits(name: str) -> None:
    course, _ = whole(name)
    again = Course(name)
    torch.manual_seed(99)  # nothing may come from the global generator
    again.run()
    assert again.losses == course.losses
    assert bits(again.state()) == bits(course.state())


# ---- off -----------------------------------------------------------------------------------------
def plain(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    losses = []
    for t in range(6):
        x, y = batch(t)
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def copied(course: Course) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The same model, to which no recipe has ever been attached."""
    model = copy.deepcopy(course.model)
    optimizer = torch.optim.AdamW(course.recipe.parameters(model), lr=1e-2, weight_decay=0.01)
    return model, optimizer


@pytest.mark.parametrize("name", ALL)
def test_detached_it_is_the_plain_optimizer_bit_for_bit(name: str) -> None:
    course = Course(name)
    course.run(last=3)
    course.recipe.detach()
    course.optimizer = torch.optim.AdamW(course.recipe.parameters(course.model), lr=1e-2)
    model = copy.deepcopy(course.model)
    optimizer = torch.optim.AdamW(course.recipe.parameters(model), lr=1e-2)
    assert plain(course.model, course.optimizer) == plain(model, optimizer)
    assert bits(course.model.state_dict()) == bits(model.state_dict())
    assert not course.recipe.layers


@pytest.mark.parametrize("name", list(NEUTRAL))
def test_with_neutral_settings_it_is_the_plain_optimizer_bit_for_bit(name: str) -> None:
    settings = dict(NEUTRAL[name])
    steps = 10**7 if 10**6 in settings.values() else 10
    course = Course(name, steps=steps, **settings)
    model, optimizer = copied(course)
    assert plain(course.model, course.optimizer) == plain(model, optimizer)
    assert bits(course.model.state_dict()) == bits(model.state_dict())


# ---- copies, the finished model ------------------------------------------------------------------
@pytest.mark.parametrize("name", ALL)
def test_a_copy_of_a_prepared_model_lives_its_own_life(name: str) -> None:
    course = Course(name)
    course.run(last=2)
    other = copy.deepcopy(course.model)
    x, _ = batch(50)
    with torch.no_grad():
        assert torch.equal(other(x), course.model(x))
    before = bits(other.state_dict())
    course.run(2, 5)
    assert bits(other.state_dict()) == before
    twin = Course(name, attach=False)
    optimizer = torch.optim.AdamW(twin.recipe.parameters(other), lr=1e-2)
    twin.recipe.attach(other, optimizer, STEPS)
    assert list(twin.recipe.layers) == list(course.recipe.layers)


@pytest.mark.parametrize("name", ALL)
def test_finish_keeps_the_function(name: str) -> None:
    course, _ = whole(name)
    model = copy.deepcopy(course.model).eval()
    x, _ = batch(51)
    with torch.no_grad():
        before = model(x)
    recipe = Course(name, attach=False).recipe
    finished = recipe.finish(model)
    with torch.no_grad():
        torch.testing.assert_close(finished(x), before, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, MaskedLinear) for m in finished.modules())
    assert not recipe.layers


@pytest.mark.parametrize("name", ALL)
def test_it_learns(name: str) -> None:
    losses = whole(name)[0].losses
    assert sum(losses[-4:]) < sum(losses[:4])


# ---- two processes -------------------------------------------------------------------------------
def _rank(rank: int, address: str, out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for name in (name for name in ALL if name not in RESIZED):
        try:
            course = Course(name, wrap=nn.parallel.DistributedDataParallel)
            for t in range(STEPS):
                course.step(t, rank)
            found[name] = {
                "masks": {key: mask_of(part) for key, part in parts_of(course.model).items()},
                "model": course.model.state_dict(),
                "recipe": course.recipe.state_dict()["state"],
            }
        except Exception as error:
            found[name] = {"error": repr(error)}
            # The other process waits for a reduction that will not come, unless it failed as well.
    torch.save(found, f"{out}/{rank}")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_rank, (f"file://{folder}/meet", str(folder)), nprocs=2)
    return [torch.load(folder / str(rank), weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("name", [name for name in ALL if name not in RESIZED])
@pytest.mark.process
def test_two_processes_have_the_same_masks_and_weights(
    name: str, ranks: list[dict[str, Any]]
) -> None:
    first, second = (found[name] for found in ranks)
    assert "error" not in first, first
    assert "error" not in second, second
    assert bits(first) == bits(second)
    # Both shards of the data took part: one alone would have led elsewhere.
    alone = whole(name)[0].model.state_dict()
    assert bits(first["model"]) != bits(alone)


def test_the_network_of_these_tests_is_what_it_says() -> None:
    assert [m.out_features for m in network() if isinstance(m, nn.Linear)] == [64, 32, 8]
    assert SPARSITY == 75
