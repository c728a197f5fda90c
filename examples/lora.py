"""LoRA of peft on a sparse base: the adapters are merged, and the mask stays.

python examples/lora.py [steps]
"""

import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import gossamer
from gossamer.integrations.peft import with_sparse


def main(steps: int = 50) -> tuple[list[float], float]:
    """Fine-tune adapters on one batch; return the losses, and how far the merged model is off."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    base = gossamer.sparsify(LlamaForCausalLM(config), "2:4", exclude=["lm_head"])
    masks = {n: m.mask() for n, m in base.named_modules() if isinstance(m, gossamer.SparseLinear)}

    lora = LoraConfig(target_modules=["q_proj", "v_proj", "up_proj", "down_proj"], r=8)
    model = get_peft_model(base, with_sparse(lora))
    model.print_trainable_parameters()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    batch = torch.randint(256, (4, 64))
    losses = []
    for _ in range(steps):
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    model.eval()
    with torch.no_grad():
        adapted = model(input_ids=batch).logits
        merged = model.merge_and_unload()
        off = (merged(input_ids=batch).logits - adapted).abs().max().item()
    same = all(torch.equal(merged.get_submodule(n).mask(), mask) for n, mask in masks.items())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; the merged model differs by {off:.1e}")
    print(f"its masks are {'the same' if same else 'others'}")
    return losses, off


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
