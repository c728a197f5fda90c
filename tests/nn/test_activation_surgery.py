"""sparsify_activations and densify on the networks of real models."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer
from gossamer import SparseLinear, densify, sparsify_activations
from support.activation_models import Written, classes, networks, same_state, step
from support.transformer_models import MODELS, bert, gpt2, llama_like, sequential

pytest.importorskip("transformers")


@pytest.mark.parametrize("name", MODELS)
def test_outputs_gradients_and_the_way_back(name: str) -> None:
    dense, run = MODELS[name]("relu")
    dense.double().eval()
    before = copy.deepcopy(dense)
    model = sparsify_activations(copy.deepcopy(dense), gate="float32")
    assert len(networks(model)) == (1 if name == "sequential" else 2)
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in dense.parameters())
    torch.testing.assert_close(step(model, run), step(dense, run))
    assert all(0 < layer.live_share < 1 for layer in networks(model).values())

    model = densify(model)
    assert not networks(model)
    assert classes(model) == classes(dense)
    same_state(model, dense)
    moved = zip(model.parameters(), before.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in moved)
    torch.testing.assert_close(run(model), run(dense))


def test_squared_relu_stays_what_it_is() -> None:
    dense, run = llama_like("Llama", "relu2")
    model = sparsify_activations(copy.deepcopy(dense), gate="float32")
    assert {layer.activation for layer in networks(model).values()} == {"relu2"}
    torch.testing.assert_close(run(model), run(dense))
    assert type(densify(model).model.layers[0].mlp.act_fn).__name__ == "ReLUSquaredActivation"


@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("opt",)])
def test_another_activation_is_refused_or_replaced(name: str) -> None:
    old = "silu" if name in ("llama", "mistral", "qwen", "sequential") else "gelu"
    model, run = MODELS[name](old)
    model.eval()
    original, kinds = copy.deepcopy(model), classes(model)
    with pytest.raises(gossamer.PatternError, match=r"its activation is .*relufy=True"):
        sparsify_activations(model)
    assert classes(model) == kinds
    same_state(model, original)

    model = sparsify_activations(model, relufy=True, gate="float32")
    y = run(model)
    assert not torch.allclose(y, run(original))
    dense = densify(model)
    torch.testing.assert_close(run(dense), y, rtol=1e-4, atol=1e-5)
    expected, _ = MODELS[name]("relu")
    expected.load_state_dict(dense.state_dict())
    torch.testing.assert_close(run(expected.eval()), run(dense))


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen", "gemma", "gpt2", "bert", "vit"])
def test_a_relufied_model_is_saved_and_loaded_by_transformers(name: str, tmp_path: Path) -> None:
    model, run = MODELS[name]("gelu")
    model.eval()
    sparsify_activations(model, relufy=True, gate="float32")
    step(model, run)
    densify(model).save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(run(again), run(model))


def test_a_configuration_that_another_module_needs_is_named() -> None:
    model, _ = bert("gelu", "BertForMaskedLM")
    with pytest.warns(UserWarning, match=r"config\.hidden_act is 'gelu' for cls\.predictions"):
        sparsify_activations(model, relufy=True)
    assert model.config.hidden_act == "gelu"
    assert len(networks(model)) == 2


def test_globs() -> None:
    def swapped(**options: object) -> list[str]:
        return list(networks(sparsify_activations(llama_like("Llama", "relu")[0], **options)))

    first, second = "model.layers.0.mlp", "model.layers.1.mlp"
    assert swapped() == [first, second]
    assert swapped(exclude="*.0") == [second]
    assert swapped(include="*.layers.0") == [first]
    assert swapped(include="*.1.mlp.down_proj") == [second]
    assert swapped(exclude=["*.1.mlp.up_proj"]) == [first]
    for option in ("include", "exclude"):
        with pytest.raises(gossamer.PatternError, match=rf"networks are {first}, {second}"):
            swapped(**{option: "layer"})
    with pytest.raises(gossamer.PatternError, match="leave none"):
        swapped(exclude="*.mlp")


class Inline(nn.Module):
    """ReLU as a function, and more than a network."""

    def __init__(self, more: bool) -> None:
        super().__init__()
        self.a, self.b, self.more = nn.Linear(8, 24), nn.Linear(24, 8), more

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.relu(self.a(x)))
        return x + y if self.more else y


class Reads(Inline):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x.to(self.a.weight.dtype))))


class Branches(Inline):
    def __init__(self) -> None:
        super().__init__(False)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.act(self.a(x))) if x.sum() > 0 else x


def of(function: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 24), function, nn.Linear(24, 8))


def hooked() -> nn.Module:
    model = Written()
    model.up.register_forward_hook(lambda *_: None)
    return model


def half() -> nn.Module:
    model = Written()
    model.up.bfloat16()
    return model


def pruned() -> nn.Module:
    model = Written()
    model.up = SparseLinear.from_dense(model.up, "2:4", backward="double_pruned")
    return model


LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "dropout": (lambda: Written(dropout=0.1), r"dropout of 0\.1 before down; set its p to 0"),
    "scaled": (lambda: Written(scale=2.0), "more than the network, and the network has two"),
    "inline": (lambda: Inline(True), "relu is called in its method; make it a module"),
    "reads": (lambda: Reads(False), r"its forward reads a\.weight"),
    "branches": (Branches, "its forward cannot be followed: symbolically traced"),
    "tanh": (lambda: of(nn.Tanh()), "its activation Tanh is not like ReLU"),
    "relu6": (lambda: of(nn.ReLU6()), "its activation ReLU6 is not like ReLU"),
    "leaky": (lambda: of(nn.LeakyReLU()), "its activation LeakyReLU is not like ReLU"),
    "hooks": (hooked, "up has hooks"),
    "dtypes": (half, "its weights have the dtypes"),
    "pruned": (pruned, "up is a SparseLinear; only .* with an exact backward pass"),
    "encoder": (
        lambda: nn.TransformerEncoderLayer(8, 2, 24, batch_first=True),
        r"dropout of 0\.1 before linear2",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_cannot_be_swapped_is_named(case: str) -> None:
    make, text = LEFT[case]
    bad = make()
    kinds = classes(bad)
    with pytest.raises(gossamer.PatternError, match=text):
        sparsify_activations(bad, relufy=True)
    assert classes(bad) == kinds
    model = nn.ModuleDict({"good": Written(), "bad": bad})
    with pytest.warns(UserWarning, match=rf"left unchanged: bad \(.*{text}") as told:
        sparsify_activations(model, relufy=True)
    assert len(told) == 1
    assert list(networks(model)) == ["good"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsify_activations(nn.ModuleDict({"good": Written(), "bad": bad}), exclude="bad")


def test_many_networks_with_one_reason_are_one_note() -> None:
    model = nn.ModuleList([Written(), *(of(nn.Tanh()) for _ in range(5))])
    with pytest.warns(UserWarning, match=r"left unchanged: 1, 2, 3 and 2 more \(its activ[^;]*$"):
        sparsify_activations(model)


def test_other_forms_of_relu_are_known() -> None:
    class Squared(Inline):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x)).pow(2))

    found = {}
    for name, model in {
        "relu": Inline(False),
        "relu2": Squared(False),
        "threshold": of(nn.Threshold(0.0, 0.0)),
    }.items():
        x = torch.randn(3, 8)
        y = model(x)
        model = sparsify_activations(model, gate="float32")
        torch.testing.assert_close(model(x), y)
        found[name] = model.activation
    assert found == {"relu": "relu", "relu2": "relu2", "threshold": "relu"}


def test_networks_without_room_are_not_networks() -> None:
    with pytest.raises(gossamer.PatternError, match="leave none"):
        sparsify_activations(nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4)))
    model = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU()
    )
    x = torch.randn(3, 4)
    y, kinds = model(x), classes(model)
    sparsify_activations(model, gate="float32")
    assert list(networks(model)) == ["2"]
    torch.testing.assert_close(model(x), y)
    assert classes(densify(model)) == kinds
    torch.testing.assert_close(model(x), y)


def test_modes_hooks_and_frozen_parameters_are_carried_over() -> None:
    model = nn.Sequential(Written(), Written())
    model[0].eval()
    model[0].down.requires_grad_(False)
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append("forward"))
    model[1].register_full_backward_hook(lambda *_: calls.append("backward"))
    gate = model[0].gate.weight
    for swap in (lambda m: sparsify_activations(m, gate="float32"), densify):
        swap(model)
        assert not model[0].training
        assert model[1].training
        assert [p.requires_grad for p in model[0].parameters()].count(False) == 2
        calls.clear()
        model(torch.randn(2, 8, requires_grad=True)).sum().backward()
        assert calls == ["forward", "backward"]
        assert gate.grad is not None
        gate.grad = None
    assert model[0].gate.weight is gate


def test_ties_stay() -> None:
    shared = Written()
    model = nn.ModuleList([shared, Written(), Written(), shared])
    model[2].down.weight = model[1].down.weight
    model[2].gate.weight = model[1].gate.weight
    x = torch.randn(3, 8)
    before = [m(x) for m in model]
    sparsify_activations(model, gate="float32")
    assert model[0] is model[3]
    assert model[1].down is model[2].down
    assert model[1].gate is model[2].gate
    assert len(list(model.parameters())) == 16
    densify(model)
    assert model[0] is model[3]
    assert model[1].down.weight is model[2].down.weight
    assert model[1].gate.weight is model[2].gate.weight
    for m, y in zip(model, before, strict=True):
        torch.testing.assert_close(m(x), y)


def test_a_transposed_weight_with_another_use_stays() -> None:
    model = nn.ModuleDict(
        {"a": Written(), "b": Written(), "c": Written(), "head": nn.Linear(24, 8)}
    )
    model["head"].weight = model["b"].down.weight
    model["c"].down.weight = model["b"].down.weight
    with pytest.warns(UserWarning, match=r"b, c \(a weight that would be transposed is used else"):
        sparsify_activations(model)
    assert list(networks(model)) == ["a"]
    assert model["head"].weight is model["b"].down.weight is model["c"].down.weight

    model = nn.ModuleDict({"a": Written(), "b": Written()})
    model["same"] = model["b"].down
    with pytest.warns(UserWarning, match=r"b \(a weight that would be transposed is used else"):
        sparsify_activations(model)

    model = nn.ModuleDict({"a": Written(), "head": nn.Linear(8, 24)})
    model["head"].weight = model["a"].gate.weight
    sparsify_activations(model)
    assert model["head"].weight is model["a"].gate, "it is stored as it was"


def test_a_dtype_without_kernels_changes_nothing() -> None:
    model = nn.ModuleList([Written(), Written().half()])
    kinds = classes(model)
    with pytest.raises(gossamer.DTypeError, match="gate of 1"):
        sparsify_activations(model)
    assert classes(model) == kinds


def test_a_wrong_option_changes_nothing() -> None:
    model, _ = gpt2("relu")
    kinds = classes(model)
    for options in ({"gate": "int4"}, {"slack": 2.0}):
        with pytest.raises(gossamer.ArgumentError):
            sparsify_activations(model, **options)
    assert classes(model) == kinds


def test_the_order_of_a_sequential_stays() -> None:
    model, _ = sequential("relu")
    model = nn.Sequential(*model, nn.LayerNorm(16))
    sparsify_activations(model)
    assert list(model._modules) == ["0", "1", "2", "3"]
    assert list(densify(model)._modules) == ["0", "1", "2", "3"]
    assert type(model[1]) is nn.ReLU
