"""Static, SET and DSL: what dies and grows, what moves with it, and what never changes."""

import copy
import pickle

import pytest
import torch
from torch import nn

from gossamer import backend
from gossamer.errors import DTypeError, PatternError, RecipeError
from gossamer.masks import allocate, check_mask, magnitude_mask, random_mask
from gossamer.patterns import parse_pattern
from gossamer.recipes.base.slots import Best, Slots, drop, grow
from gossamer.recipes.dsl import DSL
from gossamer.recipes.rigl import RigL
from gossamer.recipes.set import SET
from gossamer.recipes.static import Static
from support.recipe_course import training

PATTERNS = ["90%", "75%:v4", "2:4", "1:4", "2:8:v4", "block 4x4 75%"]


def masks(recipe):
    return [
        layer.mask() if hasattr(layer, "mask") else layer.weight.mask()
        for layer in recipe.layers.values()
    ]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_kept_slots_carry_the_magnitude_of_their_entries(pattern):
    weight = torch.randn(16, 32, dtype=torch.float64)
    pattern = parse_pattern(pattern)
    mask = random_mask((16, 32), pattern, 3)
    slots = Slots(16, 32, pattern)
    at = mask.flatten().nonzero().flatten()
    at = at[torch.randperm(len(at), generator=torch.Generator().manual_seed(1))]
    ids, size = slots.kept(weight.flatten()[at], at)
    assert torch.equal(slots.mask(ids), mask)
    assert ids.tolist() == sorted(set(ids.tolist()))
    tiles = (
        (weight * mask).abs().view(16 // slots.height, slots.height, 32 // slots.width, slots.width)
    )
    torch.testing.assert_close(size, tiles.sum((1, 3)).flatten()[ids], rtol=1e-14, atol=0)


def test_of_equal_scores_the_lower_slot_stays_and_grows():
    assert drop(torch.tensor([1.0, 2.0, 1.0, 1.0]), 2).tolist() == [True, True, False, False]
    best = Best(3)
    for first, scores in ((0, [1.0, 5.0]), (2, [1.0, 1.0, 5.0]), (5, [5.0, 0.0])):
        best.offer(torch.tensor(scores), first)
    assert best.ids.tolist() == [1, 4, 5]
    best = Best(2)
    best.offer(torch.tensor([3.0, 3.0, 3.0, 3.0]), 0)
    best.offer(torch.tensor([3.0]), 4)
    assert best.ids.tolist() == [0, 1]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("slab", [1, 100, 10**6])
def test_growth_by_slabs_is_growth_by_the_whole_and_obeys_the_pattern(pattern, slab):
    pattern = parse_pattern(pattern)
    slots = Slots(16, 32, pattern)
    score = torch.rand(16, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    score[3, 5] = torch.nan
    ids = random_ids(slots, 7)
    stays = drop(torch.rand(len(ids), generator=torch.Generator().manual_seed(3)), len(ids) // 3)
    stay, dropped = ids[stays], ids[~stays]
    shapes = []

    def rows(begin, end):
        shapes.append(end - begin)
        return score[begin:end].clone()

    grown = grow(slots, stay, dropped, rows, slab)
    assert sum(shapes) == 16
    assert max(shapes) * 32 <= max(slab, 32 * slots.height)
    whole = torch.cat([stay, grown])
    check_mask(slots.mask(whole), pattern)
    assert len(grown) == len(dropped)
    assert not set(grown.tolist()) & set(stay.tolist())
    # The oracle: those that stay have infinite scores, and the pattern's own selection picks.
    free = score.nan_to_num(nan=-1e300).masked_fill(slots.mask(stay), 1e200)
    tiles = free.view(16 // slots.height, slots.height, 32 // slots.width, slots.width).sum((1, 3))
    oracle = tiles.flatten()
    if hasattr(pattern, "m"):
        picked = oracle.view(-1, pattern.m).topk(pattern.n, dim=1).indices
        picked += torch.arange(0, slots.count, pattern.m)[:, None]
    else:
        picked = oracle.topk(len(ids)).indices
    assert sorted(whole.tolist()) == sorted(picked.flatten().tolist())


def random_ids(slots, seed):
    mask = random_mask((slots.rows, slots.cols), slots.pattern, seed)
    corner = mask[:: slots.height, :: slots.width]
    return corner.flatten().nonzero().flatten()


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


def test_set_grows_every_candidate_as_often():
    recipe = SET("75%", seed=5)
    slots = Slots(4, 8, parse_pattern("75%"))
    stay, dropped = torch.arange(4), torch.arange(4, 8)
    hits = torch.zeros(32)
    for t in range(1500):
        grown = grow(slots, stay, dropped, recipe.scores(t, 0, "", slots), 16)
        hits[grown] += 1
    assert not hits[:4].any()
    expected = 1500 * 4 / 28
    # 5 standard deviations of a binomial.
    assert (hits[4:] - expected).abs().max() < 5 * expected**0.5


def test_erk_gives_each_layer_its_share_and_static_masks_never_move():
    recipe = Static("80%", distribution="erk", seed=3)
    model, _, step = training(recipe, 20)
    shares = allocate({"0": (64, 32), "2": (16, 64)}, 0.8, "erk")
    for name, size in (("0", 2048), ("2", 1024)):
        layer = recipe.layers[name]
        assert layer.weight.nnz == round(size * (1 - shares[name]))
    first = masks(recipe)
    for _ in range(20):
        step()
    assert all(torch.equal(a, b) for a, b in zip(first, masks(recipe), strict=True))
    assert not torch.equal(first[0], magnitude_mask(model[0].weight.to_dense(), "50%"))
    found = [make(p).distribution for make in (Static, RigL) for p in ("2:8", "50%")]
    assert found == ["uniform", "uniform", "uniform", "erk"]


def test_layers_of_one_shape_have_masks_of_their_own():
    recipe = Static("50%")
    recipe.prepare(model := nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)))
    assert not torch.equal(model[0].weight.mask(), model[1].weight.mask())


def test_no_fraction_is_static_bit_for_bit():
    weights = []
    for recipe in (
        Static("80%", distribution="erk"),
        SET("80%", fraction=0.0),
        RigL("80%", fraction=0.0),
    ):
        model, _, step = training(recipe, 12)
        for _ in range(12):
            step()
        weights.append(model[0].weight.to_dense().detach())
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("pattern", ["80%", "75%:v4", "block 4x4 75%"])
def test_dsl_moves_entries_between_layers_and_keeps_their_total(pattern):
    recipe = DSL(pattern, every=3, fraction=0.5, floor=0.5)
    model, opt, step = training(recipe, 40)
    first = [int(mask.sum()) for mask in masks(recipe)]
    with torch.no_grad():
        model[0].weight.mul_(0.01)
    for _ in range(40):
        step()
        counts = [int(mask.sum()) for mask in masks(recipe)]
        assert sum(counts) == sum(first)
        assert all(now >= 0.5 * then - 16 for now, then in zip(counts, first, strict=True))
        for layer in recipe.layers.values():
            assert not layer.weight[~layer.mask()].any()
            assert not opt.state[layer.weight]["exp_avg"][~layer.mask()].any()
            assert layer.pattern.count(*layer.weight.shape) == int(layer.mask().sum())
    assert counts != first
    x = torch.randn(4, 32).double()
    before = model(x)
    torch.testing.assert_close(recipe.finish(model)(x), before)


def test_dsl_ranks_all_layers_together():
    recipe = DSL("75%", every=1, end_share=1.0, fraction=0.5, floor=0.0)
    torch.manual_seed(1)
    model = recipe.prepare(nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8)).double())
    opt = torch.optim.SGD(recipe.parameters(model), lr=0.0)
    recipe.attach(model, opt, total_steps=10**6)
    x = torch.randn(8, 16).double()
    model(x).square().sum().backward()
    opt.step()
    layers = list(recipe.layers.values())
    full = [nn.Parameter(layer.weight.detach() * layer.mask()) for layer in layers]
    h = torch.tanh(x @ full[0].t() + model[0].bias)
    (h @ full[1].t() + model[2].bias).square().sum().backward()
    size = torch.cat([w.detach().abs().flatten() for w in full])
    gradient = torch.cat([w.grad.abs().flatten() for w in full])
    mask = torch.cat([layer.mask().flatten() for layer in layers])
    total = int(mask.sum())
    stay = torch.zeros_like(mask)
    stay[size.masked_fill(~mask, -1.0).topk(total - total // 2).indices] = True
    grown = gradient.masked_fill(stay, -1.0).topk(total // 2).indices
    opt.zero_grad()
    model(x).square().sum().backward()
    opt.step()
    now = torch.cat([layer.mask().flatten() for layer in layers])
    # cos(pi t / T) at t = 1 is short of 1 by 5e-12: the share rounds down to a half of all.
    stay[grown] = True
    assert (now != stay).sum() <= 4


def test_an_attached_model_can_be_copied_and_pickled():
    recipe = RigL("80%", every=2)
    model, _, step = training(recipe, 12)
    step()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        twin(torch.randn(2, 32).double()).sum().backward()
        assert len(twin[0]._forward_hooks) == 1
    assert all(not capture.pairs for capture in recipe.captures.values())
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
    model = recipe.prepare(nn.Sequential(nn.Linear(8, 8)))
    opt = torch.optim.SGD(recipe.parameters(model), lr=0.1)
    with pytest.raises(RecipeError, match="at least 135 steps"):
        recipe.attach(model, opt, total_steps=134)
    recipe.attach(model, opt, total_steps=135)
    assert recipe.share(100) > 0.0


def test_dsl_leaves_every_layer_its_floor():
    recipe = DSL("80%", every=1, fraction=0.5, floor=0.5)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 16)).double()
    opt = torch.optim.SGD(recipe.parameters(recipe.prepare(model)), lr=0.0)
    recipe.attach(model, opt, total_steps=1000)
    first = model[0].nnz
    with torch.no_grad():
        model[0].weight.mul_(1e-6)
    for _ in range(2):
        # Without input the first layer has no gradient, and nothing grows there.
        model(torch.zeros(4, 32).double()).square().sum().backward()
        opt.step()
    assert model[0].nnz == int(0.5 * first)
