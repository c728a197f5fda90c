"""Constraints on what sparsity costs each group of the data, beside the loss.

psi_g = (dense accuracy - sparse accuracy of group g) - (the same of all data) - tolerance <= 0
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.arguments import Count, NotNegative, check
from gossamer.errors import ArgumentError, DTypeError, ShapeError
from gossamer.nn import MaskedLayer
from gossamer.recipes.base.recipe import Recipe

__all__ = ["DisparateImpact", "GroupAccuracy", "group_accuracy"]


class GroupAccuracy(NamedTuple):
    """Share of right answers of each group; see `group_accuracy`.

    Attributes:
        groups: float64 [groups], in [0, 1]; NaN for a group without samples.
        counts: int64 [groups], samples of each.
    """

    groups: Tensor
    counts: Tensor

    @property
    def overall(self) -> float:
        """Share of right answers among all samples."""
        return float((self.groups.nan_to_num() * self.counts).sum() / self.counts.sum())


@torch.no_grad()
def group_accuracy(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor, Tensor]], groups: Count
) -> GroupAccuracy:
    """Measure the accuracy of a classifier for each group, in evaluation mode.

    Args:
        model: returns logits [batch, classes].
        batches: (inputs, labels [batch], group of each sample [batch], from 0).
        groups: number of groups.

    Raises:
        ArgumentError: a group that does not exist, or no samples.

    Example:
        >>> x, y = torch.eye(2), torch.tensor([0, 0])
        >>> group_accuracy(nn.Identity(), [(x, y, torch.tensor([0, 1]))], 2).groups
        tensor([1., 0.], dtype=torch.float64)
    """
    check(group_accuracy, {"groups": groups})
    was, right, counts = model.training, torch.zeros(2, groups, dtype=torch.float64), 0
    model.eval()
    try:
        for inputs, labels, group in batches:
            _check_groups("group_accuracy", group, groups)
            found = torch.stack([model(inputs).argmax(1) == labels, torch.ones_like(group)])
            right.index_add_(1, group.cpu(), found.double().cpu())
            counts += len(group)
    finally:
        model.train(was)
    if not counts:
        raise ArgumentError("group_accuracy got no samples; give at least one batch")
    return GroupAccuracy(right[0] / right[1], right[1].long())


class DisparateImpact(nn.Module):
    """A loss under which no group of the data pays much more for the sparsity than all together.

    The accuracy that a group loses to the dense model may exceed that of all data by `tolerance`.
    Each group has a multiplier, at least 0, which rises while its constraint is violated. A call in
    training mode notes which answers are right, steps the multipliers by the accuracy of each
    group's last `memory` answers, and returns

        L + sum over the groups of the batch of multiplier * (L of the group - L)

    with the cross-entropy L, which has the gradient of the Lagrangian with the losses in the place
    of the accuracies. Groups with fewer than `memory` answers so far have no step. Before the
    recipe has pruned every layer to its target, and in evaluation mode, the loss is L.

    The mean over all data is that over the groups whose memory is full, by their shares of the data
    (the authors' code gives these groups equal shares). Under `torch.distributed` all processes of
    the default group step by the answers of all, and losses are such that the mean of the gradients
    is that of the joined batch.

    State dict: memories and multipliers; a resumed run is bit-equal. Call it once per step: further
    passes of one step (as in `gossamer.optim.sharpness`) would be further steps of the multipliers.

    Args:
        dense: accuracies of the dense model on the data to learn from, by `group_accuracy`.
        tolerance: by how much a group may lose more than all data.
        rate: step size of the multipliers, per step of the training.
        memory: number of answers that an accuracy is estimated from.
        recipe: the constraint begins when it has pruned; None begins at once.

    Raises:
        ArgumentError: a number out of range.

    Reference:
        Hashemizadeh et al. 2024, "Balancing Act: Constraining Disparate Impact in Sparse Models"
        (CEAG).

    Example:
        >>> dense = GroupAccuracy(torch.tensor([1.0, 1.0]), torch.tensor([50, 50]))
        >>> fair = DisparateImpact(dense, rate=0.1, memory=2)
        >>> logits, labels = torch.eye(2).repeat(2, 1), torch.zeros(4, dtype=torch.long)
        >>> loss = fair(logits, labels, torch.tensor([0, 1, 0, 1]))
        >>> fair.multipliers  # group 1 has lost 1.0, both together 0.5
        tensor([0.0000, 0.0490], dtype=torch.float64)
    """

    dense: Tensor
    shares: Tensor
    multipliers: Tensor
    answers: Tensor
    seen: Tensor

    def __init__(
        self,
        dense: GroupAccuracy,
        tolerance: NotNegative = 0.01,
        rate: NotNegative = 0.01,
        memory: Count = 40,
        recipe: Recipe | None = None,
    ) -> None:
        super().__init__()
        check(DisparateImpact.__init__, locals())
        if memory < 1:
            raise ArgumentError(f"DisparateImpact got memory={memory}; it must be at least 1")
        self.tolerance, self.rate, self.memory, self.recipe = tolerance, rate, memory, recipe
        groups = len(dense.groups)
        self.register_buffer("dense", dense.groups.double(), persistent=False)
        self.register_buffer("shares", dense.counts.double() / dense.counts.sum(), persistent=False)
        self.register_buffer("multipliers", torch.zeros(groups, dtype=torch.float64))
        self.register_buffer("answers", torch.zeros(groups, memory, dtype=torch.bool))
        self.register_buffer("seen", torch.zeros(groups, dtype=torch.int64))  # answers so far

    @property
    def has_begun(self) -> bool:
        """Whether the recipe has pruned every layer to its target."""
        layers = () if self.recipe is None else self.recipe.layers.values()
        masked = (m for layer in layers for m in layer.modules() if isinstance(m, MaskedLayer))
        return not any(m.is_dense_now or m.pattern != m.target for m in masked)

    def forward(self, logits: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
        """Return the loss of a batch; in training mode step the multipliers first.

        Args:
            logits: [batch, classes].
            labels: int64 [batch].
            groups: int64 [batch], the group of each sample.

        Raises:
            ArgumentError: a group that does not exist.
            ShapeError: sizes that do not fit.
        """
        if not (self.training and self.has_begun):
            return F.cross_entropy(logits, labels)
        if logits.dim() != 2 or not len(logits) == len(labels) == len(groups):
            raise ShapeError(
                f"DisparateImpact got logits {tuple(logits.shape)}, {len(labels)} labels and "
                f"{len(groups)} groups; logits must be [batch, classes], the others [batch]"
            )
        _check_groups("DisparateImpact", groups, len(self.dense))
        with torch.no_grad():
            every, right, world = _gathered(groups, logits.argmax(1) == labels)
            counts = torch.bincount(every, minlength=len(self.dense))
            self._note(every, right, counts)
            self._step()
            # Of the samples of this process: what sums to the loss over all of them.
            each = self.multipliers / counts.clamp_min(1)
            taken = self.multipliers[counts > 0].sum()
            shares = world * (each[groups] + (1.0 - taken) / len(every))
        losses = F.cross_entropy(logits, labels, reduction="none")
        return (losses * shares.to(losses.dtype)).sum()

    @torch.no_grad()
    def gaps(self, sparse: GroupAccuracy) -> Tensor:
        """Return psi without tolerance: what each group loses beyond the loss of all data.

        Args:
            sparse: accuracies of the sparse model; of the dense one they were given before. For
                images that were not learned from, give `DisparateImpact` those of the dense model
                on these.

        Returns:
            float64 [groups]; NaN for groups without samples.
        """
        lost = self.dense - sparse.groups.to(self.dense.device)
        return lost - (lost.nan_to_num() * self.shares).sum()

    def extra_repr(self) -> str:
        """Return the settings."""
        return (
            f"groups={len(self.dense)}, tolerance={self.tolerance}, rate={self.rate}, "
            f"memory={self.memory}"
        )

    def _note(self, groups: Tensor, right: Tensor, counts: Tensor) -> None:
        """Write answers over the oldest of their groups."""
        order = groups.argsort(stable=True)
        groups = groups[order]
        behind = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[groups]
        # Of more answers than the memory holds, the last ones count.
        lasts = behind >= counts[groups] - self.memory
        groups, places = groups[lasts], (self.seen[groups] + behind)[lasts] % self.memory
        self.answers[groups, places] = right[order][lasts]
        self.seen += counts

    def _step(self) -> None:
        """Step the multipliers of the groups whose memory is full."""
        full = (self.seen >= self.memory) & (self.shares > 0)
        lost = torch.where(full, self.dense - self.answers.double().mean(1), 0.0)
        weight = torch.where(full, self.shares, 0.0)
        psi = lost - (lost * weight).sum() / weight.sum().clamp_min(1e-300) - self.tolerance
        stepped = (self.multipliers + self.rate * psi).clamp_min(0.0)
        self.multipliers.copy_(torch.where(full, stepped, self.multipliers))


def _check_groups(who: str, groups: Tensor, count: int) -> None:
    if groups.dtype != torch.int64:
        raise DTypeError(f"{who} got groups of {groups.dtype}; they must be torch.int64")
    if len(groups) and not 0 <= int(groups.min()) <= int(groups.max()) < count:
        raise ArgumentError(
            f"{who} got groups from {int(groups.min())} to {int(groups.max())}; there are {count}, "
            "numbered from 0"
        )


def _gathered(groups: Tensor, right: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return groups and answers of all processes in their order, and the number of processes."""
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return groups, right, 1
    world = dist.get_world_size()
    sizes = [groups.new_zeros(1) for _ in range(world)]
    dist.all_gather(sizes, groups.new_tensor([len(groups)]))
    longest = max(int(size) for size in sizes)
    parts = [groups.new_zeros(longest) for _ in range(world)]
    dist.all_gather(parts, F.pad(2 * groups + right, (0, longest - len(groups))))
    codes = torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])
    return codes // 2, codes % 2 == 1, world
