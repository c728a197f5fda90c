"""LoRA of peft on sparse layers: the dense formula, merges that keep the mask, files."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import ArgumentError, SparseLinear

peft = pytest.importorskip("peft")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of the library

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model  # noqa: E402

from gossamer.integrations.peft import LoraSparseLinear, with_sparse  # noqa: E402

PATTERNS = ["2:4", "2:4:v4", "75%", "block 4x4 50%"]
X = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def base(pattern: str = "2:4", **given: Any) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [SparseLinear(16, 32, pattern=pattern, **given), nn.ReLU(), nn.Linear(32, 4)]
    return nn.Sequential(*layers).double()


def config(**given: Any) -> LoraConfig:
    # Not zeros for B, so that an adapter does something.
    options = {"target_modules": ["0", "2"], "r": 2, "lora_alpha": 6, "init_lora_weights": False}
    return LoraConfig(**options | given)


def adapted(pattern: str = "2:4", **given: Any) -> Any:
    return get_peft_model(base(pattern), with_sparse(config(**given)))


def oracle(model: Any, x: Tensor) -> Tensor:
    """The dense formula."""
    first, last = model.base_model.model[0], model.base_model.model[2]
    sparse = first.base_layer
    down, up = (getattr(first, f"lora_{name}")["default"].weight.double() for name in "AB")
    weight = sparse.weight.to_dense() + 3.0 * (up @ down) * sparse.mask()
    return last(nn.functional.linear(x, weight, sparse.bias).relu())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_output_and_gradients_are_those_of_the_dense_formula(pattern: str) -> None:
    model = adapted(pattern)
    layer = model.base_model.model[0]
    assert type(layer) is LoraSparseLinear
    wanted = [p for p in model.parameters() if p.requires_grad]
    assert len(wanted) == 4  # two of each layer; the base does not train
    y, expected = model(X), oracle(model, X)
    torch.testing.assert_close(y, expected)
    for a, b in zip(
        torch.autograd.grad(y.square().sum(), wanted),
        torch.autograd.grad(expected.square().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    assert layer.base_layer.weight.values.grad is None


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("safe", [False, True])
def test_a_merge_computes_the_same_and_keeps_the_mask(pattern: str, safe: bool) -> None:
    model = adapted(pattern)
    y, mask = model(X), base(pattern)[0].mask()
    merged = model.merge_and_unload(safe_merge=safe)
    assert type(merged[0]) is SparseLinear
    assert torch.equal(merged[0].mask(), mask)
    torch.testing.assert_close(merged(X), y)


def test_merged_adapters_are_taken_away_again() -> None:
    model, before = adapted(), base()
    y = model(X)
    model.merge_adapter()
    torch.testing.assert_close(model(X), y)
    assert not torch.equal(
        model.base_model.model[0].base_layer.weight.values, before[0].weight.values
    )
    model.unmerge_adapter()
    torch.testing.assert_close(model(X), y)
    model.merge_adapter()
    with model.disable_adapter():  # unmerges
        torch.testing.assert_close(model(X), before(X))


def test_two_adapters() -> None:
    model = adapted()
    first = model(X)
    model.add_adapter("other", config(r=3))
    model.set_adapter("other")
    second = model(X)
    assert not torch.allclose(first, second)
    model.base_model.set_adapter(["default", "other"])
    both = model(X)
    assert not torch.allclose(both, second)
    torch.testing.assert_close(model.merge_and_unload(adapter_names=["default", "other"])(X), both)
    with pytest.raises(ArgumentError, match="adapter_names"):
        adapted().eval()(X, adapter_names=["default"] * 3)


def test_dropout_is_on_the_input_of_the_adapter_alone() -> None:
    model = adapted(lora_dropout=0.5)
    model.eval()
    torch.testing.assert_close(model(X), oracle(model, X))
    model.train()
    layer = model.base_model.model[0]
    torch.manual_seed(3)
    mean = torch.stack([layer(X) for _ in range(4000)]).mean(0)
    model.eval()
    torch.testing.assert_close(mean, layer(X), rtol=0.1, atol=0.15)
    nn.init.zeros_(layer.lora_B["default"].weight)
    model.train()
    torch.testing.assert_close(layer(X), layer.base_layer(X))


def test_a_file_goes_round(tmp_path: Path) -> None:
    model = adapted()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(
        base(), tmp_path, config=with_sparse(PeftConfig.from_pretrained(tmp_path))
    )
    assert torch.equal(loaded(X), model.eval()(X))
    with pytest.raises(ValueError, match="SparseLinear"):  # never a model without its adapters
        PeftModel.from_pretrained(base(), tmp_path)


@pytest.mark.parametrize(
    ("given", "words"),
    [({"lora_bias": True}, "has no bias"), ({"init_lora_weights": "pissa"}, "reads a dense")],
)
def test_what_needs_a_dense_weight_is_refused_at_the_start(
    given: dict[str, Any], words: str
) -> None:
    with pytest.raises(ArgumentError, match=words):
        with_sparse(config(**given))
    late = with_sparse(config(target_modules=["0"]))
    for name, value in given.items():
        setattr(late, name, value)
    model = base()
    kept = copy.deepcopy(model.state_dict())
    with pytest.raises(ArgumentError, match=words):
        get_peft_model(model, late)
    assert all(torch.equal(a, kept[name]) for name, a in model.state_dict().items())


def test_a_broken_adapter_is_not_merged() -> None:
    model = adapted()
    layer = model.base_model.model[0]
    with torch.no_grad():
        layer.lora_B["default"].weight[0, 0] = torch.nan
    before = layer.base_layer.weight.values.clone()
    with pytest.raises(ValueError, match="not finite"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.base_layer.weight.values, before)
    assert not layer.merged


def test_it_compiles_into_one_graph() -> None:
    torch.compiler.reset()
    model = adapted()
    run = torch.compile(model.base_model.model[0], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(X), model.base_model.model[0](X))


def test_bfloat16() -> None:
    model = get_peft_model(base().to(torch.bfloat16), with_sparse(config()))
    y = model(X.bfloat16())
    assert y.dtype == torch.bfloat16
    merged = model.merge_and_unload()
    assert merged[0].weight.dtype == torch.bfloat16
    torch.testing.assert_close(merged(X.bfloat16()), y, rtol=0.05, atol=0.05)
    assert gossamer.summary(merged)
