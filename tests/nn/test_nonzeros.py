"""Pattern "nonzeros": a model that was pruned elsewhere keeps its own zeros."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import Nonzeros, SparseLinear, SparseWeight, sparsify
from gossamer.errors import DTypeError, PatternError
from gossamer.masks import check_mask, magnitude_mask, mask_from_score, random_mask
from gossamer.nn import MaskedLinear
from gossamer.recipes import SET, Static


def pruned(rows: int, cols: int, share: float, vector: int = 1) -> nn.Linear:
    """A dense layer of which an exact share of the columns of panels is zero."""
    layer = nn.Linear(cols, rows)
    with torch.no_grad():
        layer.weight.mul_(random_mask((rows, cols), f"{100 * share}%:v{vector}", seed=rows + cols))
    return layer


def pruned_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        pruned(32, 16, 0.95), nn.ReLU(), pruned(24, 32, 0.9), nn.ReLU(), pruned(8, 24, 0.5)
    )


def test_texts() -> None:
    assert gossamer.parse_pattern(" NonZeros ") == Nonzeros()
    assert gossamer.parse_pattern("nonzeros:v4") == Nonzeros(vector=4)
    for vector in (1, 4, 8):
        assert gossamer.parse_pattern(str(Nonzeros(vector))) == Nonzeros(vector)
    assert gossamer.parse_pattern("nonzeros:v4 <= 40%") == Nonzeros(4, densest=0.4)
    assert gossamer.parse_pattern(str(Nonzeros(densest=0.07))) == Nonzeros(densest=0.07)
    for wrong in ("nonzero", "nonzeros:v2", "nonzeros 90%", "nonzeros:4", "nonzeros<=0%"):
        with pytest.raises(PatternError, match="parse_pattern got"):
            gossamer.parse_pattern(wrong)
    with pytest.raises(DTypeError, match="vector"):
        Nonzeros(vector=4.0)  # type: ignore[arg-type]
    with pytest.raises(DTypeError, match="densest"):
        Nonzeros(densest="40%")  # type: ignore[arg-type]
    for outside in (0.0, 1.1, float("nan")):
        with pytest.raises(PatternError, match="densest"):
            Nonzeros(densest=outside)


def test_a_pruned_model_keeps_its_zeros_and_its_output() -> None:
    model = pruned_model()
    x = torch.randn(5, 16)
    before = model(x)
    weights = [module.weight.detach().clone() for module in model if isinstance(module, nn.Linear)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsify(model, "nonzeros")
    torch.testing.assert_close(model(x), before)
    layers = [module for module in model if isinstance(module, SparseLinear)]
    for layer, weight in zip(layers, weights, strict=True):
        assert torch.equal(layer.weight.mask(), weight != 0)
        assert torch.equal(layer.weight.to_dense(), weight)
        assert layer.weight.pattern.count(*weight.shape) == int((weight != 0).sum())
        check_mask(layer.weight.mask(), layer.weight.pattern)
    assert [round(layer.weight.density, 1) for layer in layers] == [0.1, 0.1, 0.5]


def test_the_weight_is_an_ordinary_one_afterwards() -> None:
    layer = SparseLinear.from_dense(pruned(24, 32, 0.9), "nonzeros")
    again = SparseLinear(32, 24, pattern=layer.weight.pattern)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.weight.to_dense(), layer.weight.to_dense())
    layer.weight.set_mask(random_mask((24, 32), layer.weight.pattern, seed=1))
    assert gossamer.parse_pattern(str(layer.weight.pattern)) == layer.weight.pattern


@pytest.mark.parametrize("vector", [4, 8])
def test_panels_keep_a_column_that_one_of_their_rows_needs(vector: int) -> None:
    pattern = f"nonzeros:v{vector}"
    shared = pruned(16, 32, 0.75, vector)
    layer = SparseLinear.from_dense(shared, pattern)
    assert layer.weight.layout.vector == vector
    assert torch.equal(layer.weight.mask(), shared.weight != 0)
    single = pruned(16, 32, 0.9)
    layer = SparseLinear.from_dense(single, pattern)
    assert torch.equal(layer.weight.to_dense(), single.weight)
    panels = (single.weight != 0).view(-1, vector, 32).any(dim=1)
    assert layer.weight.nnz == vector * int(panels.sum())


def test_what_counts_as_zero() -> None:
    weight = torch.tensor([[0.0, -0.0, torch.nan, 1e-45, -torch.inf]])
    assert magnitude_mask(weight, "nonzeros").tolist() == [[False, False, True, True, True]]
    for dtype in (torch.float64, torch.bfloat16):
        made = SparseWeight.from_dense(torch.eye(4).to(dtype), "nonzeros")
        assert made.values.tolist() == [1.0] * 4


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (3, 5)])
def test_nothing_is_kept_of_zeros(shape: tuple[int, int]) -> None:
    weight = SparseWeight.from_dense(torch.zeros(shape), "nonzeros")
    assert weight.nnz == 0
    assert weight.to_dense().shape == shape


def test_a_layer_without_zeros_stays_dense_with_a_warning() -> None:
    model = pruned_model()
    model.append(nn.Linear(8, 3))
    with pytest.warns(UserWarning, match=r"5 \(pattern nonzeros finds no zeros in it\)"):
        sparsify(model, "nonzeros")
    assert type(model[5]) is nn.Linear
    assert type(model[4]) is SparseLinear
    whole = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(PatternError, match="found no layer"):
        sparsify(whole, "nonzeros")
    assert type(whole[0]) is nn.Linear


def test_overrides_mix_it_with_other_patterns() -> None:
    model = pruned_model()
    sparsify(model, "75%", overrides={"0": "nonzeros"}, score="random", distribution="erk")
    assert model[0].weight.density == pytest.approx(0.05, abs=0.01)
    assert model[2].weight.density < 0.5


def dense() -> Tensor:
    return torch.eye(8)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: SparseLinear(8, 8, pattern="nonzeros"), "from_dense"),
        (lambda: random_mask((8, 8), "nonzeros"), "dense weight"),
        (lambda: mask_from_score(dense(), "nonzeros"), "dense weight"),
        (lambda: check_mask(dense() > 0, "nonzeros"), "dense weight"),
        (lambda: SparseWeight.from_dense(dense(), "nonzeros", mask=dense() > 0), "drop it"),
        (lambda: SparseWeight.from_dense(dense(), "nonzeros", score=dense()), "drop it"),
        (lambda: sparsify(pruned_model(), "nonzeros", score="random"), "drop score="),
        (lambda: sparsify(pruned_model(), "nonzeros", distribution="erk"), "each layer's own"),
        (lambda: SparseLinear.from_dense(nn.Linear(8, 6), "nonzeros:v4"), "multiple of 4"),
        (lambda: Static("nonzeros"), "sparsify"),
        (lambda: SET("nonzeros"), "sparsify"),
        (lambda: MaskedLinear.from_dense(nn.Linear(8, 8), "nonzeros"), "dense weight"),
        (lambda: Nonzeros().density, "density"),
        (lambda: Nonzeros().sparsity, "sparsity"),
        (lambda: Nonzeros().count(8, 8), "number of entries"),
    ],
)
def test_it_is_refused_where_there_are_no_zeros_to_take(
    call: Callable[[], Any], words: str
) -> None:
    with pytest.raises(PatternError, match=words):
        call()


def test_the_exchange_takes_the_text_for_its_own_entries() -> None:
    weight = SparseWeight.from_torch_sparse(dense().to_sparse(), "nonzeros")
    assert weight.nnz == 8
    with pytest.raises(gossamer.StructureError, match="rows 0 and 1 differ"):
        SparseWeight.from_torch_sparse(dense().to_sparse(), "nonzeros:v4")
