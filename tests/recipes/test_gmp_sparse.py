"""GMP without a dense weight: the same masks and numbers, with state that becomes shorter."""

import copy
import pickle

import pytest
import torch
from torch import nn

from gossamer import backend
from gossamer.errors import RecipeError
from gossamer.masks import check_mask
from gossamer.nn import SparseLinear
from gossamer.patterns import parse_pattern
from gossamer.recipes.base.thinning import thin
from gossamer.recipes.gmp import GMP
from gossamer.weight import SparseWeight
from support.recipe_course import training

TILES = ["block 4x4 75%", "block 16x2 75%", "1:4:v16", "75%:v16"]
PATTERNS = ["90%", "75%:v4", "1:4", "2:8:v4", *TILES]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("initial", [0.0, 0.5])
def test_it_trains_as_with_a_dense_weight(pattern, initial):
    options = {"initial_sparsity": initial, "every": 3}
    dense, sparse = GMP(pattern, **options), GMP(pattern, dense_weight=False, **options)
    one, its_state, step = training(dense, 30)
    two, state, thin_step = training(sparse, 30)
    parameters = [two[at].weight.values for at in (0, 2)]
    counts = [p.numel() for p in parameters]
    for t in range(30):
        for at, parameter in zip((0, 2), parameters, strict=True):
            weight = two[at].weight
            assert isinstance(two[at], SparseLinear)
            assert weight.values is parameter
            assert weight.pattern == one[at].pattern, t
            check_mask(weight.mask(), weight.pattern)
            assert torch.equal(weight.mask(), one[at].mask()), t
            # Products of the two layers round differently.
            torch.testing.assert_close(
                weight.to_dense().detach(), one[at].weight.detach() * one[at].mask(),
                rtol=1e-9, atol=1e-11,
            )  # fmt: skip
        assert step() == pytest.approx(thin_step(), rel=1e-9)
    for at, parameter, count in zip((0, 2), parameters, counts, strict=True):
        assert parameter.numel() == two[at].weight.pattern.count(*two[at].weight.shape) < count
        for name in ("exp_avg", "exp_avg_sq"):
            moved = state.state[parameter][name]
            assert moved.shape == parameter.shape
            full = backend.scatter(moved, two[at].weight.structure)
            theirs = its_state.state[one[at].weight][name] * one[at].mask()
            torch.testing.assert_close(full, theirs, rtol=1e-9, atol=1e-14)
    assert sparse.finish(two)[0].weight.pattern == parse_pattern(pattern)


def test_a_copy_knows_its_final_pattern():
    recipe = GMP("90%", dense_weight=False, every=2)
    model = recipe.prepare(nn.Sequential(nn.Linear(32, 16)))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        again = GMP("90%", dense_weight=False, every=2)
        optimizer = torch.optim.SGD(again.parameters(twin), lr=0.1, momentum=0.9)
        again.attach(twin, optimizer, total_steps=8)
        for _ in range(8):
            optimizer.zero_grad()
            twin(torch.randn(4, 32)).square().sum().backward()
            optimizer.step()
        assert twin[0].weight.pattern == parse_pattern("90%")


def test_a_wrapped_model_is_refused():
    recipe = GMP("90%", dense_weight=False)
    model = recipe.prepare(nn.Sequential(nn.Linear(32, 16)))
    optimizer = torch.optim.SGD(recipe.parameters(model), lr=0.1)
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    with pytest.raises(RecipeError, match="use dense_weight=True"):
        recipe.attach(wrapped, optimizer, total_steps=50)


@pytest.mark.parametrize("pattern", ["50%", "50%:v4", "4:8", "block 4x4 50%"])
def test_a_nan_stays_and_of_equal_entries_the_first(pattern):
    full = torch.ones(8, 16)
    full[5, 9] = torch.nan
    weight = SparseWeight.from_dense(full, "0%" if pattern == "4:8" else pattern)
    if pattern == "4:8":
        weight = SparseWeight.from_dense(full, "8:8")
    target = {"50%": "75%", "50%:v4": "75%:v4", "4:8": "2:8", "block 4x4 50%": "block 4x4 75%"}
    before = weight.mask()
    thin(weight, parse_pattern(target[pattern]), None)
    assert weight.mask()[5, 9]
    assert before[weight.mask()].all()
    assert weight.values.isnan().sum() == 1
    if pattern == "4:8":
        assert weight.mask()[0].tolist() == [True, True, *[False] * 6] * 2
