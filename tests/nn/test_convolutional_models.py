"""Convolutions in models: surgery, timing, checkpoints, compilation, recipes."""

import copy
import io
import itertools
import pickle
import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import SparseConv2d
from gossamer.errors import DTypeError, PatternError, ShapeError
from gossamer.nn import MaskedLinear
from gossamer.nn.layers.convolution import KINDS
from gossamer.nn.layers.filters import matrix_of
from gossamer.nn.layers.products import ImageProduct


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 16, 1)
        self.up = nn.ConvTranspose2d(16, 8, 2)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(self.depth(self.stem(x).relu())).relu()
        return self.head(self.norm(self.up(x)).mean((2, 3)))  # type: ignore[no-any-return]


def _sparse_net(pattern: str = "50%:v4", **options: Any) -> Net:
    model = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gossamer.sparsify(model, pattern, exclude=("head",), **options)
    return model


def test_surgery() -> None:
    model = Net()
    with pytest.warns(UserWarning, match="depth .depthwise convolutions") as told:
        gossamer.sparsify(model, "50%")
    assert "up (ConvTranspose2d" in str(told[0].message)
    assert type(model.stem) is type(model.point) is SparseConv2d
    assert type(model.depth) is nn.Conv2d
    x = torch.randn(2, 3, 6, 6)
    y = model(x)
    gossamer.densify(model)
    assert type(model.stem) is type(model.point) is nn.Conv2d
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)


def test_an_override_swaps_a_depthwise_convolution() -> None:
    model = _sparse_net(overrides={"depth": "50%"})
    assert type(model.depth) is SparseConv2d
    assert model.depth.groups == 8
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(model(x), gossamer.densify(copy.deepcopy(model))(x))


def test_filters_that_do_not_fit_are_named_and_nothing_changes() -> None:
    model = Net()
    with pytest.raises(PatternError, match=r"'stem' got 3 input channels[^\n]*\n.*exclude="):
        gossamer.sparsify(model, "2:4")
    assert type(model.point) is nn.Conv2d
    assert type(model.head) is nn.Linear


def test_scores_and_distributions() -> None:
    scores = {"point": torch.rand(16, 8, 1, 1), "stem": torch.rand(8, 3, 3, 3)}
    model = _sparse_net("50%", score=scores, include=("point", "stem"))
    best = matrix_of(scores["stem"]).flatten().topk(108).indices.sort().values
    assert torch.equal(model.stem.mask().flatten().nonzero().flatten(), best)  # type: ignore[operator]
    erk = _sparse_net("80%", distribution="erk")
    assert erk.stem.density > erk.point.density * 0.5  # type: ignore[operator]
    _sparse_net("50%", score="random")


def test_tied_convolutions_share_a_weight() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2))
    model[1].weight = model[0].weight
    gossamer.sparsify(model, "2:4")
    assert model[0].weight is model[1].weight
    assert model[0].stride == (1, 1)
    assert model[1].stride == (2, 2)
    gossamer.densify(model)
    assert model[0].weight is model[1].weight


def test_summary_counts_it() -> None:
    layers = {layer.name: layer for layer in gossamer.summary(_sparse_net()).layers}
    point = layers["point"]
    assert point.pattern == "50%:v4"
    assert point.density == 0.5
    assert point.values == 4 * (64 + 16)
    assert point.dense == 8 * (128 + 16)


def test_keep_dense_if_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    from gossamer.nn import timing_check
    from gossamer.timing import Timing

    quicker = "dense"

    def timed(calls: dict[str, Any], *_: Any) -> dict[str, Timing]:
        for call in calls.values():
            call()
        return {name: Timing.from_samples([1.0 + (name != quicker)]) for name in calls}

    monkeypatch.setattr(timing_check, "interleaved", timed)
    for kind, quicker in itertools.product(KINDS, ("sparse", "dense")):
        model = nn.Sequential(kind.dense(8, 8, 3, stride=2, padding=1, groups=2))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            gossamer.sparsify(model, "50%", keep_dense_if_slower=True)
        assert type(model[0]) is (kind if quicker == "sparse" else kind.dense)
        assert any("at batch 512: dense" in str(one.message) for one in told) == (
            quicker == "dense"
        )


def test_checkpoints(tmp_path: Any) -> None:
    model = _sparse_net()
    x = torch.randn(2, 3, 6, 6)
    y = model.eval()(x)
    gossamer.save(model, tmp_path / "model.safetensors")
    for fresh in (Net(), _sparse_net(), _sparse_net("90%")):
        loaded = gossamer.load(tmp_path / "model.safetensors", fresh).eval()
        assert torch.equal(loaded(x), y)
        assert type(loaded.point) is SparseConv2d
    from_state = gossamer.load(model.state_dict(), Net()).eval()
    assert torch.equal(from_state(x), y)
    other = Net()
    other.point = nn.Conv2d(8, 16, 1, stride=2)
    with pytest.raises(gossamer.CheckpointError, match="build the model that was saved"):
        gossamer.load(tmp_path / "model.safetensors", other)
    again = _sparse_net().eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), y)
    again = pickle.loads(pickle.dumps(model))  # noqa: S301
    assert torch.equal(again(x), y)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), y)


@pytest.mark.slow
def test_compile_and_export() -> None:
    model = _sparse_net().eval()
    x = torch.randn(2, 3, 6, 6)
    y = model(x)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), y)
    batch = {"x": {0: torch.export.Dim("images", min=2, max=64)}}
    exported = torch.export.export(model, (x,), dynamic_shapes=batch)
    torch.testing.assert_close(exported.module()(torch.cat([x, x])), torch.cat([y, y]))


@pytest.mark.parametrize("name", ["static", "set", "rigl", "gmp-sparse"])
def test_recipes_move_its_mask(name: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(),
        nn.Linear(8 * 16, 3),
    )  # fmt: skip
    recipe = gossamer.recipes.make(name, pattern="70%")
    model = recipe.prepare(model)
    assert type(model[0]) is type(model[2]) is SparseConv2d
    optimizer = torch.optim.AdamW(recipe.parameters(model), lr=1e-2)
    recipe.attach(model, optimizer, total_steps=30)
    before = [model[i].mask().clone() for i in (0, 2)]
    for _ in range(30):
        x = torch.randn(6, 4, 6, 6)
        loss = nn.functional.cross_entropy(model(x), x[:, :3, 0, 0].argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = [not torch.equal(model[i].mask(), m) for i, m in zip((0, 2), before, strict=True)]
    assert moved == [name != "static"] * 2
    recipe.finish(model)


def test_a_pruned_model_keeps_its_zeros() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, 2),
        nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 8, 1), nn.Flatten(),
        nn.Linear(8 * 9, 4),
    ).eval()  # fmt: skip
    shares = {0: 0.3, 3: 0.9, 4: 0.9, 5: 0.0, 7: 0.7}
    with torch.no_grad():
        for i, share in shares.items():
            model[i].weight.mul_(torch.rand_like(model[i].weight) >= share)  # type: ignore[operator, arg-type]
    before = [m.weight.detach().clone() for m in model if hasattr(m, "weight")]
    x = torch.randn(2, 3, 7, 7)
    y = model(x)
    with pytest.warns(UserWarning, match="left dense") as told:
        gossamer.sparsify(model, "nonzeros<=40%")
    report = str(told[0].message)
    assert re.search(r"0 \(pattern nonzeros<=40% finds 67.6 % of it kept\)", report)
    assert "5 (pattern nonzeros<=40% finds no zeros in it)" in report
    assert "4 (depthwise" in report
    assert [type(model[i]) for i in shares] == [
        nn.Conv2d, SparseConv2d, nn.Conv2d, nn.Conv2d, gossamer.SparseLinear
    ]  # fmt: skip
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)
    assert torch.equal(model[3].filters(), before[2])  # type: ignore[operator]
    assert model[3].nnz == before[2].count_nonzero()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(x).square().mean().backward()
    optimizer.step()
    assert torch.equal(model[3].filters() != 0, before[2] != 0)  # type: ignore[operator]


LAZY = (nn.LazyConv1d, nn.LazyConv2d, nn.LazyConv3d)


@pytest.mark.parametrize("kind", [*LAZY, nn.LazyLinear])
def test_a_layer_without_a_shape_is_named_and_nothing_changes(kind: Any) -> None:
    lazy = kind(8, 3) if kind in LAZY else kind(8)
    model = nn.Sequential(lazy, nn.Linear(8, 8))
    calls: tuple[Any, ...] = (
        lambda: gossamer.sparsify(model, "50%"),
        lambda: gossamer.recipes.make("srste", "2:4").prepare(model),
        lambda: gossamer.recipes.make("static", "50%").prepare(model),
        lambda: gossamer.summary(model),
    )
    for call in calls:
        with pytest.raises(ShapeError, match=r"'0'.*run the model once"):
            call()
    assert type(model[0]) is kind
    assert type(model[1]) is nn.Linear
    gossamer.sparsify(model, "2:4", exclude="0")
    assert type(model[1]) is gossamer.SparseLinear


@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
def test_transposed_convolutions_are_refused_or_left(kind: Any) -> None:
    layer = kind(8, 8, 3)
    for sparse in KINDS:
        with pytest.raises(DTypeError, match=f"got {kind.__name__}; it takes nn.Conv"):
            sparse.from_dense(layer, "50%")
    with pytest.raises(DTypeError, match=f"got {kind.__name__}"):
        MaskedLinear.from_dense(layer, "50%")
    model = nn.Sequential(layer, nn.Linear(64, 64))
    with pytest.warns(UserWarning, match=rf"0 \({kind.__name__}; only nn.Conv1d"):
        gossamer.sparsify(model, "50%", overrides={"0": "90%"})
    assert model[0] is layer
    with pytest.raises(PatternError, match="found no layer to make sparse"):
        gossamer.sparsify(kind(8, 8, 3), "50%")


@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_padding_larger_than_the_image(mode: Any) -> None:
    for layer in (
        SparseConv2d(8, 8, 3, padding=(1, 5), padding_mode=mode, pattern="50%"),
        MaskedLinear.from_dense(nn.Conv2d(8, 8, 3, padding=(1, 5), padding_mode=mode), "50%"),
    ):
        with pytest.raises(ShapeError, match=f"too small for padding.*{mode}"):
            layer(torch.randn(1, 8, 9, 4))
        fits = 6 if mode == "reflect" else 5
        assert layer(torch.randn(1, 8, 9, fits)).shape == (1, 8, 9, fits + 8)
        with pytest.raises(ShapeError, match="too small"):
            layer(torch.randn(1, 8, 9, fits - 1))


def test_lazy_and_odd_weights_are_refused() -> None:
    for make in (SparseConv2d.from_dense, MaskedLinear.from_dense):
        with pytest.raises((ShapeError, DTypeError), match=r"no shape yet|got LazyConv2d"):
            make(nn.LazyConv2d(8, 3), "50%")  # type: ignore[operator]
    product = ImageProduct.of(nn.Conv2d(8, 8, 3, groups=2))
    for shape in ((8, 70), (7, 36)):
        with pytest.raises(ShapeError, match="9 taps and 2 groups"):
            MaskedLinear(nn.Parameter(torch.randn(shape)), None, "50%", product=product)
