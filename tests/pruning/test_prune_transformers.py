"""prune() on transformers: torch's own layers and models of the transformers library."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer.errors import ShapeError
from gossamer.pruning import FewerHeads, HeadAttention, prune
from gossamer.pruning.report import cost_of
from gossamer.train.model import GPT, GPTConfig
from support.submodels import close, redrawn, zeroed

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, HIDDEN, HEADS, VOCABULARY = 16, 40, 4, 32
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": 16,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}


class SequenceFirst(nn.Module):
    """Attention whose batch is the second axis, between layers."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 3)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, **options)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.attention(x, x, x, need_weights=False)[0])


def of_transformers(kind: str, **more: Any) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        transformers = pytest.importorskip("transformers")
        family = kind.removesuffix("ForCausalLM").removesuffix("ForImageClassification")
        family = family.removesuffix("Model").removesuffix("LMHead")
        config = getattr(transformers, f"{family}Config")(**COMMON | more)
        model = getattr(transformers, kind)(config)
        if family == "ViT":
            return model, torch.randn(2, 3, 16, 16).double()
        return model, torch.randint(VOCABULARY, (2, 7))

    return make


def of_torch(make: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> Callable[[], Any]:
    return lambda: (make(), tuple(torch.randn(shape).double() for shape in shapes))


LAYER = {"dim_feedforward": HIDDEN, "batch_first": True}
EIGHT = {"num_key_value_heads": 2, "head_dim": 8}
MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "Llama": of_transformers("LlamaForCausalLM", **EIGHT),
    "Llama, eager": of_transformers("LlamaForCausalLM", **EIGHT, attn_implementation="eager"),
    "Qwen3": of_transformers("Qwen3ForCausalLM", **EIGHT),
    "Mistral": of_transformers("MistralForCausalLM", **EIGHT),
    "GPT-2": of_transformers("GPT2LMHeadModel", n_inner=HIDDEN),
    "BERT": of_transformers("BertModel"),
    "ViT": of_transformers("ViTForImageClassification", image_size=16, patch_size=8),
    "Mixtral": of_transformers(
        "MixtralForCausalLM",
        **EIGHT,
        num_local_experts=3,
        num_experts_per_tok=2,
        experts_implementation="eager",
    ),
    "encoder layer": of_torch(lambda: nn.TransformerEncoderLayer(16, 4, **LAYER), (2, 5, 16)),
    "encoder, norm first": of_torch(
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 4, norm_first=True, activation="gelu", **LAYER),
            2,
            enable_nested_tensor=False,
        ),
        (2, 5, 16),
    ),
    "encoder and decoder": of_torch(
        lambda: nn.Transformer(16, 4, 1, 2, HIDDEN, batch_first=True), (2, 5, 16), (2, 3, 16)
    ),
    "sequence first": of_torch(SequenceFirst, (5, 2, 6)),
    "without bias": of_torch(lambda: SequenceFirst(bias=False, batch_first=True), (2, 5, 6)),
    "demo": lambda: (
        GPT(GPTConfig(VOCABULARY, 16, WIDTH, depth=2, heads=HEADS)),
        torch.randint(VOCABULARY, (2, 7)),
    ),
}


def drawn(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model, x = MODELS[name]()
    return redrawn(model).eval(), x


@pytest.mark.parametrize("name", MODELS)
def test_the_result_is_the_model_with_zeroed_groups(name: str) -> None:
    model, x = drawn(name)
    inputs = x if isinstance(x, tuple) else (x,)
    smaller, report = prune(model, x, 0.7, report=True)
    costs = [cost_of(m, inputs, "flops") for m in (model, smaller)]
    assert 0.55 * costs[0] < costs[1] <= 0.7 * costs[0]
    others = ("they are outputs of the model", "they meet a tensor whose features are not known")
    others += ("functions read it, outside of a layer with a rule",)
    tied = ("it shares a weight with another module",) if name == "GPT-2" else ()
    assert all(note.endswith(others + tied) for note in report.notes), report.notes
    assert not any(part in note for note in report.notes for part in ("q_proj", "fc1", "linear1"))

    expected = zeroed(model, smaller)
    for length in (0, 2):  # other lengths, and another batch
        given = tuple(
            y[:1, : y.shape[1] - length] if length and name not in ("ViT", "sequence first") else y
            for y in inputs
        )
        with torch.no_grad():
            # Models of the Llama kind compute their norms in float32.
            single = name.startswith(("Llama", "Qwen", "Mistral", "Mixtral"))
            close(smaller(*given), expected(*given), 1e-4 if single else 1e-11)
    loss = next(t for t in _tensors(smaller(*inputs))).square().mean()
    loss.backward()
    names = {n for n, p in smaller.named_parameters() if p.grad is None}
    assert names == {n for n, _ in smaller.named_parameters() if n.startswith("pooler")}


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [value for value in output.values() if isinstance(value, Tensor)][:1]


def heads_of(model: nn.Module) -> list[int]:
    found = [m for m in model.modules() if isinstance(m, FewerHeads | HeadAttention)]
    return [m.num_heads if isinstance(m, FewerHeads) else m.heads for m in found]


def test_key_and_value_heads_go_with_their_query_heads() -> None:
    model, x = drawn("Llama")
    with torch.no_grad():
        for (
            layer
        ) in model.model.layers:  # the second key and value head is small, but not its queries
            layer.self_attn.k_proj.weight[8:] *= 1e-3
            layer.self_attn.v_proj.weight[8:] *= 1e-3
            layer.self_attn.o_proj.weight[:, 16:] *= 1e-3
    smaller = prune(model, x, 0.6)
    for before, layer in zip(model.model.layers, smaller.model.layers, strict=True):
        assert torch.equal(layer.self_attn.k_proj.weight, before.self_attn.k_proj.weight[:8])
        assert torch.equal(layer.self_attn.q_proj.weight, before.self_attn.q_proj.weight[:16])
    tokens = smaller.float().generate(x[:1], max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert tokens.shape == (1, 11)


def test_sizes_of_heads_and_hidden_layers() -> None:
    model, x = drawn("encoder, norm first")
    smaller = prune(model, x, 0.5, round_to=8)
    assert heads_of(smaller) == [2, 2]
    assert all(layer.linear1.out_features % 8 == 0 for layer in smaller.layers)
    demo, tokens = drawn("demo")
    assert heads_of(prune(demo, tokens, 0.5)) in ([2, 2], [1, 2], [2, 1])
    mixtral, tokens = drawn("Mixtral")
    mixtral.float().set_experts_implementation("grouped_mm")
    small = prune(mixtral, tokens, 0.6)
    for layer in small.model.layers:  # torch's grouped product takes rows of 16 bytes
        assert layer.mlp.experts.intermediate_dim % 4 == 0
        assert layer.mlp.experts.down_proj.shape[2] == layer.mlp.experts.intermediate_dim < HIDDEN


@pytest.mark.parametrize("padding", [None, torch.bool, torch.float64])
@pytest.mark.parametrize("mask", [None, "causal", "each head"])
@pytest.mark.parametrize("average", [True, False])
def test_fewer_heads_is_torchs_attention(
    padding: torch.dtype | None, mask: str | None, average: bool
) -> None:
    """With all heads: masks, weights, and one sequence alone, as torch computes them."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(16, 4, batch_first=True).double()
    ours = FewerHeads(16, 4, 4).double()
    ours.load_state_dict(theirs.state_dict())
    query, key = torch.randn(2, 3, 16).double(), torch.randn(2, 5, 16).double()
    options: dict[str, Any] = {"average_attn_weights": average}
    if padding is not None:
        hidden = torch.tensor([[False] * 5, [False, False, True, True, True]])
        options["key_padding_mask"] = hidden if padding is torch.bool else -9.0 * hidden.to(padding)
    if mask is not None:
        later = torch.ones(3, 5).triu(1).bool()
        if padding is torch.float64:
            later = -7.0 * later.to(padding)
        options["attn_mask"] = later if mask == "causal" else later.expand(8, 3, 5)
    for need in (True, False):
        expected = theirs(query, key, key, need_weights=need, **options)
        found = ours(query, key, key, need_weights=need, **options)
        close(found, expected, 1e-12)
    if mask != "each head":
        options.pop("key_padding_mask", None)
        close(
            ours(query[0], key[0], key[0], **options),
            theirs(query[0], key[0], key[0], **options),
            1e-12,
        )


def test_a_mask_for_other_heads_is_refused() -> None:
    attention = FewerHeads(8, 2, 2)
    x = torch.ones(3, 4, 8)
    with pytest.raises(ShapeError, match="a mask per head has 6 as its first size"):
        attention(x, x, x, attn_mask=torch.zeros(12, 4, 4))


def test_other_shapes_are_refused() -> None:
    attention, x = FewerHeads(8, 2, 2), torch.ones(3, 4, 8)
    for given in ((x, x[0], x), (x[..., :6],) * 3, (x[None],) * 3):
        with pytest.raises(ShapeError, match=r"three of \[batch, length, 8\] or three of"):
            attention(*given)


def test_fewer_heads_is_one_graph_of_torch_compile() -> None:
    torch.manual_seed(0)
    attention, x = FewerHeads(8, 2, 2), torch.randn(3, 4, 8)
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    close(compiled(x, x, x, need_weights=False), attention(x, x, x, need_weights=False), 1e-6)


def test_attention_that_cannot_lose_heads_keeps_them() -> None:
    torch.manual_seed(0)
    for options in ({"add_zero_attn": True}, {"add_bias_kv": True}):
        model = SequenceFirst(**options)
        smaller, report = prune(model, torch.randn(5, 2, 6), 1.0, report=True)
        assert type(smaller.attention) is nn.MultiheadAttention
        assert any(note.startswith("attention: ") for note in report.notes)


def test_weights_of_attention_in_the_output_keep_the_heads() -> None:
    """They are means over the heads: the output would be another one."""

    class Net(SequenceFirst):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 6))

        def forward(self, x: Tensor) -> Any:
            x = self.first(self.mlp(x))
            y, shares = self.attention(x, x, x)
            return self.last(x + y), shares

    model = Net()
    smaller, report = prune(model, torch.randn(5, 2, 6), 0.9, report=True)
    assert type(smaller.attention) is nn.MultiheadAttention
    assert any("attention: without some of these features" in note for note in report.notes)
    assert smaller.mlp[0].out_features < 40
