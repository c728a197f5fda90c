"""The experts of transformers: one sparse weight per expert, tokens routed as the model does."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gossamer
from gossamer import densify, recipes, sparsify
from gossamer.nn import SparseLinear, SparseParameter

transformers = pytest.importorskip("transformers")
if not hasattr(transformers, "GptOssConfig"):
    pytest.skip("experts are lists of layers here", allow_module_level=True)

SIZES = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 32, "head_dim": 8, "num_experts_per_tok": 2,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": {
        "num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8,
    },
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 8},
    "GptOss": {"num_local_experts": 4, "layer_types": ["full_attention"]},
    "Olmoe": {"num_experts": 4},
}  # fmt: skip
IDS = torch.tensor([[1, 5, 9, 2, 30, 11], [4, 4, 8, 17, 3, 0]])


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES, **OWN[kind])
    return getattr(transformers, f"{kind}ForCausalLM")(config).double().eval()


def use(model: nn.Module, how: str) -> None:
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._experts_implementation = how


def sparse(kind: str, pattern: str = "2:4") -> nn.Module:
    return sparsify(made(kind), pattern, exclude="lm_head")


@pytest.mark.parametrize("how", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("kind", OWN)
def test_forward_and_backward_are_those_of_the_masked_dense_model(kind: str, how: str) -> None:
    model = sparse(kind)
    wholes = SparseParameter.find_in(model)
    assert [len(list(whole.children())) for whole in wholes] == [4, 4]
    assert all(type(part) is SparseLinear for whole in wholes for part in whole.children())
    assert {whole.turned for whole in wholes} == {kind == "GptOss"}
    dense = densify(copy.deepcopy(model))
    assert [type(m) for m in dense.modules()] == [type(m) for m in made(kind).modules()]
    use(model, how)
    use(dense, "eager")  # grouped_mm of torch knows no float64
    for m in (model, dense):
        m(IDS, labels=IDS).loss.backward()
    torch.testing.assert_close(model(IDS).logits, dense(IDS).logits)
    grads = {name: p.grad for name, p in dense.named_parameters()}
    for name, whole in model.named_modules():
        if isinstance(whole, SparseParameter):
            for i, part in enumerate(whole.children()):
                grad = grads[name][i].t() if whole.turned else grads[name][i]
                kept = gossamer.backend.gather(grad.contiguous(), part.structure)
                mine = part.weight.values.grad
                torch.testing.assert_close(torch.zeros_like(kept) if mine is None else mine, kept)


@pytest.mark.parametrize("kind", ["Mixtral", "GptOss"])
def test_folders(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("gossamer.integrations.transformers")
    model = sparse(kind)
    expected = model(IDS).logits
    gossamer.save(model, tmp_path / "own")
    torch.testing.assert_close(gossamer.load(tmp_path / "own")(IDS).logits, expected)
    model.save_pretrained(tmp_path / "theirs")
    loaded = type(model).from_pretrained(tmp_path / "theirs")
    assert SparseParameter.find_in(loaded)
    torch.testing.assert_close(loaded.double()(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    # A dense model is saved in the format of transformers again.
    densify(model).save_pretrained(tmp_path / "dense")
    again = type(model).from_pretrained(tmp_path / "dense")
    use(again, "eager")
    torch.testing.assert_close(again.double()(IDS).logits, expected, rtol=1e-5, atol=1e-5)


def test_masks_of_experts_move() -> None:
    model = made("Mixtral").train()
    recipe = recipes.RigL("50%", every=1)
    recipe.prepare(model, exclude="lm_head")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe.attach(model, optimizer, total_steps=8)
    experts = {n: m for n, m in recipe.layers.items() if "experts" in n}
    assert len(experts) == 8
    before = {name: layer.mask() for name, layer in experts.items()}
    for _ in range(4):
        optimizer.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
    assert any(not torch.equal(before[n], layer.mask()) for n, layer in experts.items())
    recipe.finish(model)


@pytest.mark.parametrize("how", ["@", "F.linear"])
def test_other_experts_by_name(how: str) -> None:
    """As Llama 4 and JetMoe multiply by theirs, whose modules do not say how they store them."""
    torch.manual_seed(0)
    if how == "@":
        config = transformers.Llama4TextConfig(
            **{**SIZES, "num_experts_per_tok": 1}, num_local_experts=4, intermediate_size_mlp=16
        )
        experts = transformers.models.llama4.modeling_llama4.Llama4TextExperts(config)
        args: tuple[Any, ...] = (torch.randn(8, 16),)
    else:
        experts = transformers.models.jetmoe.modeling_jetmoe.JetMoeParallelExperts(4, 16, 8)
        args = (torch.randn(8, 16), [3, 0, 4, 1])
    for parameter in experts.parameters():
        nn.init.normal_(parameter)
    with pytest.raises(gossamer.PatternError, match=r"parameters= swaps them"):
        sparsify(experts, "1:4")
    sparsify(experts, "1:4", parameters="*", example=args)
    wholes = SparseParameter.find_in(experts)
    assert {(whole.form, whole.turned) for whole in wholes} == {("stack", how == "@")}
    y = experts(*args)
    torch.testing.assert_close(densify(experts)(*args), y)


def test_routers_stay_dense_by_design() -> None:
    model = sparsify(made("Mixtral"), "2:4", exclude="lm_head")
    kinds = [kind.what for kind in gossamer.summary(model).dense_kinds]
    assert "routers" in kinds


def test_an_expert_that_does_not_fit_is_named() -> None:
    model = made("Qwen3Moe")
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(
        gossamer.PatternError, match=r"down_proj\.0' got in_features=8.*multiple of 16"
    ):
        sparsify(model, "2:16", include="*.experts")
    assert [type(m) for m in model.modules()] == kinds
