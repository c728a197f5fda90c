"""Rows grouped before panels: the order, the layer that gathers its outputs, and the fold."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer.errors import GossamerError, PatternError, ShapeError, StructureError
from gossamer.masks import check_mask, group_rows, magnitude_mask
from gossamer.nn import PermutedLinear
from gossamer.pruning import group_hidden
from support import oracle, stranger
from support.recipe_course import bits

assert stranger.Tiled  # registered by its import
PATTERNS = ["2:4:v8", "1:4:v16", "75%:v4", "block 8x4 75%", "50%:v32"]
pytestmark = pytest.mark.usefixtures("one_thread")


def clustered(rows: int, cols: int, kinds: int = 4, seed: int = 0) -> Tensor:
    """Rows of a few kinds, which want different columns, in mixed order."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.randn(kinds, cols, generator=generator).exp()
    kind = torch.randint(kinds, (rows,), generator=generator)
    return torch.randn(rows, cols, generator=generator) * scale[kind]


def share(weight: Tensor, pattern: str) -> float:
    size = weight.detach().abs()
    return float((size * magnitude_mask(weight, pattern)).sum() / size.sum())


def linear(rows: int = 64, cols: int = 32, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(cols, rows, bias)
    with torch.no_grad():
        layer.weight.copy_(clustered(rows, cols))
    return layer


# ---- the order ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [*PATTERNS, "tiled 8"])
def test_an_order_keeps_more_and_is_a_permutation(pattern: str) -> None:
    weight = clustered(64, 32)
    order = group_rows(weight.abs(), pattern)
    assert torch.equal(order.sort().values, torch.arange(64))
    assert share(weight[order], pattern) > share(weight, pattern) + 0.02
    high = gossamer.parse_pattern(pattern).tile[0]
    panels = order.view(-1, high)
    assert torch.equal(panels.sort(1).values, panels)
    assert torch.equal(panels[:, 0].sort().values, panels[:, 0])
    # Rows that are grouped already keep their order.
    assert share(weight[order][group_rows(weight[order].abs(), pattern)], pattern) >= share(
        weight[order], pattern
    )


def test_exchanges_keep_more_with_every_round() -> None:
    weight = torch.randn(128, 64, generator=torch.Generator().manual_seed(0))
    kept = [share(weight[group_rows(weight.abs(), "2:4:v8", r)], "2:4:v8") for r in (1, 4, 100)]
    assert share(weight, "2:4:v8") < kept[0] < kept[1] < kept[2]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_two_kinds_are_told_apart(pattern: str) -> None:
    tile = gossamer.parse_pattern(pattern).tile
    score = torch.zeros(2 * tile[0], 16)
    first = torch.arange(16) // tile[1] % 4 < 2
    score[::2, first], score[1::2, ~first] = 1.0, 1.0
    order = group_rows(score, pattern)
    assert order.tolist() == [*range(0, len(score), 2), *range(1, len(score), 2)]


def test_the_order_is_that_of_any_number_of_threads_and_scale() -> None:
    weight = clustered(96, 48).abs()
    expected = group_rows(weight, "2:4:v8")
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            assert torch.equal(group_rows(weight, "2:4:v8"), expected)
        finally:
            torch.set_num_threads(before)
    assert torch.equal(group_rows(weight * 2**20, "2:4:v8"), expected)
    with torch.autocast("cpu"):
        assert torch.equal(group_rows(weight, "2:4:v8"), expected)


@pytest.mark.parametrize(
    "score",
    [
        torch.zeros(16, 8),
        torch.full((16, 8), torch.nan),
        torch.randn(16, 8) * 1e38,
        torch.randn(16, 8).double() * 1e-300,
        -torch.rand(16, 8),
        torch.randn(16, 8).half(),
        torch.randn(16, 8).bfloat16(),
        torch.tensor([0.0, torch.inf, -torch.inf, torch.nan]).repeat(16, 2),
    ],
)
def test_any_numbers_have_an_order(score: Tensor) -> None:
    order = group_rows(score, "2:4:v4")
    assert torch.equal(order.sort().values, torch.arange(16))


def test_nothing_to_group_is_the_order_as_it_is() -> None:
    for shape, pattern in (((7, 8), "2:4"), ((8, 8), "2:4:v8"), ((8, 0), "50%:v4")):
        assert torch.equal(group_rows(torch.rand(shape), pattern), torch.arange(shape[0]))
    for call, error in (
        (lambda: group_rows(torch.rand(10, 8), "2:4:v4"), PatternError),
        (lambda: group_rows(torch.rand(8, 8), "nonzeros:v4"), PatternError),
        (lambda: group_rows(torch.rand(8), "2:4:v4"), ShapeError),
        (lambda: group_rows(torch.rand(8, 8), "2:4:v4", rounds=0), GossamerError),
    ):
        with pytest.raises(error):
            call()


# ---- the layer that gathers --------------------------------------------------------------------


@pytest.mark.parametrize(("pattern", "bias"), list(itertools.product(PATTERNS, (True, False))))
def test_the_layer_is_the_dense_formula(pattern: str, bias: bool) -> None:
    dense = linear(bias=bias)
    layer = PermutedLinear.from_dense(dense, pattern)
    kept = layer.mask()
    check_mask(kept[layer.row_order], pattern)
    assert share(dense.weight[layer.row_order], pattern) == pytest.approx(
        float((dense.weight.detach().abs() * kept).sum() / dense.weight.detach().abs().sum()),
        rel=1e-5,
    )
    back = layer.to_dense()
    assert torch.equal(back.weight, dense.weight * kept)
    x = torch.randn(2, 3, 32, requires_grad=True)
    g = torch.randn(2, 3, 64)
    y = layer(x)
    parameters = [layer.weight.values] + ([layer.bias] if bias else [])
    grads = torch.autograd.grad(y, [x, *parameters], g)
    w, b = back.weight.detach(), None if back.bias is None else back.bias.detach()
    at = x.detach()
    oracle.assert_close(
        y.detach(), oracle.spmm(at, w, b),
        oracle.spmm(at.abs(), w.abs(), None if b is None else b.abs()),
    )  # fmt: skip
    oracle.assert_close(grads[0], oracle.spmm_t(g, w), oracle.spmm_t(g.abs(), w.abs()))
    grad_dense = g.reshape(-1, 64).t() @ at.reshape(-1, 32)
    expected = gossamer.backend.gather(
        grad_dense[layer.row_order].contiguous(), layer.weight.structure
    )
    torch.testing.assert_close(grads[1], expected)
    if bias:
        torch.testing.assert_close(grads[2], g.sum((0, 1)))
    slab = layer.dense_gradient(at, g, 8, 24)
    torch.testing.assert_close(slab, grad_dense[layer.row_order[8:24]])


def model(pattern: str = "2:4:v8", group: Any = True) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(linear(), nn.GELU(), linear(32, 64)).double()
    return gossamer.sparsify(layers, pattern, group_rows=group)  # type: ignore[return-value]


def test_sparsify_groups_the_layers_that_are_named() -> None:
    assert [type(model()[i]) for i in (0, 2)] == [PermutedLinear] * 2
    assert [type(model(group="2")[i]) for i in (0, 2)] == [gossamer.SparseLinear, PermutedLinear]
    assert type(model("2:4")[0]) is gossamer.SparseLinear  # nothing to group
    dense = linear(32, 32)
    tied = nn.Sequential(dense, nn.Linear(32, 32))
    tied[1].weight = tied[0].weight
    both = gossamer.sparsify(tied, "2:4:v8", group_rows=True)
    assert both[0].weight is both[1].weight
    assert torch.equal(both[0].row_order, both[1].row_order)
    attention = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    attention = gossamer.sparsify(attention, "2:4:v8", group_rows=True)
    assert not any(isinstance(m, PermutedLinear) for m in attention.modules())
    conv = gossamer.sparsify(nn.Sequential(nn.Conv2d(8, 16, 3)), "2:4:v8", group_rows=True)
    assert type(conv[0]) is gossamer.SparseConv2d


def test_saved_loaded_copied_and_densified(tmp_path: Path) -> None:
    mine, x = model(), torch.randn(5, 32).double()
    y = mine(x)
    gossamer.save(mine, tmp_path)
    dense = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)).double()
    loaded = gossamer.load(tmp_path, dense)
    assert torch.equal(loaded(x), y)
    again = model()
    again[0] = PermutedLinear(32, 64, pattern="2:4:v8").double()  # whose order is 0, 1, 2, …
    again.load_state_dict(mine.state_dict())
    assert torch.equal(again(x), y)
    assert torch.equal(copy.deepcopy(mine)(x), y)
    assert torch.equal(mine[0].to_inference()(x), mine[0](x))
    torch.testing.assert_close(gossamer.densify(again)(x), y)


@pytest.mark.parametrize(
    "order",
    [
        torch.zeros(64, dtype=torch.int64),
        torch.arange(64) + 1,
        torch.arange(63),
        torch.arange(64).int(),
        torch.arange(64).float(),
    ],
)
def test_a_damaged_order_is_refused(order: Tensor) -> None:
    mine = model()
    state = mine.state_dict() | {"0.row_order": order}
    before = bits(mine.state_dict())
    with pytest.raises(StructureError, match="no permutation of 64 rows"):
        mine.load_state_dict(state)
    assert bits(mine.state_dict()) == before
    with pytest.raises(StructureError, match="permutation"):
        PermutedLinear.of_parts(mine[0].weight, None, order)


def test_a_training_resumes_bit_for_bit() -> None:
    def course(steps: int, state: Any = None) -> dict[str, Any]:
        mine = model()
        optimizer = torch.optim.AdamW(mine.parameters(), lr=1e-2)
        first = 0
        if state is not None:
            mine.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            first = state["step"]
        for step in range(first, steps):
            x = torch.randn(8, 32, generator=torch.Generator().manual_seed(step)).double()
            optimizer.zero_grad()
            (mine(x) - x).square().mean().backward()
            optimizer.step()
        return {"model": mine.state_dict(), "optimizer": optimizer.state_dict(), "step": steps}

    half = copy.deepcopy(course(4))
    assert bits(course(8, half)) == bits(course(8))


def test_layers_of_sizes_and_lost_memory() -> None:
    layer = PermutedLinear(32, 64, pattern="2:4:v8")
    assert layer.row_order.tolist() == list(range(64))
    assert layer.structure_nbytes > layer.weight.structure_nbytes
    layer = PermutedLinear(32, 64, pattern="2:4:v8", device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    assert layer(torch.randn(2, 32)).isfinite().all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own imports
def test_compiled_and_exported() -> None:
    mine, x = model(), torch.randn(4, 32).double()
    expected = mine(x)
    torch.testing.assert_close(torch.compile(mine, fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.export.export(mine, (x,)).module()(x), expected)


# ---- the fold ----------------------------------------------------------------------------------


class Gated(nn.Module):
    """A gated network, as in Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = linear(), linear(), linear(32, 64)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Leaky(nn.Module):
    """Networks whose hidden neurons something else sees."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.b, self.c = linear(), linear(32, 64), linear(32, 64)
        self.norm = nn.LayerNorm(64)
        self.scale = nn.Parameter(torch.ones(64))

    def forward(self, x: Tensor) -> Any:
        h = self.a(x).relu()
        if self.how == "output":
            return self.b(h), h
        if self.how == "two readers":
            return self.b(h) + self.c(h)
        if self.how == "norm":
            return self.b(self.norm(h))
        if self.how == "scale":
            return self.b(h * self.scale)
        if self.how == "softmax":
            return self.b(h.softmax(-1))
        if self.how == "called twice":
            return self.b(h) + self.b(self.a(x + 1).relu())
        if self.how == "slice":
            return self.b(h) + h[..., :32]
        if self.how == "in place":
            h.add_(1.0)
            return self.b(h)
        if self.how == "weight":
            return self.b(h) + self.a.weight.sum()
        return self.b(h) if h.sum() > 0 else self.b(h) + 1  # "values"


LEAKS = ["output", "two readers", "norm", "scale", "softmax", "called twice", "slice", "in place"]
LEAKS += ["weight", "values"]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_fold_changes_no_function_and_keeps_more(dropout: float) -> None:
    torch.manual_seed(0)
    act = nn.Sequential(nn.GELU(), nn.Dropout(dropout))
    dense = nn.Sequential(linear(), act, linear(32, 64), Gated()).eval().double()
    x = torch.randn(5, 32).double()
    y = dense(x)
    before, weights = share(dense[0].weight, "2:4:v8"), [dense[0].weight, dense[3].up.weight]
    orders = group_hidden(dense, "2:4:v8", x)
    assert sorted(orders) == ["2", "3.down"]
    torch.testing.assert_close(dense(x), y)
    assert share(dense[0].weight, "2:4:v8") > before + 0.02
    assert weights[0] is dense[0].weight
    assert weights[1] is dense[3].up.weight
    folded = gossamer.sparsify(dense, "2:4:v8")
    assert type(folded[0]) is gossamer.SparseLinear  # nothing is gathered


@pytest.mark.parametrize("how", LEAKS)
def test_neurons_that_something_else_sees_stay(how: str) -> None:
    dense = Leaky(how)
    before = bits(dense.state_dict())
    assert group_hidden(dense, "2:4:v8", torch.randn(3, 32)) == {}
    assert bits(dense.state_dict()) == before


def test_hooks_and_shared_weights_stay() -> None:
    hooked = nn.Sequential(linear(), nn.ReLU(), linear(32, 64))
    hooked[0].register_forward_hook(lambda module, args, output: None)
    assert group_hidden(hooked, "2:4:v8", torch.randn(3, 32)) == {}
    shared = nn.Sequential(linear(), nn.ReLU(), linear(32, 64), linear())
    shared[3].weight = shared[0].weight
    assert group_hidden(shared, "2:4:v8", torch.randn(3, 32)) == {}


def test_named_pairs_are_grouped_and_checked() -> None:
    dense, x = Gated().eval().double(), torch.randn(3, 32).double()
    y = dense(x)
    assert list(group_hidden(dense, "2:4:v8", pairs={"down": ["gate", "up"]})) == ["down"]
    torch.testing.assert_close(dense(x), y)
    before = bits(dense.state_dict())
    for given, words in (
        ({"pairs": {"down": "gone"}}, "no layer 'gone'"),
        ({"pairs": {"down": []}}, "in front"),
        ({"pairs": {"down": "down"}}, "in front"),
        ({"pairs": {"up": "gate"}}, "must have 32 outputs"),
        ({}, "either example="),
        ({"pairs": {"down": "up"}, "example": x}, "either example="),
    ):
        with pytest.raises(PatternError, match=words):
            group_hidden(dense, "2:4:v8", **given)
    for pattern, words in (("2:4", "share no columns"), ("2:4:v128", "multiple of 128")):
        with pytest.raises(PatternError, match=words):
            group_hidden(dense, pattern, pairs={"down": "up"})
    assert bits(dense.state_dict()) == before
