"""TopL0: one budget over all layers, held after every step."""

import pytest
import torch

from gossamer.masks import check_mask
from gossamer.masks.together import top_masks
from gossamer.patterns import Unstructured
from gossamer.recipes.top_l0 import TopL0
from support.learned_course import PATTERNS, batch, masters, run, start


def test_top_masks_against_one_sort() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(6, 8).round(decimals=1), torch.randn(4, 12).round(decimals=1) * 3]
    masks = top_masks(weights, Unstructured(0.7))
    flat = torch.cat([w.abs().flatten() for w in weights])
    order = flat.argsort(descending=True, stable=True)
    want = torch.zeros(len(flat), dtype=torch.bool)
    want[order[:28]] = True  # 14 of 48 each: 0.3 * 48 = 14.4
    assert torch.equal(torch.cat([m.flatten() for m in masks]), want)


@pytest.mark.parametrize("pattern", [*PATTERNS, "block 4x4 75%"])
def test_top_l0_holds_after_every_step(pattern: str) -> None:
    recipe = TopL0(pattern, begin_share=0.0)
    model, optimizer = start(recipe, 12, lr=0.5)
    budget = sum(recipe.pattern.count(*m.weight.shape) for m in masters(model))
    first = [m.mask() for m in masters(model)]

    def watch(when: str, t: int) -> None:
        layers = masters(model)
        assert sum(m.nnz for m in layers) == budget
        for layer in layers:
            check_mask(layer.mask(), layer.pattern)
            assert not layer.weight[~layer.mask()].any()
        if when == "before":
            assert any(m.weight.grad[~m.mask()].any() for m in layers)

    run(recipe, model, optimizer, 0, 12, watch)
    assert any(not torch.equal(m.mask(), f) for m, f in zip(masters(model), first, strict=True))
    if pattern == "75%":
        shares = [m.density for m in masters(model)]
        assert shares[0] != shares[1]
    x = batch(0)[0]
    y = model(x)
    torch.testing.assert_close(recipe.finish(model)(x), y)


def test_top_l0_starts_dense() -> None:
    recipe = TopL0("1:4", begin_share=0.5)
    model, optimizer = start(recipe, 10)
    run(recipe, model, optimizer, 0, 4)
    assert all(m.weight.all() for m in masters(model))
    run(recipe, model, optimizer, 4, 5)
    assert all(int(m.weight.count_nonzero()) == m.weight.numel() // 4 for m in masters(model))
