"""Sharpness without another pass: MSAM by the momentum, SAF and MESA by the outputs."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import RecipeError, recipes
from gossamer.optim.sharpness import MESA, MSAM, SAF

DTYPE = torch.float64
KINDS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 1e-2, "weight_decay": 0.1},
    "sgd": {"lr": 1e-2, "momentum": 0.9, "nesterov": True},
}


def model_of() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), nn.LayerNorm(24), nn.GELU(), nn.Linear(24, 4))
    return gossamer.sparsify(model.to(DTYPE), "75%", exclude="3")


def optimizer_of(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    make: Any = torch.optim.AdamW if kind == "adamw" else torch.optim.SGD
    made: torch.optim.Optimizer = make(model.parameters(), **KINDS[kind])
    return made


def loss_of(model: nn.Module, step: int) -> Tensor:
    x = torch.randn(16, 12, generator=torch.Generator().manual_seed(step), dtype=DTYPE)
    loss: Tensor = (model(x) - x[:, :4]).square().mean()
    return loss


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def momentum_of(optimizer: torch.optim.Optimizer, p: Tensor) -> Tensor:
    state = optimizer.state[p]
    found: Tensor = state["exp_avg"] if "exp_avg" in state else state["momentum_buffer"]
    return found


@pytest.mark.parametrize("rho", [0.7, -0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_msam_equals_its_formula(kind: str, rho: float) -> None:
    model, other = model_of(), model_of()
    optimizer, plain = optimizer_of(kind, model), optimizer_of(kind, other)
    MSAM(rho).attach(model, optimizer)
    train(model, optimizer, range(5))
    for step in range(5):
        there = copy.deepcopy(other)
        if step:
            m = [momentum_of(plain, p) for p in other.parameters()]
            size = torch.stack([x.square().sum() for x in m]).sum().sqrt()
            for p, x in zip(there.parameters(), m, strict=True):
                p.data -= rho * x / (size + 1e-12)
        grads = torch.autograd.grad(loss_of(there, step), list(there.parameters()))
        for p, g in zip(other.parameters(), grads, strict=True):
            p.grad = g
        plain.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_msam_off_is_the_optimizer_bit_for_bit() -> None:
    model, other = model_of(), model_of()
    optimizer, plain = optimizer_of("adamw", model), optimizer_of("adamw", other)
    MSAM(0.0).attach(model, optimizer)
    train(model, optimizer, range(4))
    train(other, plain, range(4))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_msam_shows_its_weights_to_the_loss_alone() -> None:
    """Evaluation, a state dict and a copy have the weights that are not moved; a step too."""
    model = model_of()
    optimizer = optimizer_of("adamw", model)
    method = MSAM(0.5)
    method.attach(model, optimizer)
    train(model, optimizer, range(2))
    start = {k: v.clone() for k, v in model.state_dict().items()}
    loss = loss_of(model, 2)
    assert not torch.equal(model[3].weight, start["3.weight"])
    for key, value in model.state_dict().items():
        assert torch.equal(value, start[key]), key
    loss_of(model, 2)
    model.eval()
    with torch.no_grad():
        loss_of(model, 2)
    assert torch.equal(model[3].weight, start["3.weight"])
    model.train()
    with torch.no_grad():
        loss_of(model, 2)
    assert torch.equal(model[3].weight, start["3.weight"])
    assert loss_of(model, 2) == loss
    method.restore()
    copied = copy.deepcopy(model)
    loss_of(copied, 2)
    assert torch.equal(copied[3].weight, start["3.weight"])
    loss_of(model, 2)
    method.detach()
    assert torch.equal(model[3].weight, start["3.weight"])


@pytest.mark.parametrize("first", [True, False])
def test_msam_and_recipes(first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask moves at the weights that are not moved; a closure's gradients are at the others."""
    torch.manual_seed(0)
    recipe = recipes.SET("75%", every=2)
    model = recipe.prepare(nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 4)).to(DTYPE))
    optimizer = optimizer_of("adamw", model)
    method = MSAM(5.0)
    if first:
        method.attach(model, optimizer)
    recipe.attach(model, optimizer, total_steps=40)
    if not first:
        method.attach(model, optimizer)
    moved, seen = [], []
    monkeypatch.setattr(recipe, "before_step", lambda t: seen.append(bool(method._before)))

    def closure() -> Tensor:
        optimizer.zero_grad()
        before = model[0].weight.values.detach().clone()
        loss = loss_of(model, step)
        moved.append(not torch.equal(before, model[0].weight.values))
        loss.backward()
        return loss

    for step in range(5):  # noqa: B007 - the closure reads it
        optimizer.step(closure)
        assert not method._before
    train(model, optimizer, range(5, 8))
    assert seen == [False] * 8
    assert moved == [False, True, True, True, True]


@pytest.mark.parametrize("kind", KINDS)
def test_msam_resumes_bit_equal(kind: str) -> None:
    whole = model_of()
    optimizer = optimizer_of(kind, whole)
    MSAM(0.5).attach(whole, optimizer)
    train(whole, optimizer, range(3))
    loss_of(whole, 9)  # moved, and saved all the same
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    train(whole, optimizer, range(3, 6))
    fresh = model_of()
    again = optimizer_of(kind, fresh)
    MSAM(0.5).attach(fresh, again)
    fresh.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    train(fresh, again, range(3, 6))
    for a, b in zip(whole.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)


def test_msam_needs_momentum() -> None:
    model = model_of()
    with pytest.raises(RecipeError, match="momentum"):
        MSAM().attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(gossamer.DTypeError, match="rho"):
        MSAM("1")  # type: ignore[arg-type]


def divergence(past: Tensor, now: Tensor, t: float) -> Tensor:
    p, q = (past / t).softmax(-1), (now / t).softmax(-1)
    return t**2 * (p * (p.log() - q.log())).sum(-1).mean()


def test_saf_remembers_by_sample_and_epoch() -> None:
    saf = SAF(samples=6, classes=3, epochs=2, weight=0.5, temperature=2.0, start=2, end=5)
    random = torch.Generator().manual_seed(0)
    seen: dict[tuple[int, int], Tensor] = {}
    for epoch in range(6):
        if epoch == 3:  # a checkpoint in between
            state = copy.deepcopy(saf.state_dict())
            saf = SAF(samples=6, classes=3, epochs=2, weight=0.5, temperature=2.0, start=2, end=5)
            saf.load_state_dict(state)
        for indices in torch.randperm(6, generator=random).split(4):
            logits = torch.randn(len(indices), 3, generator=random, requires_grad=True)
            got = saf(logits, indices, epoch)
            if 2 <= epoch < 5:
                past = torch.stack([seen[epoch - 2, int(i)] for i in indices])
                expected = 0.5 * divergence(past, logits, 2.0)
                torch.testing.assert_close(got, expected)
                (grad,) = torch.autograd.grad(got, logits, retain_graph=True)
                (other,) = torch.autograd.grad(expected, logits)
                torch.testing.assert_close(grad, other)
            else:
                assert got == 0
            seen |= {(epoch, int(i)): x for i, x in zip(indices, logits.detach(), strict=True)}


def test_saf_leaves_out_what_it_has_not_seen() -> None:
    saf = SAF(samples=4, classes=2, epochs=1, weight=1.0, start=0)
    past = torch.randn(2, 2)
    assert saf(past, torch.tensor([0, 2]), 0) == 0
    now = torch.randn(4, 2)
    expected = divergence(past, now[[0, 2]], 5.0) * 0.5
    torch.testing.assert_close(saf(now, torch.arange(4), 1), expected)
    with pytest.raises(gossamer.ShapeError, match="from 0 to 3"):
        saf(now[:1], torch.tensor([4]), 1)
    with pytest.raises(gossamer.ShapeError, match="logits"):
        saf(now, torch.tensor([1]), 1)


def test_mesa() -> None:
    past, now = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    torch.testing.assert_close(MESA(0.3, 5.0)(now, past), 0.3 * divergence(past, now, 5.0))
    with pytest.raises(gossamer.ShapeError, match="one shape"):
        MESA()(now, past[0])
