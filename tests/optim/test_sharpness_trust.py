"""TRAM: the outputs say how far the weights are moved."""

import copy

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import RecipeError, ShapeError
from gossamer.optim.sharpness import SAM, TRAM

DTYPE = torch.float64


def model_of() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Dropout(0.3), nn.Linear(24, 4))
    return gossamer.sparsify(layers.to(DTYPE), "75%", exclude="3")


def batch(step: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(step)
    return torch.randn(16, 12, generator=random, dtype=DTYPE), torch.arange(16) % 4


def divergence(past: Tensor, logits: Tensor) -> Tensor:
    p, q = past.softmax(-1), logits.softmax(-1)
    return (p * (p / q).log()).sum(-1).mean()


def train(model: nn.Module, start: nn.Module, method: SAM | None, parts: int = 1) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if method is not None:
        method.attach(model, optimizer)
    for step in range(3):
        x, y = batch(step)

        def closure(x: Tensor = x, y: Tensor = y) -> None:
            optimizer.zero_grad()
            for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
                logits = model(a)
                if isinstance(method, TRAM):
                    method.region(logits, start(a))
                (nn.functional.cross_entropy(logits, b) / parts).backward()

        torch.manual_seed(step)
        optimizer.step(closure)
    return model


def by_formula(model: nn.Module, start: nn.Module, rho: float) -> nn.Module:
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    for step in range(3):
        x, y = batch(step)
        torch.manual_seed(step)
        logits = model(x)
        grads = torch.autograd.grad(nn.functional.cross_entropy(logits, y), parameters)
        norm = torch.cat([g.flatten() for g in grads]).norm()
        far = rho * divergence(start(x), logits).detach()
        other = copy.deepcopy(model)
        for p, g in zip(other.parameters(), grads, strict=True):
            p.data += far * g / norm
        torch.manual_seed(step)
        second = torch.autograd.grad(
            nn.functional.cross_entropy(other(x), y), list(other.parameters())
        )
        for p, g in zip(parameters, second, strict=True):
            p.grad = g
        optimizer.step()
    return model


def pretrained() -> nn.Module:
    start = copy.deepcopy(model_of()).eval()
    with torch.no_grad():
        for p in start.parameters():
            p.mul_(1.5)
    return start.requires_grad_(False)


def test_equals_its_formula() -> None:
    got = train(model_of(), pretrained(), TRAM(2.0))
    expected = by_formula(model_of(), pretrained(), 2.0)
    plain = train(model_of(), pretrained(), None)
    for a, b in zip(got.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert any(
        not torch.allclose(a, b, rtol=1e-4)
        for a, b in zip(got.parameters(), plain.parameters(), strict=True)
    )


def test_where_the_outputs_are_still_those_the_weights_are_not_moved() -> None:
    model = model_of().eval()
    tram = TRAM(5.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tram.attach(model, optimizer)
    x, y = batch(0)
    logits = model(x)
    tram.region(logits, logits)
    nn.functional.cross_entropy(logits, y).backward()
    before = [p.detach().clone() for p in model.parameters()]
    with tram.perturbed():
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        nn.functional.cross_entropy(model(x), y).backward()


def test_the_region_is_the_mean_over_micro_batches_of_the_first_pass() -> None:
    whole = train(model_of().eval(), pretrained(), TRAM())
    parts = train(model_of().eval(), pretrained(), TRAM(), parts=2)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_off_is_the_optimizer_bit_for_bit() -> None:
    got, plain = (train(model_of(), pretrained(), m) for m in (TRAM(0.0), None))
    for a, b in zip(got.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_is_missing_is_said() -> None:
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tram = TRAM()
    tram.attach(model, optimizer)
    x, _ = batch(0)
    model(x).sum().backward()
    with pytest.raises(RecipeError, match=r"region\(logits, past\)"), tram.perturbed():
        pass
    with pytest.raises(ShapeError, match="one shape"):
        tram.region(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(gossamer.ArgumentError, match="rho"):
        TRAM(-1.0)


def test_training_goes_on_where_it_was_saved() -> None:
    start, tram = pretrained(), TRAM()
    model = train(model_of(), start, tram)
    again = model_of()
    again.load_state_dict(model.state_dict())
    for other in (model, again):
        train(other, start, TRAM())
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
