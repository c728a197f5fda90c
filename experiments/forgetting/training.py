"""A small residual network forgets two of ten classes of digits, by adapters of its blocks.

    L = beta relu(bound - CE_forget) + CE_remain + alpha sum over blocks ||adapters of a block||

Zhao et al. 2024, "Continual Forgetting for Pre-trained Vision Models" (GS-LoRA). The published code
takes subgradients of the norms; here also their proximal step, which makes blocks exactly 0. "++"
adds class prototypes, as its abstract says; that both distances to them are Kullback-Leibler
divergences of logits is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache

import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional as F

from bench.harness.rows import Row
from gossamer import timing

PLAIN, SUBGRADIENT, PROX, PROTOTYPES = "LoRA", "subgradient", "GS-LoRA", "GS-LoRA++"
METHODS = (PLAIN, SUBGRADIENT, PROX, PROTOTYPES)


@dataclass(frozen=True)
class Plan:
    """What all trainings have in common.

    Args:
        width: of the residual stream.
        blocks: of the network, each with two layers.
        epochs: of the training on all classes.
        steps: of the forgetting.
        rank: of the adapters.
        lr: learning rate of the forgetting.
        alpha: of the groups, in proximal steps.
        subgradient_alpha: the same in subgradients, which Adam scales up.
        beta: of the classes to forget.
        bound: up to which their loss is raised.
        forgotten: the classes.
    """

    width: int = 64
    blocks: int = 4
    epochs: int = 30
    steps: int = 300
    rank: int = 8
    lr: float = 1e-2
    alpha: float = 4.0
    subgradient_alpha: float = 0.005
    beta: float = 0.3
    bound: float = 10.0
    forgotten: tuple[int, ...] = (3, 7)


@dataclass(frozen=True)
class Run:
    """One forgetting.

    Args:
        method: of `METHODS`.
        shots: images per class that it may use; 0 for all.
        seed: of weights and data.
    """

    method: str
    shots: int
    seed: int

    @property
    def row(self) -> Row:
        """The columns that name this forgetting."""
        return asdict(self)


class Adapted(nn.Module):
    """A frozen linear layer and an adapter, W + up down."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        down = nn.Linear(linear.in_features, rank, bias=False)
        self.down = nn.Parameter(down.weight.detach().clone())
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in] to [batch, out]."""
        y: Tensor = self.linear(x) + (x @ self.down.t()) @ self.up.t()
        return y


class Block(nn.Module):
    """x + second(relu(first(norm(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first: nn.Module = nn.Linear(width, 2 * width)
        self.second: nn.Module = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, width] to the same."""
        y: Tensor = x + self.second(self.first(self.norm(x)).relu())
        return y


@torch.no_grad()
def shrink_(group: Sequence[Tensor], threshold: float) -> None:
    """Take the proximal step of threshold * ||group||_2, all tensors of a group together.

    Args:
        group: the tensors, of any shapes; they change in place.
        threshold: by how much their norm shrinks; a group of at most this norm becomes exactly 0.

    Example:
        >>> x = [torch.tensor([3.0]), torch.tensor([4.0])]
        >>> shrink_(x, 2.5)
        >>> [t.item() for t in x]
        [1.5, 2.0]
    """
    norm = float(torch.stack([t.square().sum() for t in group]).sum().sqrt())
    factor = max(0.0, 1.0 - threshold / norm) if norm else 0.0
    for tensor in group:
        tensor.mul_(factor)


def measure(plan: Plan, run: Run) -> Row:
    """Forget, and evaluate on other images.

    Args:
        plan: what is trained.
        run: how.

    Returns:
        A row with accuracies on the forgotten and the other classes, before and after, and the
        number of blocks whose adapters are exactly 0.
    """
    with timing.threads(1):
        x, y, test_x, test_y = _data(run.seed)
        model = _trained(plan, run.seed)
        gone = torch.isin(y, torch.tensor(plan.forgotten))
        before = _accuracies(model, test_x, test_y, plan)
        with torch.no_grad():
            logits = model(x)
            prototypes = torch.stack([logits[y == c].mean(0) for c in range(10)])
        if run.shots:
            few = torch.cat([(y == c).nonzero()[: run.shots, 0] for c in range(10)])
            x, y, gone = x[few], y[few], gone[few]
        groups = _adapt(model, plan)
        parameters = [p for group in groups for p in group]
        optimizer = torch.optim.Adam(parameters, lr=plan.lr)
        for _ in range(plan.steps):
            logits = model(x)
            loss = _loss(logits, y, gone, prototypes, plan, run.method == PROTOTYPES)
            if run.method == SUBGRADIENT:
                norms = [torch.stack([p.square().sum() for p in g]).sum().sqrt() for g in groups]
                loss = loss + plan.subgradient_alpha * torch.stack(norms).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if run.method in (PROX, PROTOTYPES):
                for group in groups:
                    shrink_(group, plan.lr * plan.alpha)
        after = _accuracies(model, test_x, test_y, plan)
        zero = sum(all(not bool(p.any()) for p in group) for group in groups)
        return run.row | {
            "forgotten before": before[0], "others before": before[1],
            "forgotten": after[0], "others": after[1], "zero": zero,
        }  # fmt: skip


def _loss(
    logits: Tensor, y: Tensor, gone: Tensor, prototypes: Tensor, plan: Plan, with_prototypes: bool
) -> Tensor:
    loss = F.cross_entropy(logits[~gone], y[~gone])
    loss = loss + plan.beta * (plan.bound - F.cross_entropy(logits[gone], y[gone])).relu()
    if with_prototypes:
        divergence = F.kl_div(
            logits.log_softmax(1), prototypes[y].log_softmax(1), reduction="none", log_target=True
        ).sum(1)
        away = (plan.bound - divergence[gone].mean()).relu()
        loss = loss + divergence[~gone].mean() + plan.beta * away
    return loss


def _adapt(model: nn.Module, plan: Plan) -> list[list[nn.Parameter]]:
    """Freeze a model and put adapters in; return the groups, one per block."""
    model.requires_grad_(False)
    groups = []
    for block in model.modules():
        if isinstance(block, Block):
            block.first = Adapted(block.first, plan.rank)  # type: ignore[arg-type]
            block.second = Adapted(block.second, plan.rank)  # type: ignore[arg-type]
            groups.append([p for p in block.parameters() if p.requires_grad])
    return groups


def _trained(plan: Plan, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    blocks = [Block(plan.width) for _ in range(plan.blocks)]
    model = nn.Sequential(nn.Linear(64, plan.width), *blocks, nn.Linear(plan.width, 10))
    x, y, _, _ = _data(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(plan.epochs):
        for part in torch.randperm(len(x)).split(64):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model


@torch.no_grad()
def _accuracies(model: nn.Module, x: Tensor, y: Tensor, plan: Plan) -> tuple[float, float]:
    right = model(x).argmax(1) == y
    gone = torch.isin(y, torch.tensor(plan.forgotten))
    return float(right[gone].float().mean()), float(right[~gone].float().mean())


@cache
def _data(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found = load_digits()
    x = torch.tensor(found.data, dtype=torch.float32) / 16
    y = torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed + 100))
    first, rest = order[:1200], order[1200:]
    return x[first], y[first], x[rest], y[rest]
