"""SET: what dies and grows, what moves with it, and what never changes."""

import copy
import pickle

import pytest
import torch
from torch import nn

from gossamer import backend
from gossamer.errors import DTypeError, PatternError, RecipeError
from gossamer.masks import check_mask
from gossamer.recipes.dsl import DSL
from gossamer.recipes.rigl import RigL
from gossamer.recipes.set import SET
from gossamer.recipes.static import Static
from support.recipe_course import training

PATTERNS = ["90%", "75%:v4", "2:4", "1:4", "2:8:v4", "block 4x4 75%", "1:4:v16", "75%:v16"]


def masks(recipe):
    return [
        layer.mask() if hasattr(layer, "mask") else layer.weight.mask()
        for layer in recipe.layers.values()
    ]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_set_moves_masks_of_constant_counts_only_at_its_steps(pattern):
    recipe = SET(pattern, every=4)
    _, _, step = training(recipe, 40)
    counts = [int(mask.sum()) for mask in masks(recipe)]
    for t in range(40):
        before = masks(recipe)
        step()
        after = masks(recipe)
        assert [int(mask.sum()) for mask in after] == counts
        moved = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert moved <= (t % 4 == 0 and 0 < t < 30), t
        if t == 4:
            assert moved
        for layer in recipe.layers.values():
            check_mask(layer.weight.mask(), layer.weight.pattern)


def test_the_share_falls_along_a_cosine_and_ends():
    recipe = SET("90%", every=10, end_share=0.75)
    recipe.total_steps = 400
    assert recipe.share(0) == recipe.share(5) == recipe.share(300) == recipe.share(390) == 0.0
    assert recipe.share(150) == pytest.approx(0.15)
    assert recipe.share(290) == pytest.approx(0.3 * 0.00273905, rel=1e-4)
    for total, every in ((20, 1), (300, 22), (10_000, 100)):
        recipe = SET("90%")
        recipe.total_steps = total
        assert recipe.share(every) > 0.0
        assert not any(recipe.share(t) for t in range(every))


def test_values_and_state_follow_their_entries_and_new_ones_start_at_zero():
    recipe = SET("75%", every=5, fraction=0.5)
    model, opt, step = training(recipe, 20)
    weight = model[0].weight
    seen = []
    update = recipe.update

    def look():
        state = opt.state[weight.values]
        parts = {"grad": weight.values.grad, "m": state["exp_avg"], "v": state["exp_avg_sq"]}
        seen.append({k: dense(weight, v) for k, v in (parts | {"w": weight.values}).items()})
        seen[-1]["mask"] = weight.mask()

    def around(t, share):
        look()
        update(t, share)
        look()

    recipe.update = around
    for _ in range(6):
        step()
    old, new = seen
    both, fresh = old["mask"] & new["mask"], new["mask"] & ~old["mask"]
    assert fresh.any()
    for name in ("w", "m", "v", "grad"):
        assert torch.equal(new[name][both], old[name][both])
        assert not new[name][fresh].any()
    # All but the dropped stayed: those were the smallest.
    size = old["w"].abs()[old["mask"]].sort().values
    dropped = int(recipe.share(5) * len(size))
    assert new["mask"][old["mask"] & (old["w"].abs() >= size[dropped])].all()
    assert fresh.sum() <= dropped


def dense(weight, tensor):
    return backend.scatter(tensor.detach(), weight.structure)


def test_random_choices_come_from_the_seed_alone():
    runs = []
    for noise, seed in ((0, 0), (1, 0), (0, 1)):
        recipe = SET("80%", every=2, seed=seed)
        _, _, step = training(recipe, 12)
        for _ in range(6):
            torch.rand(noise * 7)
            step()
        runs.append(masks(recipe))
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


def test_an_attached_model_can_be_copied_and_pickled():
    recipe = RigL("80%", every=2)
    model, _, step = training(recipe, 12)
    step()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        twin(torch.randn(2, 32).double()).sum().backward()
        assert len(twin[0]._forward_hooks) == 1
    assert all(not capture.pairs and not capture.coming for capture in recipe.captures.values())
    recipe.detach()
    assert not model[0]._forward_hooks


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Static("90%", distribution="er"), RecipeError, "uniform or erk"),
        (lambda: Static("2:4", distribution="erk"), PatternError, "same everywhere"),
        (lambda: Static(seed=-1), RecipeError, "at least 0"),
        (lambda: SET("90%", fraction=1.5), RecipeError, "share in"),
        (lambda: SET("90%", end_share=True), DTypeError, "a number"),
        (lambda: SET("90%", every=0), RecipeError, "at least 1"),
        (lambda: SET("90%", every=2.5), DTypeError, "integer"),
        (lambda: RigL("2:4:g2"), PatternError, "'2:4' or '50%'"),
        (lambda: DSL("2:4"), PatternError, "'90%'"),
        (lambda: DSL("90%", floor=2), RecipeError, "share in"),
    ],
)
def test_bad_input_says_what_fits(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_a_training_without_room_for_an_update_is_refused():
    recipe = SET("90%", every=100)
    model = recipe.prepare(nn.Sequential(nn.Linear(8, 32)))
    opt = torch.optim.SGD(recipe.parameters(model), lr=0.1)
    with pytest.raises(RecipeError, match="at least 135 steps"):
        recipe.attach(model, opt, total_steps=134)
    recipe.attach(model, opt, total_steps=135)
    assert recipe.share(100) > 0.0
