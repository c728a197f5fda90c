"""A training step of GPT-2 small beside the same step dense, in float32 and in bfloat16.

The model is transformers' GPT2LMHeadModel with random weights and without dropout. The linear
layers of its blocks are sparse; embeddings and the head, which share a weight, stay dense. A step
is loss, gradients and fused AdamW. bfloat16 is torch's autocast, and is measured where the
processor multiplies bfloat16. What no sparse layer can exceed is measured beside: the same model
whose sparse layers cost nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import gossamer
from bench.harness.bars import Bar
from bench.harness.contest import WrongResultError, check_answer, package
from bench.harness.machine import multiplies_bfloat16
from bench.harness.plan import Job, Plan, quick
from bench.harness.record import GOSSAMER, Key, Record
from bench.harness.training import SEED
from gossamer.nn import SparseLinear
from gossamer.timing import interleaved

GROUP = "models"
LIBRARY = "transformers"
STEP, DENSE, FREE = "train step", "dense", "layers that cost nothing"
PATTERNS = ("2:4:v4", "1:4:v4", "90%")
FLOAT32, BFLOAT16 = "float32", "bfloat16"
# Times faster than the dense step, where a processor multiplies bfloat16.
BARS = tuple(
    Bar(STEP, (DENSE,), bound, patterns=(pattern,), dtype=BFLOAT16, words=f"≥ {bound:g}×")
    for pattern, bound in (("2:4:v4", 1.25), ("1:4:v4", 1.7))
)
# Of the logits, relative to the largest.
TOLERANCE = {FLOAT32: 1e-4, BFLOAT16: 5e-2}


@dataclass(frozen=True)
class Scope:
    """The model and what it trains on.

    Args:
        width: of the embedding.
        depth: number of blocks.
        heads: of the attention.
        vocabulary: number of tokens.
        batch: sequences per step.
        context: tokens of a sequence.
        rounds: steps of each model that are timed.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    vocabulary: int = 50257
    batch: int = 2
    context: int = 256
    rounds: int = 5

    @property
    def shape(self) -> str:
        """Text of the sizes."""
        return f"GPT-2 {self.width}x{self.depth}, {self.batch}x{self.context}"


FULL = Plan(Scope())
QUICK = quick(Scope(width=64, depth=1, heads=2, vocabulary=256, batch=2, context=16, rounds=2))


def dtypes() -> tuple[str, ...]:
    """What is measured on this machine: bfloat16 only where the processor multiplies it."""
    return (FLOAT32, BFLOAT16) if multiplies_bfloat16() else (FLOAT32,)


def jobs(plan: Plan[Scope]) -> Iterator[Job]:
    """One job per dtype, pattern and number of threads: a sparse model beside the dense one."""
    if find_spec(LIBRARY) is None:
        return
    for dtype in dtypes():
        for threads in plan.threads:
            for pattern in PATTERNS:
                key: Key = (STEP, plan.scope.shape, pattern, dtype, threads)
                title = f"{STEP} {key[1]} {pattern} {dtype}, threads: {threads}"
                yield Job(GROUP, title, threads, [key], partial(_measure, plan, key))


class Stepper:
    """A model and its optimizer, on the same batch again and again.

    Args:
        model: is trained.
        scope: of the batch.
        dtype: "bfloat16" computes under autocast.
    """

    def __init__(self, model: nn.Module, scope: Scope, dtype: str) -> None:
        self.model, self.half = model, dtype == BFLOAT16
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        generator = torch.Generator().manual_seed(SEED)
        size = (scope.batch, scope.context)
        self.tokens = torch.randint(scope.vocabulary, size, generator=generator)

    def output(self) -> Any:
        """Return the model's output on the batch: `loss` and `logits`."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            return self.model(self.tokens, labels=self.tokens)

    def step(self) -> None:
        """Train one step."""
        self.optimizer.zero_grad()
        self.output().loss.backward()
        self.optimizer.step()


def gpt2(scope: Scope) -> nn.Module:
    """Return the dense model; the same sizes give the same weights."""
    config: Any = package(LIBRARY, "GPT2Config", LIBRARY)
    build: Any = package(LIBRARY, "GPT2LMHeadModel", LIBRARY)
    torch.manual_seed(SEED)
    model: nn.Module = build(
        config(
            vocab_size=scope.vocabulary,
            n_positions=max(scope.context, 8),
            n_embd=scope.width,
            n_layer=scope.depth,
            n_head=scope.heads,
            bos_token_id=0,
            eos_token_id=0,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            loss_type="ForCausalLM",
        )
    )
    return model.train()


def sparse_gpt2(scope: Scope, pattern: str) -> nn.Module:
    """Return the same model with sparse layers."""
    return gossamer.sparsify(gpt2(scope), pattern, exclude=["lm_head"])


class Free(nn.Module):
    """Stands for a layer that takes no time: every output is the first input.

    Args:
        width: number of outputs.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., width], without a copy; under autocast in its dtype, as a layer does."""
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        return x[..., :1].expand(*x.shape[:-1], self.width)


def free_gpt2(scope: Scope) -> nn.Module:
    """Return the same model with layers that cost nothing where `sparse_gpt2` has sparse ones."""
    model = sparse_gpt2(scope, PATTERNS[0])
    for name, layer in list(model.named_modules()):
        if isinstance(layer, SparseLinear):
            model.set_submodule(name, Free(layer.out_features))
    return model


def _measure(plan: Plan[Scope], key: Key, errors: list[str]) -> list[Record]:
    scope, pattern, dtype = plan.scope, key[2], key[3]
    sparse = Stepper(sparse_gpt2(scope, pattern), scope, dtype)
    verify(sparse, scope, dtype, pattern)
    dense = Stepper(gpt2(scope), scope, dtype)
    calls = {GOSSAMER: sparse.step, DENSE: dense.step}
    if pattern == PATTERNS[0]:  # does not depend on the pattern
        calls[FREE] = Stepper(free_gpt2(scope), scope, dtype).step
    timings = interleaved(calls, repeats=scope.rounds, warmup=1)
    return [Record.timed(key, timings, density=density(sparse.model))]


def verify(sparse: Stepper, scope: Scope, dtype: str, pattern: str) -> None:
    """Compare the last logits of a sparse model with those of its dense copy.

    Raises:
        WrongResultError: they differ, or a block has no sparse layer.
    """
    if sum(isinstance(m, SparseLinear) for m in sparse.model.modules()) != 4 * scope.depth:
        raise WrongResultError(f"GPT-2 {pattern}: not every linear layer of a block is sparse")
    dense = Stepper(gossamer.densify(copy.deepcopy(sparse.model)), scope, dtype)
    with torch.no_grad():
        ours, wanted = (one.output().logits[:, -1].float() for one in (sparse, dense))
    check_answer(f"{GOSSAMER}, GPT-2 {pattern} {dtype}", ours, wanted, TOLERANCE[dtype])


def density(model: nn.Module) -> float:
    """Kept share of the entries of the sparse layers, in [0, 1]."""
    weights = [m.weight for m in model.modules() if isinstance(m, SparseLinear)]
    return sum(w.nnz for w in weights) / sum(w.shape.numel() for w in weights)
