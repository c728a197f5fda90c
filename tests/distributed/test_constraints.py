"""Two processes under a constraint per group: what one computes of both batches."""

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from gossamer.recipes import DisparateImpact, GroupAccuracy
from support import ranks
from support.ranks_cases import network

pytestmark = pytest.mark.process
STEPS, GROUPS = 6, 4
DENSE = GroupAccuracy(torch.tensor([1.0, 0.9, 0.8, 0.7]), torch.tensor([40, 30, 20, 10]))


def batch(step: int, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Batches of 9 and 7 samples."""
    random, size = torch.Generator().manual_seed(2 * step + rank), 9 - 2 * rank
    x = torch.randn(size, 32, generator=random)
    return x, torch.randint(16, (size,), generator=random), torch.randint(
        GROUPS, (size,), generator=random
    )  # fmt: skip


def trained(rank: int | None) -> list[Tensor]:
    """Train with the batch of a process, or with both."""
    model = network(seed=0)
    fair = DisparateImpact(DENSE, rate=0.5, memory=5)
    wrapped = model if rank is None else DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(STEPS):
        if rank is None:
            x, y, groups = (torch.cat(p) for p in zip(batch(step, 0), batch(step, 1), strict=True))
        else:
            x, y, groups = batch(step, rank)
        optimizer.zero_grad()
        fair(wrapped(x), y, groups).backward()
        optimizer.step()
    return [*(p.detach().clone() for p in model.parameters()), fair.multipliers, fair.answers]


def test_two_processes_are_one_with_both_batches() -> None:
    first, second = ranks.run(2, trained)
    expected = trained(None)
    assert (expected[-2] > 0).any()
    for a, b, c in zip(first, second, expected, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-5)
