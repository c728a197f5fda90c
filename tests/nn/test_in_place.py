"""Surgery loses nothing: what hangs on a layer, or holds it, is carried over or refused by name."""

import copy
import functools
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import gossamer
from gossamer import SparseLinear, densify, recipes, sparsify
from gossamer.nn import sparsify_activations
from support.layers import Conv1D

KINDS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(16, 16),
    "conv1d of transformers": lambda: Conv1D(16, 16),
    "conv1d": lambda: nn.Conv1d(16, 16, 3, padding=1),
    "conv2d": lambda: nn.Conv2d(16, 16, 3, padding=1),
}


def example_of(kind: str) -> torch.Tensor:
    torch.manual_seed(1)
    shape = {"conv1d": (2, 16, 5), "conv2d": (2, 16, 5, 5)}.get(kind, (2, 16))
    return torch.randn(shape)


def there_and_back(model: nn.Module) -> list[tuple[str, Callable[[nn.Module], nn.Module]]]:
    recipe = recipes.STE("2:4")
    return [
        ("sparsify", lambda m: sparsify(m, "2:4")),
        ("densify", densify),
        ("prepare", lambda m: recipe.prepare(m)),
        ("finish", lambda m: recipe.finish(m)),
        ("densify again", densify),
    ]


def follow(kind: str, check: Callable[[nn.Module, str], None], change: Callable[..., Any]) -> None:
    """Hang something on a layer, and check it after each step there and back."""
    model = nn.Sequential(KINDS[kind](), nn.Linear(16, 16))
    change(model[0])
    for name, step in there_and_back(model):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step(model)
        check(model[0], name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_object_stays_with_all_that_hangs_on_it(kind: str) -> None:
    held: list[nn.Module] = []
    calls: list[str] = []
    extra, scale = nn.LayerNorm(4), torch.ones(3)

    def change(layer: nn.Module) -> None:
        held.append(layer)
        layer.tag = "mine"
        layer.eval()
        layer.register_buffer("scale", scale, persistent=False)
        layer.register_parameter("gain", nn.Parameter(torch.ones(1)))
        layer.add_module("extra", extra)
        layer.weight.no_weight_decay = True
        layer.bias.lr_scale = 0.5
        layer.register_forward_hook(lambda *_: calls.append("forward"))
        layer.register_forward_pre_hook(
            lambda m, args, kwargs: calls.append("pre"), with_kwargs=True
        )
        layer.register_full_backward_hook(lambda *_: calls.append("backward"))
        layer.register_full_backward_pre_hook(lambda *_: calls.append("backward pre"))
        layer.register_state_dict_pre_hook(lambda *_: calls.append("state pre"))
        layer.register_state_dict_post_hook(lambda *_: calls.append("state"))
        layer.register_load_state_dict_pre_hook(lambda *_: calls.append("load pre"))
        layer.register_load_state_dict_post_hook(lambda *_: calls.append("load"))

    def check(layer: nn.Module, step: str) -> None:
        assert layer is held[0], step
        assert layer.tag == "mine"
        assert not layer.training
        assert layer.scale is scale
        assert layer.extra is extra
        assert layer.gain.numel() == 1
        assert "scale" not in layer.state_dict()
        named = dict(layer.named_parameters())
        tagged = [name for name, p in named.items() if hasattr(p, "no_weight_decay")]
        assert tagged == ["weight" if "weight" in named else "weight.values"], step
        assert layer.weight.no_weight_decay
        assert [n for n, p in named.items() if hasattr(p, "lr_scale")] == ["bias"], step
        calls.clear()
        layer(example_of(kind).requires_grad_()).sum().backward()
        layer.load_state_dict(layer.state_dict())
        assert set(calls) == {
            "forward", "pre", "backward", "backward pre", "state pre", "state", "load pre", "load",
        }  # fmt: skip
        copied = copy.deepcopy(layer)
        assert type(copied) is type(layer)
        assert copied.tag == "mine"

    follow(kind, check, change)


@dataclass
class Held:
    """A dataclass that holds a layer."""

    layer: nn.Module


HOLDERS: dict[str, Callable[[nn.Module], Any]] = {
    "list": lambda layer: [layer],
    "tuple": lambda layer: (1, (layer,)),
    "dict": lambda layer: {"a": [layer]},
    "dataclass": lambda layer: Held(layer),
    "partial": lambda layer: functools.partial(map, layer),
    "method": lambda layer: layer.forward,
}


class Holder(nn.Module):
    """Uses a layer by a plain attribute as well."""

    def __init__(self, layer: nn.Module, hold: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.layer = layer
        self.held = hold(layer)


@pytest.mark.parametrize("how", HOLDERS)
def test_what_is_held_elsewhere_is_the_same_layer_there(how: str) -> None:
    layer = nn.Linear(16, 16)
    model = Holder(layer, HOLDERS[how])
    sparsify(model, "2:4")
    assert model.layer is layer
    assert type(layer) is SparseLinear
    densify(model)
    assert type(layer) is nn.Linear


@pytest.mark.parametrize("how", HOLDERS)
def test_a_network_that_is_replaced_and_held_elsewhere_is_refused(how: str) -> None:
    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
    model = Holder(network, HOLDERS[how])
    with pytest.raises(gossamer.PatternError, match="'layer' is also held by held"):
        sparsify_activations(model)
    assert model.layer is network
    assert type(network[0]) is nn.Linear


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_of_accelerate(kind: str) -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    seen: list[str] = []

    class Hook(hooks.ModelHook):
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            seen.append("pre")
            return args, kwargs

        def post_forward(self, module: nn.Module, output: Any) -> Any:
            seen.append("post")
            return output + 1

    layer = KINDS[kind]()
    hooks.add_hook_to_module(layer, Hook())
    x = example_of(kind)
    sparsify(layer, "2:4")
    bare = copy.deepcopy(layer)
    hooks.remove_hook_from_module(bare)
    torch.testing.assert_close(layer(x), bare(x) + 1)
    assert seen == ["pre", "post"]
    dense = densify(copy.deepcopy(layer))
    torch.testing.assert_close(dense(x), layer(x))
    assert type(dense) is not type(layer)
    hooks.remove_hook_from_module(layer)
    torch.testing.assert_close(layer(x), bare(x))


REFUSED: dict[str, tuple[str, Callable[[nn.Linear], Any]]] = {
    "own forward": ("forward of its own", lambda m: setattr(m, "forward", lambda x: x)),
    "partial forward": (
        "forward of its own",
        lambda m: setattr(m, "forward", functools.partial(nn.Linear.forward, m)),
    ),
    "hook on the weight": ("gradient hook", lambda m: m.weight.register_hook(lambda g: g)),
    "hook after accumulation": (
        "gradient hook",
        lambda m: m.weight.register_post_accumulate_grad_hook(lambda p: None),
    ),
    "a name of ours": ("'mask' set on it", lambda m: setattr(m, "mask", 1)),
    "a property of ours": ("'density' set on it", lambda m: setattr(m, "density", 1)),
    "a buffer of ours": ("'pattern' set", lambda m: m.register_buffer("pattern", torch.ones(1))),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("how", ["sparsify", "prepare"])
def test_what_cannot_be_carried_is_refused_and_nothing_changes(case: str, how: str) -> None:
    text, change = REFUSED[case]
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    change(model[1])
    before, state = dict(vars(model[1])), copy.deepcopy(model.state_dict())
    with pytest.raises(gossamer.PatternError, match=f"layer '1' has .*{text}"):
        sparsify(model, "2:4") if how == "sparsify" else recipes.SET("2:4").prepare(model)
    assert [type(part) for part in model] == [nn.Linear, nn.Linear]
    assert vars(model[1]) == before
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    sparsify(model, "2:4", exclude="1")


def test_hooks_on_parameters_that_stay_stay() -> None:
    model = nn.Sequential(nn.Linear(16, 16))
    seen: list[str] = []
    model[0].bias.register_hook(lambda g: seen.append("bias"))
    sparsify(model, "2:4")
    model(torch.ones(1, 16)).sum().backward()
    assert seen == ["bias"]
    model[0].weight.values.register_hook(lambda g: g)
    with pytest.raises(gossamer.PatternError, match=r"gradient hook on weight\.values"):
        densify(model)
    assert type(model[0]) is SparseLinear


def test_a_dense_weight_under_a_mask_keeps_its_hook() -> None:
    model = nn.Sequential(nn.Linear(16, 16))
    seen: list[str] = []
    model[0].weight.register_hook(lambda g: seen.append("weight"))
    recipes.STE("2:4").prepare(model)
    model(torch.ones(1, 16)).sum().backward()
    assert seen == ["weight"]


def test_a_compiled_model_follows() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(3, 16)
    compiled(x)
    for change in (lambda m: sparsify(m, "2:4"), densify):
        change(model)
        torch.testing.assert_close(compiled(x), model(x))
    model[0].compile(backend="eager")
    model(x)
    sparsify(model, "2:4")
    dense = model[0].weight.to_dense()
    torch.testing.assert_close(model[0](x), x @ dense.T + model[0].bias)


def test_a_changed_layer_is_pickled() -> None:
    model = sparsify(nn.Sequential(nn.Linear(16, 16)), "2:4")
    x = torch.randn(2, 16)
    copied = pickle.loads(pickle.dumps(model))  # noqa: S301
    torch.testing.assert_close(copied(x), model(x))


# ---- weights that torch computes ---------------------------------------------------------------


def pruned(kind: str) -> nn.Module:
    torch.manual_seed(0)
    layer = KINDS[kind]()
    prune.l1_unstructured(layer, "weight", 0.5)
    prune.random_unstructured(layer, "weight", 0.5)  # a container of two
    with torch.no_grad():  # a zero inside the mask is kept
        layer.weight_orig.view(-1)[layer.weight_mask.view(-1).nonzero()[0]] = 0
    layer.weight_orig.no_weight_decay = True
    return layer


@pytest.mark.filterwarnings("ignore:sparsify. outputs that read nothing")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", ["nonzeros", "nonzeros:v4"])
def test_a_pruned_layer_keeps_exactly_its_mask(kind: str, pattern: str) -> None:
    model = nn.Sequential(pruned(kind))
    layer = model[0]
    seen: list[str] = []
    layer.register_forward_pre_hook(lambda *_: seen.append("pre"))
    x = example_of(kind)
    expected, kept = model(x), int(layer.weight_mask.sum())
    sparsify(model, pattern)
    torch.testing.assert_close(model(x), expected)
    assert model[0] is layer
    assert layer.weight.nnz == kept if pattern == "nonzeros" else layer.weight.nnz >= kept
    assert set(layer.state_dict()) == {f"weight.{name}" for name in layer.weight.state_dict()} | {
        "bias"
    }
    assert layer.weight.values.no_weight_decay
    assert len(layer._forward_pre_hooks) == 1
    assert seen == ["pre", "pre"]
    densify(model)
    torch.testing.assert_close(model(x), expected)
    assert not prune.is_pruned(layer)


COMPUTED: dict[str, tuple[str, Callable[[nn.Module], Any]]] = {
    "weight norm": ("computed by weight_norm; call .*remove_param", parametrizations.weight_norm),
    "spectral": ("computed by spectral_norm; call .*remove_param", parametrizations.spectral_norm),
    "orthogonal": ("computed by _Orthogonal; call .*remove_param", parametrizations.orthogonal),
    "own": (
        "computed by ReLU; call .*remove_param",
        lambda m: parametrize.register_parametrization(m, "weight", nn.ReLU()),
    ),
    "old spectral": ("computed by spectral_norm; call .*remove_sp", nn.utils.spectral_norm),
    "pruned": (
        "pruned by torch.nn.utils.prune; the pattern .nonzeros.",
        lambda m: prune.l1_unstructured(m, "weight", 0.5),
    ),
    "pruned bias": (
        r"its bias is pruned; call torch.nn.utils.prune.remove\(layer, 'bias'\)",
        lambda m: prune.l1_unstructured(m, "bias", 0.5),
    ),
    "pruned weight and bias": (
        "its bias is pruned",
        lambda m: [prune.l1_unstructured(m, name, 0.5) for name in ("weight", "bias")],
    ),
}


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
@pytest.mark.parametrize("case", COMPUTED)
def test_computed_weights_stay_dense_and_the_warning_says_what_to_do(case: str, kind: str) -> None:
    text, change = COMPUTED[case]
    model = nn.Sequential(KINDS[kind](), KINDS[kind]())
    change(model[0])
    model.eval()  # spectral norms move in each training call
    before, x = type(model[0]), example_of(kind)
    expected = model[0](x)
    with pytest.warns(UserWarning, match=rf"left dense: 0 \({text}"):
        sparsify(model, "2:4")
    assert type(model[0]) is before
    torch.testing.assert_close(model[0](x), expected)


def test_the_former_weight_norm_too() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(16, 16)), nn.Linear(16, 16))
    with pytest.warns(UserWarning, match=r"computed by weight_norm; .*remove_weight_norm"):
        sparsify(model, "2:4")


def test_recipes_leave_pruned_layers() -> None:
    model = nn.Sequential(pruned("linear"), nn.Linear(16, 16))
    with pytest.warns(UserWarning, match="pruned by torch.nn.utils.prune"):
        recipes.SET("2:4").prepare(model)
    assert type(model[0]) is nn.Linear
