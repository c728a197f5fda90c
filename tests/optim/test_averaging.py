"""Averages follow masks that move: by coordinate, as the average of the dense weights would."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim import swa_utils
from torch.optim.swa_utils import get_ema_multi_avg_fn, update_bn

import gossamer
from gossamer import StructureError, recipes
from gossamer.masks import random_mask
from gossamer.optim import AveragedModel, follow_masks

pytestmark = pytest.mark.filterwarnings("ignore:.*outputs that read nothing")
DECAY = 0.8


def batch(step: int) -> Tensor:
    return torch.randn(6, 16, generator=torch.Generator().manual_seed(step))


def prepared(name: str, pattern: str) -> tuple[nn.Module, torch.optim.Optimizer, recipes.Recipe]:
    torch.manual_seed(0)
    recipe = recipes.make(name, pattern)
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.GELU(), nn.Linear(32, 16))
    model = recipe.prepare(model)
    optimizer = torch.optim.AdamW(recipe.parameters(model), lr=1e-2)
    recipe.attach(model, optimizer, total_steps=24)
    return model, optimizer, recipe


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize(
    ("name", "pattern"),
    [("set", "75%"), ("rigl", "75%"), ("rigl", "2:4"), ("gmp-sparse", "75%"), ("gmp", "75%"),
     ("srste", "2:4"), ("static", "75%:v4")],
)  # fmt: skip
def test_an_average_follows_a_recipe(name: str, pattern: str, use_buffers: bool) -> None:
    model, optimizer, _ = prepared(name, pattern)
    average = AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=use_buffers
    )
    layer, mine = model[0], average.module[0]
    oracle, moves = layer.used_weight().detach().clone(), 0
    stored = layer.sparse_weight is not None
    for step in range(16):
        before = layer.mask()
        optimizer.zero_grad()
        (model(batch(step)) - batch(step)).square().mean().backward()
        optimizer.step()
        moves += not torch.equal(layer.mask(), before)
        average.update_parameters(model)
        now = layer.used_weight().detach() if stored else layer.weight.detach()
        # Dead entries leave the average, grown ones have the average of zeros.
        decay = DECAY if step else 0.0
        oracle = decay * oracle + (1 - decay) * now
        if stored:
            oracle = oracle.masked_fill(~layer.mask(), 0.0)
            assert torch.equal(mine.mask(), layer.mask())
            torch.testing.assert_close(mine.used_weight().detach(), oracle)
        else:
            torch.testing.assert_close(mine.weight.detach(), oracle)
    assert moves or name in ("static", "srste")
    if not stored:
        assert mine.pattern == layer.pattern
    average(batch(0)).sum().backward()
    update_bn([batch(1)], average)
    other = AveragedModel(model)
    other.load_state_dict(average.state_dict())
    other.eval(), average.eval()
    assert torch.equal(other(batch(2)), average(batch(2)))


def test_an_average_of_a_state_dict_is_told_and_follows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(gossamer.SparseLinear(16, 32, pattern="75%"))
    average = copy.deepcopy(model)
    model[0].weight.set_mask(random_mask((32, 16), "75%", seed=5))

    def update(mean: nn.Module) -> nn.Module:
        with torch.no_grad():
            for mine, theirs in zip(
                mean.state_dict().values(), model.state_dict().values(), strict=True
            ):
                mine.copy_(DECAY * mine + (1 - DECAY) * theirs)
        return mean

    with pytest.raises(gossamer.StructureError, match="written over"):
        update(copy.deepcopy(average))(batch(0))
    expected = average[0].weight.to_dense() * model[0].mask() * DECAY
    expected = expected + (1 - DECAY) * model[0].weight.to_dense()
    follow_masks(average, model)
    torch.testing.assert_close(update(average)[0].weight.to_dense(), expected)


def test_other_layers_are_refused_and_nothing_changes() -> None:
    model = nn.Sequential(*(gossamer.SparseLinear(16, 16, pattern="2:4") for _ in range(2)))
    average = nn.Sequential(gossamer.SparseLinear(16, 16, pattern="2:4"), nn.Linear(16, 16))
    before = average[0].mask()
    with pytest.raises(gossamer.ArgumentError, match=r"'1.weight' is SparseWeight"):
        follow_masks(average, model)
    assert torch.equal(average[0].mask(), before)


# ---- torch's own average, which cannot follow --------------------------------------------------


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("kind", ["sparse", "masked"])
def test_torchs_own_average_is_told_when_a_mask_has_moved(kind: str, use_buffers: bool) -> None:
    """Without buffers torch copies them: the mask of the model, with values of the one before."""
    torch.manual_seed(0)
    layer = gossamer.SparseLinear(16, 8, pattern="2:4")
    if kind == "masked":
        layer = gossamer.nn.MaskedLinear.from_dense(nn.Linear(16, 8), "2:4", False)
    model, x = nn.Sequential(nn.Identity(), layer), torch.randn(3, 16)
    average = swa_utils.AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=use_buffers
    )
    for _ in range(2):
        average.update_parameters(model)
        average(x)
    set_mask = layer.set_mask if kind == "masked" else layer.weight.set_mask
    set_mask(random_mask((8, 16), "2:4", seed=1))
    average(x)  # as it was before the mask moved: right
    average.update_parameters(model)
    for use in (average, average.module):
        with pytest.raises(StructureError, match=r"1(\.weight)?: .*optim\.AveragedModel"):
            use(x)
