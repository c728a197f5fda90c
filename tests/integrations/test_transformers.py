"""from_pretrained of folders with sparse layers: the same model or an error, no random weights."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import gossamer
from gossamer import recipes

transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.fusion_mapping")  # the versions that the integration serves
pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.arange(12)[None] % 64


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture
def registered() -> None:
    import gossamer.integrations.transformers  # noqa: F401


@pytest.fixture
def unregistered(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.quantizers import auto

    monkeypatch.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "gossamer", raising=False)
    monkeypatch.delitem(auto.AUTO_QUANTIZER_MAPPING, "gossamer", raising=False)


def llama(activation: str = "silu") -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
        hidden_act=activation, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


def tied() -> nn.Module:
    model = llama()
    layers = model.model.layers
    layers[1].mlp.gate_proj.weight = layers[0].mlp.gate_proj.weight
    return gossamer.sparsify(model, "2:4", exclude="lm_head")


def double() -> nn.Module:
    recipe = recipes.make("slope-adapters", "2:4")
    return recipe.prepare(llama(), exclude="lm_head").eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: gossamer.sparsify(llama(), "2:4:v4", exclude="lm_head"),
    "gpt2": lambda: gossamer.sparsify(gpt2(), "75%", exclude="lm_head"),
    "part": lambda: (m := llama(), gossamer.sparsify(m.model.layers[0].self_attn, "2:4"))[0],
    "tied": tied,
    "double": double,
    "masked": lambda: recipes.make("ste", "2:4").prepare(llama(), exclude="lm_head").eval(),
    "activations": lambda: gossamer.sparsify_activations(llama("relu")).eval(),
    "relufied": lambda: gossamer.sparsify_activations(llama(), relufy=True).eval(),
}
SAVES: dict[str, Callable[[nn.Module, Path], object]] = {
    "save": gossamer.save,
    "save_pretrained": lambda model, folder: model.save_pretrained(folder),
    "shards": lambda model, folder: model.save_pretrained(folder, max_shard_size="20kB"),
}


# transformers itself refuses to save tied weights that a class does not declare.
CASES = [(n, s) for n in MODELS for s in SAVES if (n, s) == ("tied", "save") or n != "tied"]


@pytest.mark.parametrize(("name", "save"), CASES)
def test_a_folder_gives_the_same_model(
    name: str, save: str, registered: None, tmp_path: Path
) -> None:
    model = MODELS[name]()
    expected = model(IDS).logits
    SAVES[save](model, tmp_path)
    other, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert name == "tied" or not any(info.values())
    assert str(other) == str(model)
    torch.testing.assert_close(other(IDS).logits, expected, rtol=0, atol=0)
    assert torch.equal(gossamer.load(tmp_path)(IDS).logits, expected)
    theirs = other.state_dict()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, theirs[key]), key
    if name == "tied":
        first, second = (layer.mlp.gate_proj.weight for layer in other.model.layers)
        assert first is second


@pytest.mark.parametrize(("name", "save"), CASES[::2])
def test_without_the_integration_no_model_is_made(
    name: str, save: str, unregistered: None, tmp_path: Path
) -> None:
    SAVES[save](MODELS[name](), tmp_path)
    for kind in (transformers.AutoModelForCausalLM, transformers.AutoModel):
        with pytest.raises(ValueError, match=r"import gossamer\.integrations\.transformers"):
            kind.from_pretrained(tmp_path)


def test_a_loaded_model_is_an_ordinary_one(registered: None, tmp_path: Path) -> None:
    MODELS["llama"]().save_pretrained(tmp_path)
    half = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert not half.is_quantized
    assert not hasattr(half, "hf_quantizer")
    half(IDS, labels=IDS).loss.backward()
    half.save_pretrained(tmp_path / "again")
    again = transformers.AutoModel.from_pretrained(tmp_path / "again")  # the base alone
    assert torch.equal(again(IDS)[0], half.model(IDS)[0])
    gossamer.densify(half)
    half.save_pretrained(tmp_path / "dense")
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert not {"quantization_config", "fusion_config"} & config.keys()
    dense = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert type(dense.model.layers[0].mlp.up_proj) is nn.Linear


def test_a_dense_model_with_the_same_configuration_stays_dense(tmp_path: Path) -> None:
    dense = llama()
    sparse = gossamer.sparsify(type(dense)(dense.config), "2:4", exclude="lm_head")
    assert sparse.model.config is sparse.config
    dense.save_pretrained(tmp_path)
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(other(IDS).logits, dense(IDS).logits)


def test_a_damaged_folder_is_refused(registered: None, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    MODELS["llama"]().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight.indices"
    for damage in (state | {name: torch.full_like(state[name], 255)}, without(state, name)):
        save_file(damage, file, {"format": "pt"})
        with pytest.raises(gossamer.GossamerError, match=r"layers\.0\.mlp\.up_proj"):
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def without(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in state.items() if key != name}
