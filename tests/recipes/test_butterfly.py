"""Flat block butterfly: the mask, what it connects, and layers with a term of low rank."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer.errors import PatternError, RecipeError
from gossamer.masks import check_mask, magnitude_mask, mask_from_score, random_mask
from gossamer.nn.layers.iso_flop import Doped
from gossamer.patterns import Butterfly, parse_pattern
from gossamer.recipes import GMP, SET, PixelatedButterfly, Static
from support.recipe_course import attached, bits, take_step


def oracle(rows: int, cols: int, kept: int, grid: int) -> Tensor:
    """The union of butterfly factors as Kronecker products, stretched over the weight."""
    whole = torch.eye(grid)
    for i in range(kept - 1):
        pair = torch.kron(torch.ones(2, 2), torch.eye(2**i))
        whole += torch.kron(torch.eye(grid // 2 ** (i + 1)), pair)
    return torch.kron(whole > 0, torch.ones(rows // grid, cols // grid, dtype=torch.bool)) > 0


@pytest.mark.parametrize(
    ("rows", "cols", "kept", "grid", "vector"),
    [(128, 128, 3, 16, 8), (64, 256, 2, 4, 8), (256, 64, 4, 8, 4), (32, 16, 5, 16, 1),
     (8, 4, 1, 1, 8), (16, 32, 2, 2, 8), (48, 96, 3, 4, 4)],
)  # fmt: skip
def test_the_mask_is_the_union_of_butterfly_factors(
    rows: int, cols: int, kept: int, grid: int, vector: int
) -> None:
    pattern = Butterfly(kept, grid, vector)
    expected = oracle(rows, cols, kept, grid)
    for mask in (
        mask_from_score(torch.randn(rows, cols), pattern),
        magnitude_mask(torch.zeros(rows, cols), str(pattern)),
        random_mask((rows, cols), pattern, 3),
    ):
        assert torch.equal(mask, expected)
    assert int(expected.sum()) == pattern.count(rows, cols) == rows * cols * kept // grid
    check_mask(expected, pattern)
    assert parse_pattern(str(pattern)) == pattern


@pytest.mark.parametrize("grid", [2, 4, 16, 64])
def test_log_factors_reach_every_block(grid: int) -> None:
    """As many layers as a butterfly has factors connect all inputs with all outputs."""
    steps = grid.bit_length() - 1
    for kept in range(1, steps + 2):
        block = oracle(grid, grid, kept, grid).double()
        reached = torch.linalg.matrix_power(block, steps) > 0
        assert torch.equal(reached.sum(1), torch.full((grid,), 2 ** (kept - 1)))
        if kept == steps + 1 and steps > 1:
            assert not (torch.linalg.matrix_power(block, steps - 1) > 0).all()


def test_bad_patterns_and_shapes_are_refused() -> None:
    for text, message in (
        ("butterfly 3/12", "power of 2"), ("butterfly 6/16", r"in \[1, 5\]"),
        ("butterfly 0/16", r"in \[1, 5\]"), ("butterfly 3/16:v3", "vector"),
    ):  # fmt: skip
        with pytest.raises(PatternError, match=message):
            parse_pattern(text)
    with pytest.raises(PatternError, match=r"multiple of 128.*pad to 256"):
        parse_pattern("butterfly 3/16").check_shape(160, 160)
    with pytest.raises(PatternError, match="in_features=100"):
        gossamer.SparseLinear(100, 128, pattern="butterfly 3/16")
    for kind in (SET, GMP):
        with pytest.raises(PatternError, match="static"):
            kind("butterfly 3/16")
    with pytest.raises(RecipeError, match="low_rank_share"):
        PixelatedButterfly(low_rank_share=1.0)


def test_a_model_is_cut_saved_and_loaded(tmp_path: Path) -> None:
    dense = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
    model = gossamer.sparsify(copy.deepcopy(dense), "butterfly 3/8")
    x = torch.randn(5, 64)
    for at, shape in (("0", (128, 64)), ("2", (64, 128))):
        weight = dense.get_submodule(at).weight.detach()  # type: ignore[union-attr,operator]
        expected = torch.where(oracle(*shape, 3, 8), weight, 0.0)
        assert torch.equal(model.get_submodule(at).used_weight(), expected)  # type: ignore[operator]
    gossamer.save(model, tmp_path / "model")
    loaded = gossamer.load(tmp_path / "model", copy.deepcopy(dense))
    assert torch.equal(loaded(x), model(x))
    static = Static("butterfly 3/8").prepare(copy.deepcopy(dense))
    assert torch.equal(static[0].mask(), model[0].mask())


def test_the_density_holds_both_terms() -> None:
    recipe = PixelatedButterfly("butterfly 3/16")
    shapes = {(768, 768): 24, (768, 3072): 32, (3072, 768): 32, (768, 2304): 32}
    for (inputs, outputs), rank in shapes.items():
        layer = recipe.prepare(nn.Linear(inputs, outputs))
        assert isinstance(layer, Doped)
        assert layer.down.out_features == rank
        weights = layer.sparse.weight.nnz + layer.down.weight.numel() + layer.up.weight.numel()
        assert weights / (inputs * outputs) == recipe.density(inputs, outputs)
        assert 0.225 < recipe.density(inputs, outputs) <= 0.25


def test_the_first_outputs_have_the_dense_variance() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(256, 512, bias=False)
    nn.init.normal_(linear.weight, std=0.02)
    layer = PixelatedButterfly("butterfly 2/8").prepare(copy.deepcopy(linear))
    x = torch.randn(4096, 256)
    dense, whole = linear(x).var(), layer(x).var()
    assert whole.item() == pytest.approx(dense.item(), rel=0.05)
    assert layer.sparse(x).var().item() == pytest.approx(0.5 * dense.item(), rel=0.05)
    kept = layer.sparse.weight.values.std().item()
    assert kept == pytest.approx(0.02 * (8 / 2) ** 0.5 * 0.5**0.5, rel=0.05)


def course() -> tuple[PixelatedButterfly, nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    recipe = PixelatedButterfly("butterfly 2/4")
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
    return recipe, *attached(recipe, model.double(), 12)


def test_steps_equal_the_plain_formula_and_resume() -> None:
    recipe, model, optimizer = course()
    layers: list[Doped] = [model[0], model[2]]
    parts = [
        [nn.Parameter(w.detach().clone()) for w in (s.used_weight(), d.weight, u.weight, s.bias)]
        for s, d, u in ((layer.sparse, layer.down, layer.up) for layer in layers)
    ]
    masks = [oracle(64, 32, 2, 4), oracle(32, 64, 2, 4)]
    plain = torch.optim.AdamW([p for part in parts for p in part], lr=1e-2)

    def formula(x: Tensor) -> Tensor:
        for i, ((w, down, up, bias), mask) in enumerate(zip(parts, masks, strict=True)):
            x = x @ (w * mask).t() + (x @ down.t()) @ up.t() + bias
            x = x.relu() if i == 0 else x
        return x

    saved = None
    for t in range(12):
        if t == 5:
            saved = copy.deepcopy([part.state_dict() for part in (recipe, model, optimizer)])
        generator = torch.Generator().manual_seed(t)
        x, y = (torch.randn(8, 32, generator=generator).double() for _ in range(2))
        plain.zero_grad()
        nn.functional.mse_loss(formula(x), y).backward()
        take_step(model, optimizer, x, y)
        plain.step()
        torch.testing.assert_close(model(x), formula(x), rtol=1e-9, atol=1e-12)
    assert saved is not None
    again = course()
    for part, state in zip(again, saved, strict=True):
        part.load_state_dict(state)
    for t in range(5, 12):
        generator = torch.Generator().manual_seed(t)
        x, y = (torch.randn(8, 32, generator=generator).double() for _ in range(2))
        take_step(again[1], again[2], x, y)
    assert bits(again[1].state_dict()) == bits(model.state_dict())
    finished = recipe.finish(model)
    assert torch.equal(finished(x), model(x))
