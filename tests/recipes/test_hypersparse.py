"""HyperSparse: the gradient of its regulariser, and the growth of its weight."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from gossamer.recipes.hypersparse import HyperSparse, hypersparse_gradient
from support.learned_course import masters, run, start


@pytest.mark.parametrize("kept", [1, 5, 16, 39])
def test_hypersparse_gradient_is_of_its_regulariser(kept: int) -> None:
    torch.manual_seed(kept)
    w = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    kappa = w.detach().abs().flatten().sort(descending=True).values[kept]
    slope = torch.tanh(0.6584789484624083 / kappa * w.abs())
    scale = (w.abs().sum() / slope.sum()).detach()
    (slope.sum() * scale).backward()
    torch.testing.assert_close(hypersparse_gradient(w, kept), w.grad, rtol=1e-9, atol=1e-12)


def test_hypersparse_gradient_at_the_edges() -> None:
    w = torch.randn(4, 4)
    assert not hypersparse_gradient(w, 16).any()
    assert not hypersparse_gradient(torch.zeros(4, 4), 4).any()
    assert not hypersparse_gradient(torch.eye(4), 4).any()
    # What will be pruned is pressed harder than what stays.
    size = hypersparse_gradient(w, 4).abs().flatten()
    order = w.abs().flatten().argsort()
    assert (size[order].diff() <= 0).all()


def test_hypersparse_weight_grows_by_a_factor() -> None:
    recipe = HyperSparse("75%", lam=1e-3, growth=100.0, warmup_share=0.2, prune_share=0.7)
    recipe.total_steps = 100
    weights = [recipe.weight_at(t) for t in range(70)]
    assert weights[:20] == [0.0] * 20
    assert weights[20] == pytest.approx(1e-3)
    assert weights[69] == pytest.approx(0.1)
    ratios = [b / a for a, b in pairwise(weights[20:])]
    assert max(ratios) == pytest.approx(min(ratios)) == pytest.approx(100 ** (1 / 49))


def test_hypersparse_adds_to_the_gradients() -> None:
    recipe = HyperSparse("1:4", lam=0.5, growth=1.0, warmup_share=0.0)
    model, optimizer = start(recipe, 10, torch.optim.SGD, lr=0.1)
    first = masters(model)[0]
    seen: dict[str, Tensor] = {}

    def watch(when: str, t: int) -> None:
        if when == "before":
            seen["weight"], seen["grad"] = first.weight.detach().clone(), first.weight.grad.clone()

    run(recipe, model, optimizer, 0, 1, watch)
    want = seen["grad"] + 0.5 * hypersparse_gradient(seen["weight"], 16 * 24 // 4)
    torch.testing.assert_close(first.weight.detach(), seen["weight"] - 0.1 * want)
