"""State: what torch's own tools do with a sparse model, and that resuming changes no bit."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn

import gossamer
from gossamer import SparseLinear, SparseWeight
from gossamer.masks import random_mask
from support import oracle

KINDS = ["2:4", "2:4:v4", "90%", "75%:v4", "block 4x4 50%", "2:4:v16", "75%:v16", "block 16x2 50%"]


def build(pattern: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        SparseLinear(16, 32, pattern=pattern), nn.GELU(), SparseLinear(32, 16, pattern=pattern)
    )


def equal(a: nn.Module, b: nn.Module) -> bool:
    """Bit for bit, the buffers that are not saved too."""
    mine, theirs = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (a, b))
    return mine.keys() == theirs.keys() and all(
        t.dtype == theirs[n].dtype and torch.equal(t, theirs[n]) for n, t in mine.items()
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(6, 16, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) - x).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()


@pytest.mark.parametrize("pattern", KINDS)
def test_state_dict(pattern: str) -> None:
    model, other = build(pattern, 1), build(pattern, 2)
    state = model.state_dict()
    names = {"values", "indices", "descriptor"} | ({"indptr"} if ":" not in pattern[:3] else set())
    assert {n.split(".", 2)[2] for n in state if ".weight." in n} == names
    assert not equal(model, other)
    assert str(other.load_state_dict(state, strict=True)) == "<All keys matched successfully>"
    assert equal(model, other)
    x = torch.randn(3, 16, requires_grad=True)
    (got,), (expected,) = (torch.autograd.grad(m(x).sum(), x) for m in (other, model))
    assert torch.equal(got, expected)
    values = other[0].weight.values
    other.load_state_dict(build(pattern, 3).state_dict())
    assert other[0].weight.values is values


@pytest.mark.parametrize("pattern", KINDS)
def test_files(pattern: str, tmp_path) -> None:
    model = build(pattern, 1)
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    other = build(pattern, 2)
    other.load_state_dict(load_file(tmp_path / "a.safetensors"))
    assert equal(model, other)

    save_model(model, str(tmp_path / "b.safetensors"))
    assert load_file(tmp_path / "b.safetensors").keys() == model.state_dict().keys()

    torch.save(model.state_dict(), tmp_path / "c.pt")
    other = build(pattern, 2)
    other.load_state_dict(torch.load(tmp_path / "c.pt", weights_only=True))
    assert equal(model, other)


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))  # noqa: S301


def through_torch_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copier", [copy.deepcopy, through_pickle, through_torch_save])
@pytest.mark.parametrize("pattern", KINDS)
def test_copies(pattern: str, copier: Callable[[nn.Module], nn.Module]) -> None:
    model = build(pattern)
    model[2].weight.values.requires_grad_(False)
    other = copier(model)
    assert equal(model, other)
    assert str(other) == str(model)
    assert not other[2].weight.values.requires_grad
    x = torch.randn(3, 16)
    assert torch.equal(other(x), model(x))
    with torch.no_grad():
        other[0].weight.values.zero_()
    assert model[0].weight.values.any(), "a copy shares no memory"
    other[0].weight.set_mask(random_mask((32, 16), pattern, seed=7))
    x.requires_grad_()
    other(x).sum().backward()


def test_tied_weights_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    gossamer.sparsify(model, "2:4")
    for other in (copy.deepcopy(model), through_pickle(model)):
        assert other[0].weight is other[1].weight
        other.load_state_dict(model.state_dict())
        assert equal(model, other)


@pytest.mark.parametrize("pattern", KINDS)
def test_to_dtype(pattern: str) -> None:
    model = build(pattern)
    x = torch.randn(3, 16)
    expected = model(x)
    double = copy.deepcopy(model).double()
    torch.testing.assert_close(double(x.double()), expected.double(), rtol=1e-5, atol=1e-5)
    half = copy.deepcopy(model).to(torch.bfloat16)
    torch.testing.assert_close(half(x.bfloat16()).float(), expected, rtol=0.05, atol=0.05)
    for moved in (double, half):
        assert moved[0].weight.indices.dtype == torch.uint8
        assert moved[0].weight.descriptor.dtype == torch.int64
    assert equal(double.float(), model)
    with pytest.raises(gossamer.DTypeError, match="float16"):
        model.half()(x.half())


@pytest.mark.parametrize("pattern", KINDS)
def test_running_average(pattern: str) -> None:
    model = build(pattern)
    decay = torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=decay)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = None
    for step in range(3):
        train(model, optimizer, range(step, step + 1))
        average.update_parameters(model)
        dense = model[0].weight.to_dense().detach()
        expected = dense if expected is None else 0.5 * expected + 0.5 * dense
    torch.testing.assert_close(average.module[0].weight.to_dense().detach(), expected)


@pytest.mark.parametrize("foreach", [True, False])
def test_clipping_sees_the_dense_norm(foreach: bool) -> None:
    model = build("90%")
    model(torch.randn(5, 16)).square().sum().backward()
    dense = [gossamer.backend.scatter(m.weight.values.grad, m.weight.structure) for m in model[::2]]
    norm = torch.linalg.vector_norm(torch.cat([d.flatten() for d in dense]))
    biases = torch.cat([m.bias.grad for m in model[::2]])
    expected = torch.hypot(norm, torch.linalg.vector_norm(biases))
    got = nn.utils.clip_grad_norm_(model.parameters(), 0.1, foreach=foreach)
    torch.testing.assert_close(got, expected)
    after = torch.cat([p.grad for p in model.parameters()])
    torch.testing.assert_close(
        torch.linalg.vector_norm(after), torch.tensor(0.1), rtol=1e-3, atol=0
    )


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "AdamW": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, foreach=False),
    "AdamW foreach": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, foreach=True),
    "AdamW fused": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, fused=True),
    "Adam amsgrad": lambda m: torch.optim.Adam(m.parameters(), lr=1e-2, amsgrad=True),
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, foreach=False),
    "SGD foreach": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, foreach=True),
    "SGD fused": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, fused=True),
    "Adafactor": lambda m: torch.optim.Adafactor(m.parameters(), lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("pattern", ["2:4:v4", "90%", "50%:v16"])
def test_resume_is_bit_equal(pattern: str, name: str) -> None:
    straight = build(pattern)
    optimizer = OPTIMIZERS[name](straight)
    train(straight, optimizer, range(3))
    straight[0].weight.set_mask(random_mask((32, 16), pattern, seed=7), optimizer)
    file = io.BytesIO()
    torch.save({"model": straight.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(straight, optimizer, range(3, 7))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = build(pattern, seed=5)
    optimizer = OPTIMIZERS[name](resumed)
    resumed.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    train(resumed, optimizer, range(3, 7))
    assert equal(straight, resumed)


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
@pytest.mark.parametrize("pattern", KINDS)
def test_training_equals_masked_dense_training(pattern: str, name: str) -> None:
    """What an optimizer does to the values is what it would do to a dense weight and its mask."""
    model = build(pattern).double()
    twin = gossamer.densify(copy.deepcopy(model))
    masks = [m.weight.mask() for m in model[::2]]
    for layer, mask in zip(twin[::2], masks, strict=True):
        layer.weight.register_hook(lambda g, mask=mask: g * mask)
    for m in (model, twin):
        optimizer = OPTIMIZERS[name](m)
        for step in range(5):
            x = torch.randn(6, 16, generator=torch.Generator().manual_seed(step)).double()
            optimizer.zero_grad()
            (m(x) - x).square().mean().backward()
            optimizer.step()
    for sparse, dense in zip(model[::2], twin[::2], strict=True):
        torch.testing.assert_close(sparse.weight.to_dense(), dense.weight)


def put(name: str, index: int, value: int) -> Callable[[dict[str, Tensor]], None]:
    def apply(state: dict[str, Tensor]) -> None:
        state[name][index] = value

    return apply


def become(name: str, change: Callable[[Tensor], object]) -> Callable[[dict[str, Tensor]], None]:
    def apply(state: dict[str, Tensor]) -> None:
        state[name] = change(state[name])

    return apply


DAMAGE: dict[str, tuple[str, Callable[[dict[str, Tensor]], None]]] = {
    "column too large": ("2:4", put("indices", 0, 255)),
    "two in one place": ("2:4", lambda s: s["indices"].copy_(s["indices"].roll(1))),
    "wrong group": ("2:4", put("indices", 0, 4)),
    "column beyond": ("90%", put("indices", -1, 43)),
    "unsorted": ("50%", lambda s: s["indices"].copy_(s["indices"].flip(0))),
    "pointer falls": ("50%", put("indptr", 1, 10_000)),
    "pointer negative": ("50%", put("indptr", 1, -1)),
    "pointer starts late": ("50%", put("indptr", 0, 1)),
    "pointer ends early": ("50%", put("indptr", -1, 3)),
    "pointers moved": ("50%", lambda s: s["indptr"][1:-1].fill_(int(s["indptr"][-1]))),
    "short indices": ("2:4", become("indices", lambda t: t[:-1])),
    "short pointers": ("50%", become("indptr", lambda t: t[:-1])),
    "short values": ("2:4", become("values", lambda t: t[:-1])),
    "wide indices": ("2:4", become("indices", lambda t: t.long())),
    "wide pointers": ("50%", become("indptr", lambda t: t.long())),
    "float descriptor": ("2:4", become("descriptor", lambda t: t.float())),
    "short descriptor": ("2:4", become("descriptor", lambda t: t[:3])),
    "rows": ("2:4", put("descriptor", 1, 8)),
    "huge rows": ("2:4", put("descriptor", 1, 2**62)),
    "kind": ("2:4", put("descriptor", 0, 9)),
    "n": ("2:4", put("descriptor", 5, 3)),
    "vector": ("2:4", put("descriptor", 3, -4)),
    "sparsity": ("50%", put("descriptor", 7, 0)),
    "sparsity NaN": ("50%", put("descriptor", 7, 0x7FF8000000000000)),
    "integer values": ("2:4", become("values", lambda t: t.long())),
    "half values": ("2:4", become("values", lambda t: t.half())),
    "not a tensor": ("2:4", become("indices", lambda t: t.tolist())),
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_state_is_refused_and_nothing_written(case: str, strict: bool) -> None:
    pattern, damage = DAMAGE[case]
    weight = SparseWeight.from_dense(torch.randn(oracle.sizes(pattern)), pattern)
    other = SparseWeight.from_dense(torch.randn(oracle.sizes(pattern)), pattern)
    state = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    damage(state)
    before = copy.deepcopy(weight)
    with pytest.raises(gossamer.GossamerError):
        weight.load_state_dict(state, strict=strict)
    assert equal(weight, before)
    assert weight.pattern == before.pattern


def test_a_damaged_weight_keeps_the_bias_from_being_loaded() -> None:
    layer, other = SparseLinear(16, 32, pattern="2:4"), SparseLinear(16, 32, pattern="2:4")
    state = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    state["weight.indices"][0] = 255
    before = copy.deepcopy(layer)
    with pytest.raises(gossamer.StructureError):
        nn.Sequential(layer).load_state_dict({f"0.{name}": t for name, t in state.items()})
    assert equal(layer, before)


def test_another_pattern_or_shape_is_named() -> None:
    layer = SparseLinear(16, 32, pattern="2:4")
    for other, text in [
        (SparseLinear(16, 32, pattern="1:4"), "holds 1:4 of 32x16.*the module is 2:4 of 32x16"),
        (SparseLinear(32, 16, pattern="2:4"), "holds 2:4 of 16x32"),
        (SparseLinear(16, 32, pattern="2:4:v4"), "holds 2:4:v4"),
        (SparseLinear(16, 32, pattern="50%"), "holds 50%"),
    ]:
        with pytest.raises(gossamer.StructureError, match=text):
            layer.load_state_dict(other.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict(nn.Linear(16, 32).state_dict())


def test_a_sparsity_of_the_same_count_is_the_same_layout() -> None:
    layer = SparseLinear(16, 32, pattern="90%")
    near = SparseLinear(16, 32, pattern=gossamer.Unstructured(0.9000001))
    layer.load_state_dict(near.state_dict())
    assert layer.weight.pattern == near.weight.pattern
    assert torch.equal(layer.weight.mask(), near.weight.mask())


def test_values_alone_can_be_loaded() -> None:
    weight = SparseWeight.from_dense(torch.randn(8, 12), "2:4")
    mask = weight.mask()
    result = weight.load_state_dict({"values": torch.arange(48.0)}, strict=False)
    assert sorted(result.missing_keys) == ["descriptor", "indices"]
    assert torch.equal(weight.values, torch.arange(48.0))
    assert torch.equal(weight.mask(), mask)


def test_load_with_assign() -> None:
    model, other = build("90%", 1), build("90%", 2)
    other.load_state_dict(model.state_dict(), assign=True)
    assert equal(model, other)
