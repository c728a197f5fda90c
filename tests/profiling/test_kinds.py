"""What `gossamer.profile` times besides linear layers, and what it says that it does not time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer.nested import tensors
from gossamer.nn import MaskedLayer
from gossamer.profiling.calls import record, untouched
from gossamer.profiling.kinds import Kind, copied


class Experts(nn.Module):
    """A stack of matrices, as transformers stores experts."""

    def __init__(self) -> None:
        super().__init__()
        self.is_transposed = False
        self.up_proj = nn.Parameter(torch.randn(2, 16, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([nn.functional.linear(x, self.up_proj[i]) for i in range(2)])


class Bare(nn.Module):
    """A matrix [in, out] that a module multiplies by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 16))

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return scale * (x @ self.w)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], dict[str, Any], int]] = {
    "Conv1d": (lambda: nn.Conv1d(8, 16, 3, stride=2), (torch.randn(2, 8, 9),), {}, 8),
    "Conv2d": (lambda: nn.Conv2d(8, 16, 3, 1, 1, groups=2), (torch.randn(8, 5, 5),), {}, 25),
    "Conv3d": (lambda: nn.Conv3d(8, 16, 1, bias=False), (torch.randn(2, 8, 2, 3, 2),), {}, 24),
    "LSTM": (lambda: nn.LSTM(8, 16), (torch.randn(3, 2, 8, requires_grad=True),), {}, 6),
    "GRUCell": (lambda: nn.GRUCell(8, 16), (torch.randn(3, 8), torch.randn(3, 16)), {}, 3),
    "Bilinear": (lambda: nn.Bilinear(8, 8, 16), (torch.randn(3, 8), torch.randn(3, 8)), {}, 3),
    "Experts": (Experts, (torch.randn(3, 8),), {}, 3),
    "Bare": (Bare, (torch.randn(3, 8),), {}, 3),
    "Bare by keyword": (Bare, (torch.randn(3, 8),), {"scale": 2.0}, 3),
}


def kinds_of(model: nn.Module, *args: Any, **kwargs: Any) -> dict[Kind, list[str]]:
    with untouched(model):
        return record(model, lambda: model(*args, **kwargs))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_what_is_timed_is_what_was_called(name: str, sparse: bool) -> None:
    make, args, kwargs, rows = CASES[name]
    model = nn.ModuleDict({"of": make()})
    if sparse:
        bare = {"parameters": ["of.w"]} if name.startswith("Bare") else {}
        gossamer.sparsify(model, "2:4", **bare)  # type: ignore[arg-type]
    ((kind, names),) = kinds_of_child(model, args, kwargs).items()
    assert (kind.what, kind.rows, names) == (name.partition(" ")[0], rows, ["of"])
    assert kind.pattern == (gossamer.NM(2, 4) if sparse else None)
    wanted = next(tensors(model["of"](*args, **kwargs))).shape
    weights = sum(p.numel() for p in make().parameters() if p.dim() > 1)
    for pattern in (None, gossamer.NM(1, 4)):
        layer, (new_args, new_kwargs) = kind.make(pattern)
        assert next(tensors(layer(*new_args, **new_kwargs))).shape == wanted
        assert [x.requires_grad for x in new_args] == [x.requires_grad for x in args]
        kept = [m.weight for m in layer.modules() if isinstance(m, MaskedLayer)]
        assert sum(weight.nnz for weight in kept) == (0 if pattern is None else weights // 4)


def kinds_of_child(
    model: nn.ModuleDict, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[Kind, list[str]]:
    with untouched(model):
        return record(model, lambda: model["of"](*args, **kwargs))


def test_attention_is_one_row_of_the_table() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            self.head = nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.attention(x, x, x, need_weights=False)[0]
            return self.head(y)

    for model in (Model(), gossamer.sparsify(Model(), "2:4")):
        found = gossamer.profile(model, torch.randn(2, 3, 16), "90%", rounds=1)
        kinds = {layer.names: (layer.kind, layer.calls, layer.rows) for layer in found.layers}
        assert kinds == {("attention",): ("MultiheadAttention", 1, 6), ("head",): ("Linear", 1, 6)}
        assert all(set(layer.seconds) >= {"dense", "90%"} for layer in found.layers)
        gossamer.sparsify(Model(), "50%", exclude=["attention"])  # the names fit
    assert "MultiheadAttention" in str(found)


def test_a_tensor_that_comes_twice_is_copied_once() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 2), torch.randn(1, 2)])
    (a, b), same, text = copied(((x, x), packed, "text"))
    assert a is b
    assert a is not x
    assert a.requires_grad
    assert torch.equal(same.data, packed.data)
    assert type(same) is type(packed)
    assert text == "text"


def test_a_convolution_under_a_mask_is_one() -> None:
    model = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2))
    gossamer.recipes.SRSTE("2:4").prepare(model)
    ((kind, names),) = kinds_of(model, torch.randn(2, 8, 5, 5)).items()
    assert (kind.what, kind.rows, names) == ("Conv2d", 8, ["0"])
    layer, (args, _) = kind.make(kind.pattern)
    assert isinstance(layer, gossamer.nn.SparseConv2d)
    assert layer(*args).shape == (2, 16, 2, 2)


def test_a_convolution_is_timed_in_the_order_of_its_images() -> None:
    x = torch.randn(2, 8, 5, 5)
    layer = nn.Conv2d(8, 16, 3)
    (plain,) = kinds_of(layer, x)
    (last,) = kinds_of(layer, x.to(memory_format=torch.channels_last))
    assert plain != last
    assert last.make(None)[1][0][0].stride() == x.to(memory_format=torch.channels_last).stride()


def test_what_is_not_timed_is_told_in_a_line_per_kind() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(4, 8, 1)
            self.deep = nn.Conv2d(8, 8, 3, groups=8, padding=1)
            self.up = nn.ConvTranspose2d(8, 4, 1)
            self.idle = nn.Conv2d(4, 4, 1)
            self.mix = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.up(self.deep(self.first(x)))
            return torch.einsum("bihw,ij->bjhw", y, self.mix)

    found = gossamer.profile(Model(), torch.randn(2, 4, 3, 3), "50%", rounds=1)
    assert [layer.names for layer in found.layers] == [("first",), ("deep",)]
    assert "depthwise" in found.layers[1].refused["50%"]
    assert [line.split(" ")[0] for line in found.untimed] == ["mix", "up", "idle"]
    assert str(found).count("\nnot timed: ") == 3
    assert "deep" in found.keep_dense("50%")


def test_a_parameter_that_another_module_shares_is_not_timed() -> None:
    model = nn.Sequential(nn.Embedding(16, 8), nn.RNN(8, 16))
    model[1].weight_ih_l0 = model[0].weight
    found = gossamer.profile(model, torch.randint(16, (3, 2)), "50%", rounds=1)
    assert [layer.kind for layer in found.layers] == ["RNN"]  # its other matrix is its own


def test_a_use_without_a_sparse_form_is_told() -> None:
    class Norm(Bare):
        def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
            return x @ (self.w / self.w.norm())

    found = gossamer.profile(nn.Sequential(Norm()), torch.randn(3, 8), "50%", rounds=1)
    assert "norm" in found.layers[0].refused["50%"]
    assert set(found.layers[0].seconds) == {"dense"}
