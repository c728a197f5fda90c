"""A Hugging Face model, built from a configuration (nothing is downloaded), made sparse.

python examples/hugging_face.py [steps]
"""

import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import gossamer


def main(steps: int = 50) -> list[float]:
    """Train on one repeated batch; return the loss of every step."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=256,
        n_positions=64,
        n_embd=128,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    # GPT-2's Conv1D layers are converted like nn.Linear; the head shares the embedding's weight.
    gossamer.sparsify(model, "2:4:v4", exclude=["lm_head"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = torch.randint(256, (4, 64))
    losses = []
    for _ in range(steps):
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(gossamer.summary(model, optimizer))
    text = model.generate(batch[:1, :8], max_new_tokens=8, do_sample=False, pad_token_id=0)
    print(f"generated {text.shape[1] - 8} tokens")
    return losses


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
