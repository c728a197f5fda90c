"""Networks with sparse activations whose weights are sparse too."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import gossamer
from gossamer import SparseLinear, densify, sparsify, sparsify_activations
from gossamer.errors import RecipeError, ShapeError
from gossamer.masks import check_mask
from gossamer.nn import ActivationSparseFFN
from gossamer.nn.layers.rebuilding import build, describe
from gossamer.recipes import SET, RigL, Static
from gossamer.weight import SparseWeight
from support.activation_models import Written, networks, same_state, step
from support.transformer_models import MODELS

FORMS = ["float32", "int8", "dense", "auto"]
PATTERN = "2:4:v4"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_the_dense_weights_at_kept_entries(
    bias: bool, gated: bool, form: str
) -> None:
    layer = ActivationSparseFFN(
        24, 48, gated, form, bias=bias, dtype=torch.float64, pattern=PATTERN  # type: ignore[arg-type]
    )  # fmt: skip
    dense = layer.to_dense()
    layer.penalty = dense.penalty = 0.3
    x = torch.randn(70, 24, dtype=torch.float64)
    found = []
    for network in (layer, dense):
        inputs = x.clone().requires_grad_()
        y = network(inputs)
        y.square().sum().backward()
        found.append([y, inputs.grad])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    assert list(layer.sparse_parts) == (["gate", "up", "down"] if gated else ["gate", "down"])
    for name, part in layer.sparse_parts.items():
        assert part.weight.density == 0.5
        whole = getattr(dense, name).grad
        whole = whole.t() if name == "down" else whole
        kept = gossamer.backend.gather(whole.contiguous(), part.structure)
        torch.testing.assert_close(part.weight.values.grad, kept)
        if bias:
            torch.testing.assert_close(part.bias.grad, getattr(dense, f"{name}_bias").grad)


def test_the_first_weights_are_those_of_sparse_layers() -> None:
    torch.manual_seed(0)
    layer = ActivationSparseFFN(64, 512, pattern="90%")
    for part, fan_in in ((layer.gate, 6.4), (layer.down, 51.2)):
        largest = part.weight.values.abs().max()
        assert 0.9 * fan_in**-0.5 < largest <= 1.01 * fan_in**-0.5
    before = copy.deepcopy(layer.state_dict())
    layer.reset_parameters()
    after = layer.state_dict()
    assert not torch.equal(before["down.weight.values"], after["down.weight.values"])
    assert torch.equal(before["down.weight.indices"], after["down.weight.indices"])


def test_states_copies_and_descriptions() -> None:
    layer, other = (ActivationSparseFFN(16, 32, bias=True, pattern=PATTERN) for _ in range(2))
    x = torch.randn(5, 16)
    other.load_state_dict(layer.state_dict())
    described = describe(layer)
    assert described is not None
    again = [copy.deepcopy(layer), other, build(described, layer.state_dict())]
    for network in again:
        assert torch.equal(network(x), layer(x))
        assert list(network.sparse_parts) == ["gate", "up", "down"]


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "encoder", "decoder", "sequential"])
def test_sparse_networks_of_models_and_the_way_back(name: str) -> None:
    if name not in ("encoder", "decoder"):
        pytest.importorskip("transformers")
    model, run = MODELS[name]("relu")
    heads = [n for n, _ in model.named_modules() if n.endswith("head")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's attention, which stays dense
        sparsify(model.double().eval(), "2:4", exclude=heads)
    sparse = copy.deepcopy(model)
    converted = sparsify_activations(model, gate="float32")
    found = networks(converted)
    assert found
    assert all(len(network.sparse_parts) >= 2 for network in found.values())
    torch.testing.assert_close(step(converted, run), step(sparse, run))
    torch.testing.assert_close(run(converted), run(sparse))  # after the step
    copied = copy.deepcopy(converted)
    for back in (densify(converted), densify(copied)):
        expected = densify(copy.deepcopy(sparse))
        assert [type(m) for m in back.modules()] == [type(m) for m in expected.modules()]
        same_state(back, expected)
        torch.testing.assert_close(run(back), run(sparse))


def test_some_weights_may_be_dense() -> None:
    model = Written().double()
    sparsify(model, "2:4", include="down")
    sparse = copy.deepcopy(model)
    layer = sparsify_activations(model, gate="float32")
    assert list(layer.sparse_parts) == ["down"]
    x = torch.randn(9, 8, dtype=torch.float64)
    torch.testing.assert_close(step(layer, lambda m: m(x)), step(sparse, lambda m: m(x)))
    torch.testing.assert_close(layer(x), sparse(x))


def test_a_layer_of_its_own_becomes_dense() -> None:
    model = nn.Sequential(ActivationSparseFFN(16, 32, bias=True, pattern=PATTERN))
    x = torch.randn(5, 16)
    y = model(x)
    densify(model)
    assert not any(isinstance(m, SparseLinear | SparseWeight) for m in model.modules())
    assert sorted(model.state_dict())[0] == "0.down"
    torch.testing.assert_close(model(x), y)


@pytest.mark.parametrize("recipe", [SET("75%", every=2, distribution="uniform"), Static("2:4")])
def test_recipes_move_the_masks(recipe: Static) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), Written(), nn.Linear(8, 4))
    model = recipe.prepare(model)
    before = None
    model = sparsify_activations(model, gate="float32")
    optimizer = torch.optim.AdamW(recipe.parameters(model), lr=1e-2)
    recipe.attach(model, optimizer, total_steps=12)
    assert {"1.gate", "1.up", "1.down"} <= set(recipe.layers)
    layer = model[1]
    before = {name: part.mask() for name, part in layer.sparse_parts.items()}
    for _ in range(12):
        x = torch.randn(64, 12)
        optimizer.zero_grad()
        (model(x) - x[:, :4]).square().mean().backward()
        optimizer.step()
    for name, part in layer.sparse_parts.items():
        check_mask(part.mask(), recipe.pattern)
        assert torch.equal(part.mask(), before[name]) == (type(recipe) is Static)
        rows = part.used_weight().t() if name == "down" else part.used_weight()
        assert torch.equal(getattr(layer.weights, name), rows)
    recipe.finish(model)


def test_rigl_is_refused() -> None:
    recipe = RigL("75%", every=2)
    model = sparsify_activations(recipe.prepare(nn.Sequential(nn.Linear(8, 8), Written())))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(RecipeError, match=r"1\.gate is a part of an ActivationSparseFFN; use SET"):
        recipe.attach(model, optimizer, total_steps=100)


def test_a_few_tokens() -> None:
    layer = ActivationSparseFFN(64, 128, gate="int8", pattern=PATTERN).eval()
    dense = layer.to_dense()
    dense.gate_form = "dense"
    x = torch.randn(2, 64)
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(layer(x), dense(x))
            layer.gate.weight.values.mul_(-1.0)
            dense.gate.mul_(-1.0)


@pytest.mark.slow
def test_one_compiled_graph() -> None:
    torch.compiler.reset()
    layer = ActivationSparseFFN(16, 32, gate="float32", pattern=PATTERN)
    run = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (5, 9):
        x = torch.randn(batch, 16, requires_grad=True)
        found = []
        for call in (run, layer):
            y = call(x)
            found.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b)


def test_a_model_is_saved_and_loaded(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 16), ActivationSparseFFN(16, 32, pattern=PATTERN))
    gossamer.save(model, tmp_path)
    dense = nn.Sequential(nn.Linear(8, 16), ActivationSparseFFN(16, 32))
    loaded = gossamer.load(tmp_path, dense)
    x = torch.randn(5, 8)
    assert torch.equal(loaded(x), model(x))
    assert list(loaded[1].sparse_parts) == ["gate", "up", "down"]


def test_a_summary_counts_the_kept_entries() -> None:
    layer = ActivationSparseFFN(64, 128, pattern=PATTERN)
    found = gossamer.summary(nn.Sequential(layer))
    assert found.dense == 3 * 64 * 128 * 8
    assert sum(entry.values for entry in found.layers) == 3 * 64 * 128 * 4 // 2
    assert not found.dense_kinds


def test_wrong_sizes_are_told() -> None:
    parts = ActivationSparseFFN(16, 32, pattern=PATTERN).parts
    turned = SparseLinear(16, 32, False, pattern=PATTERN)
    with pytest.raises(ShapeError, match=r"down has shape \[32, 16\]; \[16, 32\] is needed"):
        ActivationSparseFFN.of_parts(parts._replace(down=turned))  # type: ignore[arg-type]
    with pytest.raises(gossamer.PatternError, match="multiple"):
        ActivationSparseFFN(10, 32, pattern="2:8")
