"""HebbianGrowth: what grows is what is correlated."""

import pytest
import torch
from torch import nn

from gossamer.recipes import HebbianGrowth
from gossamer.recipes.hebbian import _standard
from support.recipe_course import attached

pytestmark = pytest.mark.usefixtures("one_thread")


def grown(
    model: nn.Module, x: torch.Tensor, calls: int = 1
) -> tuple[nn.Module, list[torch.Tensor]]:
    """The first layer, and its masks before and after the update of the second step."""
    recipe = HebbianGrowth("75%", every=1, distribution="uniform")
    model, optimizer = attached(recipe, model, 20)
    masks = []
    for _ in range(2):
        masks = [model[0].weight.mask()]
        optimizer.zero_grad()
        for part in x.split(len(x) // calls):
            model(part).square().mean().backward()
        optimizer.step()
    return model[0], [*masks, model[0].weight.mask()]


@pytest.mark.parametrize("calls", [1, 2])
def test_the_most_correlated_entries_grow(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    seen = []
    scores = HebbianGrowth.scores

    def spy(self: HebbianGrowth, t: int, index: int, name: str, slots: object) -> object:
        found = scores(self, t, index, name, slots)
        weight, bias = self.layers[name].weight.to_dense().detach(), self.layers[name].bias
        seen.append((found(0, 24), weight.clone(), bias.detach().clone()))
        return found

    monkeypatch.setattr(HebbianGrowth, "scores", spy)
    x = torch.randn(64, 32) @ torch.randn(32, 32) + 5.0
    _, (before, after) = grown(nn.Sequential(nn.Linear(32, 24)), x, calls)
    ((found, weight, bias),) = seen
    total = torch.zeros(24, 32)
    for part in x.split(64 // calls):
        both = torch.cat([part, part @ weight.T + bias], 1).T
        total += torch.corrcoef(both)[32:, :32]
    torch.testing.assert_close(found, total.abs(), rtol=1e-4, atol=1e-5)
    new = after & ~before
    assert new.any()
    assert found[new].min() >= found[~after & ~before].max() - 1e-6


def test_convolutions_grow_by_patches() -> None:
    torch.manual_seed(0)
    _, (before, after) = grown(
        nn.Sequential(nn.Conv2d(4, 8, 3, padding=1)), torch.randn(8, 4, 6, 6)
    )
    assert before.sum() == after.sum()
    assert not torch.equal(before, after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_constant_features_are_not_correlated(dtype: torch.dtype) -> None:
    x = torch.cat([torch.randn(100, 3), torch.full((100, 2), 0.7)], 1).to(dtype)
    assert _standard(x, -1)[:, 3:].count_nonzero() == 0
    assert _standard(x.T.reshape(1, 5, 10, 10), 1)[0, 3:].count_nonzero() == 0
    torch.testing.assert_close(_standard(x, -1)[:, :3].norm(dim=0), torch.ones(3).double())
