"""MaskDecay: masked weights fade from one to zero, at the paper's rates."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from gossamer.errors import RecipeError
from gossamer.recipes import STE, MaskDecay
from support.masked_course import batches, check_learns, fit, largest
from support.recipe_course import take_step

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", ["linear", "exponential"])
def test_mask_decay_fades_monotonically_from_dense_to_the_pattern(kind: str) -> None:
    recipe = MaskDecay("2:8", method=kind, dense_share=0.2, finetune_share=0.25)
    model, optimizer = fit(recipe, 20)
    seen = []
    for x, y in batches(20):
        seen.append(model[0].masked_weight_share.item())
        dense = nn.functional.linear(x, model[0].weight, model[0].bias)
        out = model[0](x)
        w = model[0].weight.detach()
        mask = largest(w, 2, 8)
        soft = torch.where(mask, w, w * seen[-1])
        torch.testing.assert_close(out, nn.functional.linear(x, soft, model[0].bias))
        assert torch.equal(out, dense) == (seen[-1] == 1.0)
        take_step(model, optimizer, x, y)
    assert seen[:5] == [1.0] * 5
    assert seen[15:] == [0.0] * 5
    assert all(a > b > 0.0 for a, b in pairwise(seen[4:15]))
    rate = (1.0 if kind == "linear" else 10.0) / 11
    middle = 1 - rate * 3 if kind == "linear" else math.exp(-rate * 3)
    assert seen[7] == pytest.approx(middle)


def test_mask_decay_takes_the_papers_rates() -> None:
    exponential = MaskDecay("1:8", method="exponential", rate=1e-4, finetune_share=0.0)
    assert exponential.masked_weight_share_at(10_000, 100_000) == pytest.approx(0.3679, abs=1e-4)
    linear = MaskDecay("1:8", rate=1e-4, finetune_share=0.0)
    assert (
        linear.masked_weight_share_at(9_999, 100_000)
        > 0.0
        == linear.masked_weight_share_at(10_000, 100_000)
    )
    fast = MaskDecay("1:8", rate=8e-4, finetune_share=0.0)
    assert (
        fast.masked_weight_share_at(1_249, 10_000)
        > 0.0
        == fast.masked_weight_share_at(1_250, 10_000)
    )


def test_mask_decay_hard_is_ste_bit_for_bit() -> None:
    """D = 0 throughout: the rate is so high that one step does it, and the first is dense."""
    ends = []
    for recipe in (STE("2:8"), MaskDecay("2:8", rate=2.0)):
        model, optimizer = fit(recipe, 20)
        for layer in (model[0], model[2]):
            layer.masked_weight_share.zero_()
        for x, y in batches(20):
            take_step(model, optimizer, x, y)
        ends.append(model)
    assert all(map(torch.equal, *(list(m.parameters()) for m in ends)))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: MaskDecay("2:4", method="cubic"), "linear or exponential"),
        (lambda: MaskDecay("2:4", rate=0.0), "above 0"),
        (lambda: MaskDecay("2:4", dense_share=1.0), "dense_share"),
        (lambda: MaskDecay("2:4", dense_share=0.5, finetune_share=0.5), "below 1"),
    ],
)
def test_bad_settings_are_refused(make: object, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        make()


@pytest.mark.slow
def test_it_learns() -> None:
    check_learns(MaskDecay("2:4"))
