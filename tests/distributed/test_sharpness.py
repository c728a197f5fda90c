"""Two processes: one direction for all by the mean gradient, or one for each by its own batch."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gossamer.optim.sharpness import SAM, TRAM
from support import ranks
from support.ranks_cases import batch, network

pytestmark = pytest.mark.process
STEPS, LR, RHO = 3, 0.1, 0.5


def trained(rank: int, method: str, each: bool) -> list[Tensor]:
    model = network(seed=0)
    sharp: SAM = TRAM(RHO, each_process=each) if method == "tram" else SAM(RHO, each_process=each)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    sharp.attach(wrapped, optimizer)
    for step in range(STEPS):
        x, y = batch(2 * step + rank)

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            out = wrapped(x)
            if isinstance(sharp, TRAM):
                sharp.region(out, out.detach().flip(0))
            loss = nn.functional.mse_loss(out, y)
            loss.backward()
            return loss

        optimizer.step(closure)
    return [p.detach().clone() for p in model.parameters()]


def by_hand(method: str, each: bool) -> list[Tensor]:
    """The same in one process: the gradient of each batch by itself."""
    model = network(seed=0)
    parameters = list(model.parameters())
    for step in range(STEPS):
        batches = [batch(2 * step + rank) for rank in range(2)]

        def gradient(x: Tensor, y: Tensor) -> tuple[list[Tensor], Tensor]:
            out = model(x)
            p, q = out.detach().flip(0).softmax(-1), out.detach().softmax(-1)
            far = (p * (p / q).log()).sum(-1).mean() if method == "tram" else torch.ones(())
            return list(torch.autograd.grad(nn.functional.mse_loss(out, y), parameters)), far

        def moved(offsets: list[Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
            before = [p.detach().clone() for p in parameters]
            with torch.no_grad():
                for p, e in zip(parameters, offsets, strict=True):
                    p += e
                found, _ = gradient_with_grad(x, y)
                for p, b in zip(parameters, before, strict=True):
                    p.copy_(b)
            return found

        def gradient_with_grad(x: Tensor, y: Tensor) -> tuple[list[Tensor], Tensor]:
            with torch.enable_grad():
                return gradient(x, y)

        own = [gradient(*one) for one in batches]
        if not each:
            mean = [(a + b) / 2 for a, b in zip(own[0][0], own[1][0], strict=True)]
            own = [(mean, (own[0][1] + own[1][1]) / 2)] * 2
        found = []
        for (grads, far), one in zip(own, batches, strict=True):
            norm = torch.cat([g.flatten() for g in grads]).norm()
            found.append(moved([RHO * far * g / norm for g in grads], *one))
        with torch.no_grad():
            for p, a, b in zip(parameters, *found, strict=True):
                p -= LR * (a + b) / 2
    return [p.detach() for p in parameters]


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, bool], list[list[Tensor]]]:
    first, second = ranks.run(2, all_cases)
    return {case: [first[case], second[case]] for case in first}


def all_cases(rank: int) -> dict[tuple[str, bool], list[Tensor]]:
    return {(m, each): trained(rank, m, each) for m in ("sam", "tram") for each in (False, True)}


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("method", ["sam", "tram"])
def test_two_processes_are_what_one_computes_of_both_batches(
    found: dict[tuple[str, bool], list[list[Tensor]]], method: str, each: bool
) -> None:
    expected = by_hand(method, each)
    for own in found[method, each]:
        for a, b in zip(own, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    other = by_hand(method, not each)
    assert any(
        not torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(expected, other, strict=True)
    )
