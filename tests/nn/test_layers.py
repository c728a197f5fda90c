"""What every layer with a mask answers: one set of tests for all of them."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer import backend, densify, summary
from gossamer.backend import Structure
from gossamer.masks import check_mask
from gossamer.nn import AdaptedLinear, MaskedLayer, MaskedLinear, SparseLinear
from gossamer.nn.layers.bimask import BiMaskLinear
from gossamer.nn.layers.iso_flop import Branches, Doped, Factors
from gossamer.nn.layers.sampled import SampledLinear
from gossamer.nn.layers.soft_threshold import SoftThresholdLinear
from gossamer.nn.layers.threshold import ThresholdLinear
from gossamer.patterns import NM, parse_pattern

IN, OUT = 32, 16


def adapted(linear: nn.Linear) -> AdaptedLinear:
    layer = AdaptedLinear.from_dense(linear, "2:4")
    assert isinstance(layer, AdaptedLinear)
    layer.insert(rank=2)
    with torch.no_grad():
        layer.adapter.right.normal_()
    return layer


def soft(linear: nn.Linear) -> MaskedLinear:
    layer = MaskedLinear.from_dense(linear, "1:4")
    layer.masked_weight_share.fill_(0.5)
    return layer


def dense_now(linear: nn.Linear) -> MaskedLinear:
    layer = MaskedLinear.from_dense(linear, "75%", reselect_each_forward=False, gradient="kept")
    layer.set_dense()
    return layer


LAYERS: dict[str, Callable[[nn.Linear], MaskedLayer]] = {
    "sparse": lambda linear: SparseLinear.from_dense(linear, "2:4:v4"),
    "sparse, unstructured": lambda linear: SparseLinear.from_dense(linear, "75%"),
    "sparse, double-pruned": lambda linear: SparseLinear.from_dense(
        linear, "2:4", backward="double_pruned"
    ),
    "adapted": adapted,
    "masked": lambda linear: MaskedLinear.from_dense(linear, "2:8"),
    "masked, fixed": lambda linear: MaskedLinear.from_dense(
        linear, "block 4x4 75%", reselect_each_forward=False, gradient="kept"
    ),
    "masked, soft": soft,
    "masked, dense now": dense_now,
    "sampled": lambda linear: SampledLinear.from_dense(linear, "2:4", False, NM(2, 4)),
    "soft threshold": lambda linear: SoftThresholdLinear.from_dense(linear, "1:4"),
    "bi-mask": lambda linear: BiMaskLinear.from_dense(linear, "2:4"),
    "threshold": lambda linear: ThresholdLinear.from_dense(linear, "75%", None),
}
COMPOSITES: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "branches": lambda linear: Branches(linear, parse_pattern("75%"), 4, "none"),
    "factors": lambda linear: Factors(linear, parse_pattern("50%"), 24, "relu"),
    "doped": lambda linear: Doped(linear, parse_pattern("75%"), 8),
}
EVERY = LAYERS | COMPOSITES


def made(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    layer = EVERY[name](nn.Linear(IN, OUT, dtype=dtype))
    layer(torch.randn(3, IN, dtype=dtype))  # a mask that is selected in each forward is there now
    return layer


def layer_of(name: str) -> MaskedLayer:
    layer = made(name)
    assert isinstance(layer, MaskedLayer)
    return layer


@pytest.mark.parametrize("name", LAYERS)
def test_mask_structure_and_counts_agree(name: str) -> None:
    layer = layer_of(name)
    mask = layer.mask()
    assert mask.shape == (OUT, IN)
    assert mask.dtype == torch.bool
    check_mask(mask, layer.pattern)
    structure = layer.structure
    backend.validate(structure)
    assert torch.equal(backend.mask(structure), mask)
    assert layer.nnz == structure.nnz == int(mask.sum())
    assert layer.density == layer.nnz / (IN * OUT)
    values = layer.kept_values()
    assert values.shape == (layer.nnz,)
    assert not values.requires_grad
    assert any(layer.entries is parameter for parameter in layer.parameters())
    assert layer.is_dense_now == (name == "masked, dense now")
    soft_or_dense = name in ("masked, soft", "masked, dense now")
    assert layer.used_entries == (IN * OUT if soft_or_dense else layer.nnz)


@pytest.mark.parametrize("name", LAYERS)
def test_the_used_weight_is_what_the_forward_multiplies_by(name: str) -> None:
    layer = layer_of(name)
    x = torch.randn(5, IN, dtype=torch.float64)
    used = layer.used_weight()
    assert used.shape == (OUT, IN)
    torch.testing.assert_close(layer(x), F.linear(x, used, layer.bias))
    if not layer.is_dense_now and name not in ("masked, soft", "adapted"):
        assert not used[~layer.mask()].any()


@pytest.mark.parametrize("name", ["sparse", "sparse, unstructured", "adapted", "masked, dense now"])
def test_the_used_weight_is_differentiable_where_it_is_a_function_of_the_parameters(
    name: str,
) -> None:
    layer = layer_of(name)
    x = torch.randn(5, IN, dtype=torch.float64)
    g = torch.randn(5, OUT, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(layer(x), layer.entries, g)
    (found,) = torch.autograd.grad(F.linear(x, layer.used_weight(), layer.bias), layer.entries, g)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", EVERY)
def test_densify_gives_the_same_function_and_passes_over_no_layer(name: str) -> None:
    layer = made(name)
    x = torch.randn(4, 3, IN, dtype=torch.float64)
    wanted = layer(x)
    bias = getattr(layer, "bias", None)
    model = densify(nn.Sequential(layer).eval())
    torch.testing.assert_close(model(x), wanted)
    assert not any(isinstance(module, MaskedLayer) for module in model.modules())
    if name in LAYERS:
        assert type(model[0]) is nn.Linear
        assert model[0].bias is bias
        assert model[0].training == layer.training


@pytest.mark.parametrize("name", LAYERS)
def test_to_sparse_keeps_what_the_target_allows(name: str) -> None:
    layer = layer_of(name)
    x = torch.randn(4, IN, dtype=torch.float64)
    before = layer(x)
    sparse = layer.to_sparse()
    assert isinstance(sparse, SparseLinear)
    assert sparse.nnz == layer.nnz
    if name == "masked, dense now":
        assert sparse.pattern == layer.target
        assert not layer.is_dense_now
    elif name != "masked, soft":
        torch.testing.assert_close(sparse(x), before)


@pytest.mark.parametrize("name", EVERY)
def test_summary_counts_every_byte_that_is_there(name: str) -> None:
    layer = made(name)
    model = nn.Sequential(layer, nn.LayerNorm(OUT, dtype=torch.float64))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(8, IN, dtype=torch.float64)).sum().backward()
    optimizer.step()
    real = sum(parameter.nbytes for parameter in model.parameters())
    real += sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    real += sum(t.nbytes for s in optimizer.state.values() for t in s.values())
    # An adapter's divisor is part of no weight.
    real += sum(b.nbytes for n, b in model.named_buffers() if not n.endswith("divisor"))
    for module in model.modules():
        for key, part in vars(module).items():  # tensors that are no buffers
            if key != "number":  # by which a compiled graph finds the layer
                real += sum(t.nbytes for t in tensors_of(part))
    assert summary(model, optimizer).total == real
    for module in model.modules():
        if isinstance(module, MaskedLayer):
            assert module.structure_nbytes > 0


def tensors_of(part: object) -> list[Tensor]:
    """The tensors of a structure or of a transpose that a layer keeps as an attribute."""
    if isinstance(part, Tensor):
        return [part]
    if isinstance(part, tuple) and not isinstance(part, torch.Size):
        return [tensor for item in part for tensor in tensors_of(item)]
    return []


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("way", ["deepcopy", "save"])
def test_copies_compute_the_same_and_share_nothing(name: str, way: str) -> None:
    layer = made(name)
    if way == "deepcopy":
        twin = copy.deepcopy(layer)
    else:
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    x = torch.randn(4, IN, dtype=torch.float64)
    assert torch.equal(twin(x), layer(x))
    before = layer(x)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("name", EVERY)
def test_a_state_dict_makes_another_layer_the_same(name: str) -> None:
    layer = made(name)
    torch.manual_seed(1)
    other = EVERY[name](nn.Linear(IN, OUT, dtype=torch.float64))
    if name == "masked, dense now":
        other.set_pattern("75%")
        assert not other.is_dense_now
    other.load_state_dict(layer.state_dict())
    x = torch.randn(4, IN, dtype=torch.float64)
    assert torch.equal(other(x), layer(x))
    for mine, theirs in zip(other.modules(), layer.modules(), strict=True):
        if isinstance(mine, MaskedLayer):
            assert isinstance(theirs, MaskedLayer)
            assert torch.equal(mine.mask(), theirs.mask())
            assert mine.is_dense_now == theirs.is_dense_now


@pytest.mark.parametrize("lead", [(), (4,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("name", EVERY)
def test_in_place_operations_work_behind_every_layer(name: str, lead: tuple[int, ...]) -> None:
    layer, x = made(name), torch.randn(*lead, IN, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(F.relu(layer(x)[..., 1:] + 1).sum(), used_parameter(layer))
    layer = made(name)  # again: a sampled gradient is another one at the next call
    y = layer(x)
    y += 1
    y[..., 0] = 0
    y = nn.ReLU(inplace=True)(y)
    (found,) = torch.autograd.grad(y.sum(), used_parameter(layer))
    torch.testing.assert_close(found, wanted)


def used_parameter(layer: nn.Module) -> nn.Parameter:
    """A parameter that the output depends on."""
    return layer.entries if isinstance(layer, MaskedLayer) else next(layer.parameters())


@pytest.mark.parametrize("name", EVERY)
def test_the_input_can_be_given_by_keyword(name: str) -> None:
    layer = made(name)
    x = torch.randn(4, IN, dtype=torch.float64)
    assert torch.equal(layer(input=x), layer(x))


def test_sparse_linear_takes_the_positional_arguments_of_nn_linear() -> None:
    layer = SparseLinear(IN, OUT, False, "cpu", torch.float64, pattern="2:4")
    assert layer.bias is None
    assert layer.weight.dtype == torch.float64


@pytest.mark.parametrize("kind", [MaskedLinear, SampledLinear, BiMaskLinear, ThresholdLinear])
@pytest.mark.parametrize("reselect", [True, False])
def test_a_dense_layer_is_nn_linear_until_its_mask_is_set(
    kind: type[MaskedLinear], reselect: bool
) -> None:
    linear = nn.Linear(IN, OUT)
    dense = copy.deepcopy(linear)
    layer = kind.from_dense(linear, "2:4")
    layer.reselect_each_forward = reselect
    layer.set_dense()
    assert layer.is_dense_now
    assert layer.mask().all()
    assert (layer.density, layer.pattern.density) == (1.0, 1.0)
    assert layer.target == parse_pattern("2:4")
    x = torch.randn(6, IN, requires_grad=True)
    layer(x).square().sum().backward()
    found = [x.grad.clone(), layer.weight.grad, layer.bias.grad]
    x.grad = None
    dense(x).square().sum().backward()
    assert all(map(torch.equal, found, (x.grad, dense.weight.grad, dense.bias.grad)))
    layer.set_pattern("1:4")
    assert not layer.is_dense_now
    assert layer.density == 0.25
    assert layer.target == parse_pattern("2:4")


def test_layers_that_share_a_weight_share_it_after_densify() -> None:
    first = SparseLinear(IN, IN, pattern="2:4")
    second = SparseLinear.of_parts(first.weight, first.bias)
    model = densify(nn.Sequential(first, second))
    assert model[0].weight is model[1].weight
    assert model[0].bias is model[1].bias


def test_structures_of_backend_mask() -> None:
    mask = torch.rand(8, 12) > 0.5
    for structure in (backend.encode(mask, 1), backend.encode(mask.repeat_interleave(4, 0), 4)):
        assert isinstance(structure, Structure)
        kept = backend.mask(structure)
        assert kept.shape == (structure.layout.rows, structure.layout.cols)
        assert torch.equal(
            kept, mask if structure.layout.vector == 1 else mask.repeat_interleave(4, 0)
        )
