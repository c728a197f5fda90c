"""Tiny random models of transformers and torch, one per kind of feed-forward network."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gossamer.train.model import GPT, GPTConfig

WIDTH, HIDDEN, VOCABULARY = 16, 40, 32
Built = tuple[nn.Module, Callable[[nn.Module], Tensor]]


def _names(model: nn.Module) -> Built:
    ids = torch.randint(VOCABULARY, (2, 5))
    return model, lambda m: m(ids).logits


def llama_like(kind: str, activation: str, **more: object) -> Built:
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        hidden_act=activation,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
        **more,
    )
    return _names(getattr(transformers, f"{kind}ForCausalLM")(config))


def gpt2(activation: str) -> Built:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=8, n_embd=WIDTH, n_inner=HIDDEN, n_layer=2, n_head=2,
        activation_function=activation, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return _names(GPT2LMHeadModel(config))


def opt(activation: str) -> Built:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, word_embed_proj_dim=WIDTH, ffn_dim=HIDDEN,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16,
        activation_function=activation, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return _names(OPTForCausalLM(config))


def _encoder(activation: str) -> dict[str, object]:
    return {
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": activation,
    }


def bert(activation: str, head: str = "BertModel") -> Built:
    import transformers

    config = transformers.BertConfig(vocab_size=VOCABULARY, **_encoder(activation))
    ids = torch.randint(VOCABULARY, (2, 5))
    return getattr(transformers, head)(config), lambda m: m(ids)[0]


def vit(activation: str) -> Built:
    from transformers import ViTConfig, ViTModel

    pixels = torch.randn(2, 3, 8, 8)
    model = ViTModel(ViTConfig(image_size=8, patch_size=4, **_encoder(activation)))
    return model, lambda m: m(pixels.to(m.dtype)).last_hidden_state


def torch_layers(kind: str, activation: str) -> Built:
    layer = getattr(nn, f"Transformer{kind}Layer")(
        WIDTH, 2, HIDDEN, dropout=0.0, activation=activation, batch_first=True
    )
    model = getattr(nn, f"Transformer{kind}")(layer, 2)
    x = torch.randn(2, 5, WIDTH)

    def run(m: nn.Module) -> Tensor:
        y = x.to(next(m.parameters()).dtype)
        return m(y) if kind == "Encoder" else m(y, y)

    return model, run


def demo(activation: str) -> Built:
    model = GPT(GPTConfig(vocabulary=VOCABULARY, context=8, width=WIDTH, depth=2, heads=2))
    if activation == "relu":
        for block in model.blocks:
            block.mlp.activation = nn.ReLU()
    ids = torch.randint(VOCABULARY, (2, 5))
    return model, lambda m: m(ids)


def sequential(activation: str) -> Built:
    function = nn.ReLU() if activation == "relu" else nn.SiLU()
    model = nn.Sequential(nn.Linear(WIDTH, HIDDEN), function, nn.Linear(HIDDEN, WIDTH, bias=False))
    x = torch.randn(5, WIDTH)
    return model, lambda m: m(x.to(next(m.parameters()).dtype))


# Each takes the name of an activation.
MODELS: dict[str, Callable[[str], Built]] = {
    "llama": lambda a: llama_like("Llama", a, mlp_bias=True),
    "mistral": lambda a: llama_like("Mistral", a),
    "qwen": lambda a: llama_like("Qwen2", a),
    "gemma": lambda a: llama_like("Gemma", a, hidden_activation=a),
    "gpt2": gpt2,
    "opt": opt,
    "bert": bert,
    "vit": vit,
    "encoder": lambda a: torch_layers("Encoder", a),
    "decoder": lambda a: torch_layers("Decoder", a),
    "demo": demo,
    "sequential": sequential,
}
