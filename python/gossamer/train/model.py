"""A small GPT, dense or sparse: the model of `gossamer train`.

Pre-norm transformer decoder: x += attention(norm(x)); x += mlp(norm(x)). Learned positions, exact
causal attention, GELU. Every large matrix is a plain nn.Linear, so that sparsify() finds it; the
head shares the weight of the token embedding and stays dense. The MLP of a block may be a mixture
of experts.

Reference:
    Radford et al. 2019, "Language models are unsupervised multitask learners".
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.arguments import check
from gossamer.errors import ArgumentError, ShapeError
from gossamer.nn import ActivationSparseFFN, MaskedLayer, SinkhornRouter, TopKRouter, sparsify

ROUTERS = {"topk": TopKRouter, "sinkhorn": SinkhornRouter}


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a GPT.

    Args:
        vocabulary: number of tokens.
        context: largest number of tokens per input.
        width: features of the residual stream, a multiple of `heads`.
        depth: number of blocks.
        heads: attention heads per block.
        experts: MLPs per block if there is a router; each token passes through one.
        router: `"topk"` or `"sinkhorn"`; None is one MLP per block.
        gated: whether the MLPs have a gate: silu(gate x) * (up x) instead of gelu(up x).

    Raises:
        ArgumentError: a size is below 1, `width` is not a multiple of `heads`, or the router is
            unknown.
    """

    vocabulary: int
    context: int
    width: int
    depth: int
    heads: int
    experts: int = 1
    router: str | None = None
    gated: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is int and value < 1:
                raise ArgumentError(f"GPT got {field.name}={value}; it must be at least 1")
        if self.router is not None and self.router not in ROUTERS:
            raise ArgumentError(
                f"GPT got router={self.router!r:.80}; choose {' or '.join(ROUTERS)}, or None"
            )
        if self.width % self.heads:
            raise ArgumentError(
                f"GPT got width={self.width} with heads={self.heads}; width must be a multiple of "
                f"heads: choose {self.width // self.heads * self.heads or self.heads}, or change "
                "heads"
            )


class Attention(nn.Module):
    """Causal self-attention, `[batch, context, width]` to the same shape."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend from each position to itself and earlier ones."""
        batch, context, width = x.shape
        query, key, value = (
            self.qkv(x).view(batch, context, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, context, width))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Two linear layers with a GELU between, or three with a SiLU gate; hidden: 4 * width.

    Reference:
        Shazeer 2020, "GLU variants improve transformer", for the gate.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        hidden = 4 * config.width
        self.gate = nn.Linear(config.width, hidden, bias=False) if config.gated else None
        self.up = nn.Linear(config.width, hidden, bias=False)
        self.activation = nn.GELU() if self.gate is None else nn.SiLU()
        self.down = nn.Linear(hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position independently."""
        if self.gate is None:
            return self.down(self.activation(self.up(x)))  # type: ignore[no-any-return]
        return self.down(self.activation(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


class Mixture(nn.Module):
    """A mixture of experts: each token passes through one MLP, weighed by the router's gate.

    Reference:
        Fedus et al. 2022, "Switch transformers".
    """

    load: Tensor | None = None  # tokens per expert in the last call, [experts]

    def __init__(self, config: GPTConfig, router: str) -> None:
        super().__init__()
        self.router = ROUTERS[router](config.width, config.experts)
        self.experts = nn.ModuleList(MLP(config) for _ in range(config.experts))

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position by its expert; a position without an expert gives zero."""
        rows = x.flatten(0, -2)
        routing = self.router(rows)
        self.load = routing.load
        mixed = torch.zeros_like(rows)
        for i, expert in enumerate(self.experts):
            # An expert without tokens is called too, so that its gradient is zero, not None.
            (mine,) = routing.assigned[:, i].nonzero(as_tuple=True)
            out = routing.gates[mine, i, None] * expert(rows[mine])
            mixed = mixed.index_add(0, mine, out.to(mixed.dtype))
        return mixed.view_as(x)


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, bias=False)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.width, bias=False)
        self.mlp = MLP(config) if config.router is None else Mixture(config, config.router)

    def forward(self, x: Tensor) -> Tensor:
        """Add attention, then the MLP, to the residual stream."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """A decoder-only transformer over tokens.

    Args:
        config: sizes of the model.

    Example:
        >>> import torch
        >>> model = GPT(GPTConfig(vocabulary=256, context=16, width=32, depth=2, heads=4))
        >>> model(torch.zeros(2, 16, dtype=torch.long)).shape
        torch.Size([2, 16, 256])
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        check(GPT.__init__, locals())
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                # 2 * depth branches add to the residual stream: this keeps its variance
                # independent of the depth.
                residual = name.endswith((".out", ".down"))
                scale = math.sqrt(2 * self.config.depth) if residual else 1.0
                nn.init.normal_(module.weight, std=0.02 / scale)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Predict the next token at every position.

        Args:
            tokens: int64 `[batch, length]`, length at most `config.context`.
            targets: int64 `[batch, length]`, the tokens one position later; None asks for logits.

        Returns:
            Logits `[batch, length, vocabulary]`; with targets, the mean cross entropy in nats.

        Raises:
            ShapeError: the rank is not 2, or the length exceeds the context.
        """
        if tokens.dim() != 2 or tokens.shape[1] > self.config.context:
            raise ShapeError(
                f"GPT got tokens of shape {list(tokens.shape)}; it needs [batch, length] with "
                f"length at most {self.config.context}: cut the text into windows"
            )
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross entropy of the next token, in nats.

        Args:
            inputs: int64 `[batch, length]`.
            targets: int64 `[batch, length]`, the inputs one position later.

        Returns:
            A float32 scalar.
        """
        loss: Tensor = self(inputs, targets)
        return loss


def build_model(
    sizes: GPTConfig,
    run: str,
    exclude: tuple[str, ...] = (),
    change: Callable[[GPT], None] | None = None,
) -> GPT:
    """Build a GPT, sparse from the start if the run names a pattern.

    Kept entries are scaled to the Frobenius norm of the dense weight, so that the initial
    activations have the variance of the dense model's.

    Args:
        sizes: sizes of the model.
        run: `"dense"` or the text of a pattern.
        exclude: globs of module names; matching modules stay dense.
        change: what else to change in the dense model, before it becomes sparse.

    Returns:
        The model; torch's global random state draws its weights.

    Raises:
        PatternError: the pattern does not fit the sizes.

    Reference:
        Evci et al. 2022, "Gradient Flow in Sparse Neural Networks and How Lottery Tickets Win",
        section 3.1: initialise for the sparse fan-in. The norm does so on average.
    """
    model = GPT(sizes)
    if change is not None:
        change(model)
    if run == "dense":
        return model
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    norms = {name: linear.weight.detach().norm() for name, linear in linears.items()}
    sparsify(model, run, exclude=(*exclude, *ActivationSparseFFN.find_in(model)))
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, MaskedLayer) and module.nnz:
                module.entries.mul_(norms[name] / module.entries.norm())
    return model


def dense_parameters(sizes: GPTConfig) -> int:
    """Count the parameters of a dense GPT.

    Args:
        sizes: sizes of the model.

    Returns:
        The number of parameters.

    Example:
        >>> sizes = GPTConfig(vocabulary=256, context=16, width=32, depth=2, heads=4)
        >>> dense_parameters(sizes) == sum(p.numel() for p in GPT(sizes).parameters())
        True
    """
    mlps = (12 if sizes.gated else 8) * sizes.width**2
    if sizes.router is not None:
        mlps = sizes.experts * (mlps + sizes.width)
    a_block = 4 * sizes.width**2 + mlps + 2 * sizes.width
    embeddings = (sizes.vocabulary + sizes.context) * sizes.width
    return embeddings + sizes.depth * a_block + sizes.width
