"""Optimizers with 8-bit state: a mask that moves takes the state along, or is refused."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import DTypeError, SparseLinear
from gossamer.nn import MaskedLinear
from gossamer.recipes import DSL, GMP, IMP, SET, Recipe, RigL
from gossamer.recipes.base.fixed import apply_mask, zero_outside
from gossamer.weight.quantized_state import BlockState, quantized_state

QMAP = torch.cat([-torch.linspace(1, 1 / 128, 128), torch.linspace(0, 1, 128)]).sort().values


class Codes(torch.Tensor):
    """State in a class of its own, as torchao's: read by `dequantize`, of a fixed size."""

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor, qmap: Tensor) -> "Codes":
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: Tensor, scale: Tensor, qmap: Tensor) -> None:
        self.codes, self.scale, self.qmap = codes, scale, qmap

    def __tensor_flatten__(self) -> tuple[list[str], list[Any]]:
        return ["codes", "scale", "qmap"], []

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"{func} of {cls.__name__}")


def quantised(numbers: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Plain loops over blocks and codes."""
    codes, scales = [], []
    for part in numbers.flatten().split(block):
        scale = part.abs().max()
        scales.append(scale)
        shares = part / scale.clamp(min=1e-30)
        codes += [int((QMAP - share).abs().argmin()) for share in shares]
    return torch.tensor(codes, dtype=torch.uint8).view(numbers.shape), torch.stack(scales)


def state_of(kind: str, numbers: Tensor, block: int = 4) -> dict[str, Any]:
    codes, scale = quantised(numbers, block)
    if kind == "class":
        return {"exp_avg": Codes(codes, scale, QMAP.clone())}
    return {"state1": codes, "absmax1": scale, "qmap1": QMAP.clone()}


def read(state: dict[str, Any], parameter: Tensor) -> Tensor:
    ((_, block),) = quantized_state(state, parameter).items()
    return block.read()


def layer_and_state(
    kind: str, pattern: str = "2:4"
) -> tuple[SparseLinear, torch.optim.SGD, Tensor]:
    torch.manual_seed(0)
    layer = SparseLinear(16, 8, pattern=pattern)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    numbers = torch.randn(layer.nnz)
    optimizer.state[layer.weight.values] = {"step": 3, **state_of(kind, numbers)}
    return layer, optimizer, read(optimizer.state[layer.weight.values], layer.weight.values)


@pytest.mark.parametrize("shape", [(16,), (10,), (3, 6), (1,)])
def test_reading_and_writing_are_those_of_plain_loops(shape: tuple[int, ...]) -> None:
    numbers = torch.randn(shape)
    numbers.view(-1)[:4] = 0.0  # a block of zeros
    codes, scale = quantised(numbers, 4)
    block = BlockState(codes, scale, QMAP, ("x",))
    assert block.block == (4 if numbers.numel() > 4 else block.block)
    found = block.read()
    steps = scale.repeat_interleave(4)[: numbers.numel()].view(shape) / 128
    assert ((found - numbers).abs() <= steps).all()
    block = BlockState(torch.zeros_like(codes), torch.zeros_like(scale), QMAP, ("x",))
    block.write(numbers)
    assert torch.equal(block.codes, codes)
    assert torch.equal(block.scale, scale)


@pytest.mark.parametrize("kind", ["class", "entries"])
def test_the_state_follows_by_coordinate(kind: str) -> None:
    layer, optimizer, before = layer_and_state(kind)
    dense = gossamer.backend.scatter(before, layer.structure)
    old = layer.mask()
    layer.weight.set_mask(gossamer.masks.random_mask((8, 16), "2:4", seed=4), optimizer)
    values = layer.weight.values
    assert not torch.equal(old, layer.mask())
    found = gossamer.backend.scatter(read(optimizer.state[values], values), layer.structure)
    both = old & layer.mask()
    ((_, block),) = quantized_state(optimizer.state[values], values).items()
    assert (found[both] - dense[both]).abs().max() <= block.scale.max() / 128
    assert not found[layer.mask() & ~old].any()
    assert optimizer.state[values]["step"] == 3


def test_a_move_to_the_same_mask_changes_no_code() -> None:
    layer, optimizer, before = layer_and_state("entries")
    layer.weight.set_mask(layer.mask(), optimizer)
    values = layer.weight.values
    assert torch.equal(read(optimizer.state[values], values), before)


def test_another_number_of_entries() -> None:
    layer, optimizer, before = layer_and_state("entries", "50%")
    dense = gossamer.backend.scatter(before, layer.structure)
    mask = layer.mask()
    mask[4:] = False
    layer.weight.set_mask(
        mask, optimizer, pattern=gossamer.Unstructured(1 - mask.sum().item() / 128)
    )
    values = layer.weight.values
    state = optimizer.state[values]
    assert state["state1"].shape == values.shape == (int(mask.sum()),)
    found = gossamer.backend.scatter(read(state, values), layer.structure)
    assert (found - dense * mask).abs().max() <= state["absmax1"].max() / 128


def test_a_class_of_its_own_cannot_change_its_size() -> None:
    layer, optimizer, before = layer_and_state("class", "50%")
    kept = copy.deepcopy(layer.state_dict())
    mask = layer.mask()
    mask[4:] = False
    with pytest.raises(DTypeError, match="exp_avg is in 8 bits"):
        layer.weight.set_mask(
            mask, optimizer, pattern=gossamer.Unstructured(1 - mask.sum().item() / 128)
        )
    assert all(torch.equal(a, kept[name]) for name, a in layer.state_dict().items())
    values = layer.weight.values
    assert torch.equal(read(optimizer.state[values], values), before)


def unknown() -> Tensor:
    return Codes(torch.zeros(4, dtype=torch.uint8), torch.ones(1), torch.ones(16))


def test_what_cannot_be_read_is_refused_before_anything_changes() -> None:
    layer, optimizer, _ = layer_and_state("class")
    optimizer.state[layer.weight.values]["exp_avg_sq"] = unknown()
    kept = copy.deepcopy(layer.state_dict())
    with pytest.raises(DTypeError, match="exp_avg_sq is a Codes, which cannot follow a mask"):
        layer.weight.set_mask(gossamer.masks.random_mask((8, 16), "2:4", seed=4), optimizer)
    assert all(torch.equal(a, kept[name]) for name, a in layer.state_dict().items())

    masked = MaskedLinear.from_dense(nn.Linear(16, 8), "50%", False)
    optimizer = torch.optim.SGD(masked.parameters(), lr=0.1)
    optimizer.state[masked.weight]["exp_avg_sq"] = unknown()
    old, weight = masked.mask(), masked.weight.detach().clone()
    with pytest.raises(DTypeError, match="cannot follow"):
        apply_mask(masked, ~old, None, optimizer)
    assert torch.equal(masked.mask(), old)
    assert torch.equal(masked.weight, weight)


@pytest.mark.parametrize("kind", ["class", "entries"])
def test_a_dense_weight_loses_what_its_mask_drops(kind: str) -> None:
    weight = nn.Parameter(torch.randn(8, 16))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    optimizer.state[weight] = state_of(kind, torch.randn(8, 16))
    before = read(optimizer.state[weight], weight)
    mask = torch.rand(8, 16) < 0.5
    zero_outside(weight, mask, optimizer)
    found = read(optimizer.state[weight], weight)
    assert not found[~mask].any()
    assert (found - before * mask).abs().max() <= before.abs().max() / 64


# ---- the libraries themselves ------------------------------------------------------------------


def torchao() -> Callable[..., torch.optim.Optimizer]:
    return pytest.importorskip("torchao.optim").AdamW8bit


def bitsandbytes() -> Callable[..., torch.optim.Optimizer]:
    return pytest.importorskip("bitsandbytes").optim.AdamW8bit


MOVING: dict[str, Callable[[], Recipe]] = {
    "set": lambda: SET("50%", every=2, end_share=1.0),
    "rigl": lambda: RigL("2:4", every=2, end_share=1.0),
    "dsl": lambda: DSL("50%", every=2, end_share=1.0),
    "gmp": lambda: GMP("50%"),
    "imp": lambda: IMP("50%"),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("library", [torchao, bitsandbytes])
@pytest.mark.parametrize("name", MOVING)
def test_recipes_train_with_8_bit_state(
    name: str, library: Callable[[], Callable[..., torch.optim.Optimizer]]
) -> None:
    make = library()
    losses = {}
    for kind in (make, torch.optim.AdamW):
        torch.manual_seed(0)
        recipe = MOVING[name]()
        model = recipe.prepare(nn.Sequential(nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 16)))
        start = model[0].mask()
        optimizer = kind(recipe.parameters(model), lr=1e-2)
        recipe.attach(model, optimizer, total_steps=40)
        x = torch.randn(64, 128)
        for _ in range(40):
            optimizer.zero_grad()
            loss = (model(x) - x[:, :16]).square().mean()
            loss.backward()
            optimizer.step()
        losses[kind] = loss.item()
        entries = model[0].entries
        if kind is make:
            assert quantized_state(optimizer.state[entries], entries)
        assert not torch.equal(model[0].mask(), start)
    assert losses[make] == pytest.approx(losses[torch.optim.AdamW], rel=0.3)
