"""ProxAdamW(accumulate=True): a latent copy, and the operator with the sum of all steps."""

import pytest
import torch
from torch import Tensor, nn

from gossamer.errors import DTypeError
from gossamer.optim import HalfSpace, ProxAdamW, ProxSGD
from gossamer.prox import L1, WGSEF, Penalty


def gradients(count: int, *shape: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


@pytest.mark.parametrize(
    "penalty", [L1(0.3), L1(20.0, groups="neuron"), WGSEF(0.3, 2, groups="input")]
)
def test_accumulated_steps_equal_their_formula(penalty: Penalty) -> None:
    """A latent copy takes AdamW's steps; its operator has the sum of all steps of each entry."""
    start, grads = gradients(1, 6, 11, seed=5)[0].double(), gradients(25, 6, 11)
    lr, beta1, beta2, eps, decay = 0.03, 0.8, 0.97, 1e-3, 0.1
    weight = nn.Parameter(start.clone())
    optimizer = ProxAdamW(
        [weight], lr, (beta1, beta2), eps, decay, penalty=penalty, accumulate=True
    )
    u, m, v, total = start.clone(), *(torch.zeros_like(start) for _ in range(3))
    zeros = 0
    for t, grad in enumerate(grads, 1):
        # The gradient depends on the parameter, not on its copy.
        weight.grad = g = grad.double() + 0.3 * weight.detach()
        optimizer.step()
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        steps = lr / ((v / (1 - beta2**t)).sqrt() + eps)
        u = u * (1 - lr * decay) - steps * m / (1 - beta1**t)
        total = total + steps
        expected = penalty.prox_(u.clone(), metric=1 / total)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-11, atol=1e-12)
        zeros += int((expected == 0).sum())
    assert zeros > 0


def test_accumulated_steps_without_a_penalty_are_torch_and_are_checked() -> None:
    first, second = (nn.Parameter(gradients(1, 5, seed=2)[0]) for _ in range(2))
    ours = ProxAdamW([first], 0.1, penalty=L1(lambda t: 0.3 * (t >= 5)), accumulate=True)
    theirs = torch.optim.AdamW([second], 0.1)
    for t, grad in enumerate(gradients(8, 5)):
        first.grad, second.grad = grad.clone(), grad.clone()
        ours.step()
        theirs.step()
        assert torch.equal(first, second) == (t < 5)
    for kind, more in ((ProxSGD, {}), (ProxAdamW, {"half_space": HalfSpace(0)})):
        with pytest.raises(DTypeError, match="only for ProxAdamW without half_space"):
            kind([{"params": [first], "accumulate": True, **more}], lr=0.1)


def test_accumulated_steps_keep_zeros_under_noise() -> None:
    zeros = []
    for accumulate in (False, True):
        generator = torch.Generator().manual_seed(0)
        weight = nn.Parameter(torch.zeros(100))
        optimizer = ProxAdamW(
            [weight], 0.01, weight_decay=0.0, penalty=L1(0.1), accumulate=accumulate
        )
        kept = 0
        for _ in range(300):  # only the first ten have a slope beyond the noise
            weight.grad = weight.detach() + torch.randn(100, generator=generator)
            weight.grad[:10] -= 2.0
            optimizer.step()
            kept += int((weight[10:] == 0).sum())
        assert bool((weight[:10] > 0).all())
        zeros.append(kept)
    assert zeros[1] > 3 * zeros[0]


def test_accumulated_steps_end_where_the_others_do() -> None:
    """Of a lasso: the same support and point as a solver, whose steps shrink by the last alone."""
    torch.manual_seed(0)
    a = torch.randn(60, 20, dtype=torch.float64) / 60**0.5
    truth = torch.zeros(20, dtype=torch.float64)
    truth[:4] = torch.tensor([2.0, -1.0, 1.5, 0.5])
    b = a @ truth
    found = []
    for accumulate in (False, True):
        weight = nn.Parameter(torch.randn(20, dtype=torch.float64))
        optimizer = ProxAdamW(
            [weight], 0.02, (0.5, 0.99), 1e-2, 0.0, penalty=L1(0.1), accumulate=accumulate
        )
        for _ in range(1500):
            weight.grad = a.T @ (a @ weight.detach() - b)
            optimizer.step()
        assert optimizer.stationarity()["0.0"] < 1e-4
        found.append(weight.detach().clone())
    assert torch.allclose(found[0], found[1], atol=1e-4)
    assert torch.equal(found[0] == 0, found[1] == 0)
