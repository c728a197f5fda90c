"""SPP: the published formula in dense torch, exact merges, states, files, compilation, refusals."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer.errors import GossamerError, PatternError, ShapeError
from gossamer.nn import PermutedLinear, SparseLinear, SPPLinear, merge_spp, with_spp

pytestmark = pytest.mark.usefixtures("one_thread")
PATTERNS = ["2:4", "2:4:v4", "75%", "block 4x4 50%"]
X = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def layer(pattern: str = "2:4", rank: int = 4, out: int = 32, **given: Any) -> SPPLinear:
    """A layer whose b is not 0."""
    torch.manual_seed(0)
    made = SPPLinear(16, out, pattern=pattern, rank=rank, dtype=torch.float64, **given)
    nn.init.normal_(made.row_scale)
    return made


def published(own: SPPLinear, x: Tensor) -> Tensor:
    """W x + s b * concat over chunks of W[chunk] (x * A[chunk]), as the authors compute it."""
    weight = own.weight.to_dense().detach()
    parts = zip(weight.chunk(len(own.column_scale)), own.column_scale, strict=True)
    added = torch.cat([(x * a) @ part.t() for part, a in parts], -1)
    return x @ weight.t() + own.bias + own.scale * own.row_scale * added


@pytest.mark.parametrize("pattern", PATTERNS)
def test_output_and_gradients_are_the_published_ones(pattern: str) -> None:
    own = layer(pattern)
    x = X.clone().requires_grad_()
    wanted = [x, own.column_scale, own.row_scale]
    y, expected = own(x), published(own, x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(x @ own.used_weight().t() + own.bias, expected)
    for a, b in zip(
        torch.autograd.grad(y.square().sum(), wanted),
        torch.autograd.grad(expected.square().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    assert not own.weight.values.requires_grad
    assert own.bias is not None
    assert not own.bias.requires_grad


def test_gradients_are_those_of_differences() -> None:
    own = layer("75%", rank=3, out=8)
    x = X[0, :2].clone().requires_grad_()

    def run(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        state = {"column_scale": a, "row_scale": b}
        return torch.func.functional_call(own, state, (x,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, (x, own.column_scale, own.row_scale))


@pytest.mark.parametrize(("rank", "out"), [(3, 32), (5, 7), (7, 7), (1, 9)])
def test_a_rank_need_not_divide_the_rows(rank: int, out: int) -> None:
    own = layer("2:4", rank, out)
    chunk = torch.arange(out) * rank // out
    sizes = chunk.bincount()
    assert len(sizes) == rank
    assert int(sizes.max() - sizes.min()) <= 1
    factor = 1 + own.scale * own.column_scale[chunk] * own.row_scale[:, None]
    torch.testing.assert_close(own.used_weight(), own.weight.to_dense() * factor)


@pytest.mark.parametrize("backward", ["exact", "double_pruned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_merge_computes_the_same_on_the_same_mask(backward: Any, dtype: torch.dtype) -> None:
    own = layer(backward=backward).to(dtype)
    model = nn.Sequential(own, nn.ReLU(), nn.Linear(32, 4, dtype=dtype))
    mask, y, x = own.mask(), model(X.to(dtype)), X.to(dtype)
    indices = own.weight.indices.clone()
    assert merge_spp(model) is model
    merged: Any = model[0]
    assert type(merged) is SparseLinear
    assert merged.weight.backward == backward
    assert torch.equal(model(x), y)
    assert torch.equal(merged.weight.indices, indices)
    assert torch.equal(merged.mask(), mask)
    fresh = gossamer.SparseWeight.from_dense(
        merged.weight.to_dense(), "2:4", mask=mask, backward=backward
    )
    for name in ("t_indices", "t_perm"):  # of the merged values
        assert torch.equal(getattr(merged.weight, name), getattr(fresh, name))


def test_a_new_layer_computes_what_the_sparse_one_does_to_the_bit() -> None:
    model = gossamer.sparsify(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)), "2:4")
    x = X.float()
    before, grown = model(x), copy.deepcopy(model)
    assert with_spp(grown, rank=4) is grown
    assert torch.equal(grown(x), before)
    assert {name for name, p in grown.named_parameters() if p.requires_grad} == {
        "0.column_scale", "0.row_scale", "2.column_scale", "2.row_scale"
    }  # fmt: skip
    bound = 1 / 16**0.5
    own: Any = grown[0]
    assert bool((own.column_scale.abs() <= bound).all())
    assert float(own.column_scale.detach().abs().max()) > 0.8 * bound


def test_the_adapters_learn_and_the_values_stay() -> None:
    torch.manual_seed(0)
    model = with_spp(gossamer.sparsify(nn.Sequential(nn.Linear(16, 16)), "75%"), rank=4)
    own: Any = model[0]
    target = 1.5 * model(X.float()).detach()
    values = own.weight.values.clone()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(200):
        loss = (model(X.float()) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert torch.equal(own.weight.values, values)


def test_less_than_two_percent_train_at_width_2048() -> None:
    own = SPPLinear(2048, 2048, pattern="2:4", bias=False)
    trained = sum(p.numel() for p in own.parameters() if p.requires_grad)
    assert trained == 17 * 2048
    assert trained < 0.02 * own.nnz


def test_states_copies_and_files(tmp_path: Path) -> None:
    own = layer("75%", scale=3.0)
    other = layer("75%", scale=3.0)
    nn.init.zeros_(other.row_scale)
    other.load_state_dict(own.state_dict())
    for twin in (other, copy.deepcopy(own)):
        assert torch.equal(twin(X), own(X))
    gossamer.save(nn.Sequential(own), tmp_path)
    empty = nn.Sequential(nn.Linear(16, 32, dtype=torch.float64))
    before = torch.get_rng_state()
    loaded: Any = gossamer.load(tmp_path, empty)
    assert torch.equal(torch.get_rng_state(), before)
    assert type(loaded[0]) is SPPLinear
    assert loaded[0].scale == 3.0
    assert torch.equal(loaded[0](X), own(X))
    assert not loaded[0].weight.values.requires_grad
    assert loaded[0].row_scale.requires_grad


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own imports
def test_it_compiles_to_one_graph() -> None:
    own = layer("2:4")
    compiled = torch.compile(own, fullgraph=True, backend="aot_eager")
    wanted = [own.column_scale, own.row_scale]
    y, expected = compiled(X), own(X)
    torch.testing.assert_close(y, expected)
    for a, b in zip(
        torch.autograd.grad(y.square().sum(), wanted),
        torch.autograd.grad(expected.square().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_masks_that_move_take_the_scales_along() -> None:
    own = layer("2:4")
    mask = own.mask().roll(1, 0)
    own.weight.set_mask(mask)
    chunk = torch.arange(32) * 4 // 32
    factor = 1 + own.scale * own.column_scale[chunk] * own.row_scale[:, None]
    torch.testing.assert_close(own.used_weight(), own.weight.to_dense() * factor)


def test_other_forms_of_the_layer() -> None:
    own = layer("2:4", backward="double_pruned")
    plain = own.to_inference()
    assert type(plain) is SparseLinear
    assert plain.weight.backward == "exact"
    assert torch.equal(plain(X), own(X))
    torch.testing.assert_close(gossamer.densify(nn.Sequential(own))(X), plain(X))
    half = layer("2:4").bfloat16()
    torch.testing.assert_close(half(X.bfloat16()).double(), layer("2:4")(X), rtol=0.1, atol=0.1)


def test_values_in_the_place_of_the_weights_own() -> None:
    weight = gossamer.SparseWeight.from_dense(torch.randn(4, 8), "2:4")
    x, values = torch.randn(3, 8), torch.randn(weight.nnz)
    twice = gossamer.spmm(x, weight, values=2 * weight.values)
    torch.testing.assert_close(twice, 2 * gossamer.spmm(x, weight))
    with pytest.raises(ShapeError, match=r"values has shape \(3,\).*needs \[16\]"):
        gossamer.spmm(x, weight, values=values[:3])
    with pytest.raises(GossamerError, match="values is"):
        gossamer.spmm(x, weight, values=values.tolist())  # type: ignore[arg-type]


def tied() -> nn.Module:
    first = SparseLinear(8, 8, pattern="2:4")
    return nn.Sequential(first, SparseLinear.of_parts(first.weight))


@pytest.mark.parametrize(
    ("model", "given", "words"),
    [
        (lambda: nn.Linear(8, 8), {}, "found no SparseLinear"),
        (lambda: PermutedLinear(8, 8, pattern="2:4"), {}, "found no SparseLinear"),
        (lambda: SparseLinear(8, 8, pattern="2:4"), {"rank": 9}, "rank=9 for a layer of 8 outputs"),
        (lambda: SparseLinear(8, 8, pattern="2:4"), {"rank": 0}, "rank=0"),
        (lambda: SparseLinear(8, 8, pattern="2:4"), {"scale": 0.0}, "scale=0.0"),
        (lambda: SparseLinear(8, 8, pattern="2:4"), {"include": ["x"]}, "matches no module"),
        (tied, {"rank": 2}, "'0' and '1', which share a weight"),
        (tied, {"rank": 2, "exclude": "1"}, "share a weight"),
    ],
)
def test_refusals_change_nothing(model: Any, given: dict[str, Any], words: str) -> None:
    made = model()
    before = {name: (id(p), p.requires_grad) for name, p in made.named_parameters()}
    with pytest.raises(GossamerError, match=words):
        with_spp(made, **given)
    assert {name: (id(p), p.requires_grad) for name, p in made.named_parameters()} == before


def test_nothing_to_merge_is_refused() -> None:
    with pytest.raises(PatternError, match="no SPPLinear"):
        merge_spp(nn.Linear(2, 2))
