"""Sharpness methods equal their formulas step by step, and leave nothing behind but gradients."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import RecipeError, backend
from gossamer.optim import sharpness
from gossamer.optim.sharpness import ASAM, FSAM, GAM, SAM, SAMON, AdaSAP, GradientPenalty
from gossamer.weight import SparseWeight
from tests.support import sharpness_oracle as oracle

DTYPE = torch.float64
MAKE: dict[str, Callable[[], sharpness.Sharpness]] = {
    "sam": lambda: SAM(0.1),
    "asam": lambda: ASAM(0.3, eta=0.02),
    "samon": lambda: SAMON(0.2),
    "fsam": lambda: FSAM(0.2, keep=0.2),
    "adasap": lambda: AdaSAP(0.1, 1.5, eta=0.05),
    "penalty": lambda: GradientPenalty(0.02, eps=0.03),
    "gam": lambda: GAM(0.1, 0.2, (0.5, -0.4, 0.3), 0.2),
}


def model_of(pattern: str = "75%", dropout: float = 0.3) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(12, 24), nn.BatchNorm1d(24), nn.GELU(), nn.Dropout(dropout), nn.Linear(24, 4)
    ).to(DTYPE)
    return gossamer.sparsify(model, pattern, exclude="4")


def batch(step: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(step)
    x = torch.randn(16, 12, generator=random, dtype=DTYPE)
    return x, torch.randn(16, 4, generator=random, dtype=DTYPE)


def loss_of(model: nn.Module, step: int) -> Tensor:
    x, y = batch(step)
    return nn.functional.mse_loss(model(x), y)


def closure_of(model: nn.Module, step: int) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        model.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        return loss

    return closure


def train(model: nn.Module, method: sharpness.Sharpness | None, steps: int = 3) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    if method is not None:
        method.attach(model, optimizer)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.step(closure_of(model, step))
    return model


def by_formula(name: str, model: nn.Module, steps: int = 3) -> nn.Module:
    """The same training by the oracle: weights are moved and gradients written by hand."""
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01)
    for step in range(steps):
        torch.manual_seed(step)
        first = list(torch.autograd.grad(loss_of(model, step), parameters))
        for p, grad in zip(parameters, formula(name, model, step, first), strict=True):
            p.grad = grad
        optimizer.step()
    return model


def formula(name: str, model: nn.Module, step: int, g: list[Tensor]) -> list[Tensor]:
    def at(offsets: list[Tensor]) -> list[Tensor]:
        other = copy.deepcopy(model)
        for p, e in zip(other.parameters(), offsets, strict=True):
            p.data += e
        torch.manual_seed(step)
        return list(torch.autograd.grad(loss_of(other, step), list(other.parameters())))

    w = [p.detach() for p in model.parameters()]
    names = [n for n, _ in model.named_parameters()]
    is_weight = ["weight" in n for n in names]
    is_norm = [n.startswith("1.") for n in names]
    masked = [a and not b for a, b in zip(is_weight, is_norm, strict=True)]
    if name == "sam":
        return oracle.sam(at, g, 0.1)
    if name == "asam":
        return oracle.asam(at, g, w, is_weight, 0.3, 0.02)
    if name == "samon":
        return oracle.only(at, g, is_norm, 0.2)
    if name == "fsam":
        return oracle.fsam(at, g, masked, 0.2, 0.2)
    if name == "adasap":
        return oracle.adasap(at, g, w, rows_of(model), 0.1, 1.5, 0.05)
    if name == "penalty":
        return oracle.penalty(at, g, 0.02, 0.03)
    return oracle.gam(at, g, 0.1, 0.2, (0.5, -0.4, 0.3), 0.2)


def rows_of(model: nn.Module) -> list[Tensor | None]:
    found: list[Tensor | None] = []
    for name, p in model.named_parameters():
        if name.endswith("values"):
            weight = model.get_submodule(name.rpartition(".")[0])
            assert isinstance(weight, SparseWeight)
            found.append(backend.coordinates(weight.structure) // weight.shape[1])
        else:
            found.append(torch.arange(p.numel()) // p.shape[-1] if p.ndim == 2 else None)
    return found


@pytest.mark.parametrize("pattern", ["75%", "2:4:v4"])
@pytest.mark.parametrize("name", MAKE)
def test_equals_its_formula(name: str, pattern: str) -> None:
    got = train(model_of(pattern), MAKE[name]())
    expected = by_formula(name, model_of(pattern))
    exact = name in ("sam", "samon")  # the others are written with other roundings
    for (key, a), b in zip(got.state_dict().items(), expected.state_dict().values(), strict=True):
        if exact:
            assert torch.equal(a, b), key
        else:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, msg=key)
    plain = train(model_of(pattern), None)
    assert not torch.equal(plain[4].weight, got[4].weight)


@pytest.mark.parametrize("off", [SAM(0.0), ASAM(0.0), AdaSAP(0.0, 0.0), GradientPenalty(0.0)])
def test_off_is_the_optimizer_bit_for_bit(off: sharpness.Sharpness) -> None:
    got, plain = train(model_of(), off), train(model_of(), None)
    for a, b in zip(got.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_pass_by_hand_is_the_pass_of_a_closure() -> None:
    with_closure = train(model_of(dropout=0.0), SAM(0.1))
    model = model_of(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    sam = SAM(0.1)
    sam.attach(model, optimizer)
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        with sam.perturbed():
            loss_of(model, step).backward()
        optimizer.step()
    for a, b in zip(model.parameters(), with_closure.parameters(), strict=True):
        assert torch.equal(a, b)
    loss_of(model, 3).backward()
    with pytest.raises(RecipeError, match="another pass"):
        optimizer.step()


def test_gradient_scaling_skips_a_step_that_overflows() -> None:
    model, plain = (model_of(dropout=0.0).float() for _ in range(2))
    optimizer, reference = (torch.optim.SGD(m.parameters(), lr=0.05) for m in (model, plain))
    sam, scaler = SAM(0.1), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    sam.attach(model, optimizer)
    SAM(0.1).attach(plain, reference)

    def loss(model: nn.Module, step: int) -> Tensor:
        x, y = (t.float() for t in batch(step))
        return nn.functional.mse_loss(model(x), y)

    def closure() -> Tensor:
        reference.zero_grad()
        found = loss(plain, step)
        found.backward()
        return found

    for step, factor in enumerate([1.0, float("inf"), 1.0]):
        start = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        scaler.scale(loss(model, step) * factor).backward()
        with sam.perturbed():
            moved = differ(start, model)
            scaler.scale(loss(model, step) * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert moved == differ(start, model) == (factor == 1.0)
        if factor == 1.0:
            reference.step(closure)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def differ(before: list[Tensor], model: nn.Module) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_nothing_is_left_behind() -> None:
    """Dropout draws the same numbers, statistics move once, a state dict is refused meanwhile."""
    model = model_of(dropout=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    SAM(0.5).attach(model, optimizer)
    drawn, outputs, weights = [], [], []
    handle = model[3].register_forward_hook(lambda _m, _a, y: drawn.append(y == 0))

    def closure() -> Tensor:
        optimizer.zero_grad()
        weights.append(model[4].weight.detach().clone())
        loss = loss_of(model, 0)
        loss.backward()
        outputs.append(loss.item())
        if len(weights) == 2:
            with pytest.raises(RecipeError, match="state_dict"):
                model.state_dict()
        return loss

    start = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer.step(closure)
    handle.remove()
    assert len(drawn) == 2
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(*drawn)
    plain = copy.deepcopy(model)
    plain.load_state_dict(start)
    torch.manual_seed(0)
    loss_of(plain, 0)
    for key, value in model.state_dict().items():
        assert torch.equal(value, plain.state_dict()[key]), key
    assert model[1].num_batches_tracked == 1


def test_a_pass_that_raises_puts_the_weights_back() -> None:
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    SAM(0.5).attach(model, optimizer)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return closure_of(model, 0)()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    for key, value in model.named_parameters():
        assert torch.equal(value, start[key]), key


def test_accumulated_micro_batches_are_one_batch() -> None:
    whole, parts = model_of(dropout=0.0)[0:1], model_of(dropout=0.0)[0:1]
    results = []
    for model, cuts in ((whole, 1), (parts, 4)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        SAM(0.3).attach(model, optimizer)

        def closure(model: nn.Module = model, cuts: int = cuts) -> float:
            model.zero_grad()
            total = 0.0
            for x in batch(0)[0].chunk(cuts):
                loss = model(x).square().mean() / cuts
                loss.backward()
                total += loss.item()
            return total

        optimizer.step(closure)  # type: ignore[arg-type]
        results.append(model[0].weight.values.detach())
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_a_resume_is_bit_equal() -> None:
    def run(model: nn.Module, optimizer: Any, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            optimizer.step(closure_of(model, step))

    whole, cut = model_of(), model_of()
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (whole, cut)]
    for model, optimizer in zip((whole, cut), optimizers, strict=True):
        ASAM(0.2).attach(model, optimizer)
    run(whole, optimizers[0], range(6))
    run(cut, optimizers[1], range(3))
    saved = copy.deepcopy((cut.state_dict(), optimizers[1].state_dict()))
    fresh = model_of()
    optimizer = torch.optim.AdamW(fresh.parameters(), lr=1e-2)
    ASAM(0.2).attach(fresh, optimizer)
    fresh.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    run(fresh, optimizer, range(3, 6))
    for a, b in zip(whole.state_dict().values(), fresh.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_detach_ends_it() -> None:
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    sam = SAM(0.5)
    sam.attach(model, optimizer)
    with pytest.raises(RecipeError, match="attached already"):
        sam.attach(model, optimizer)
    sam.detach()
    for step in range(3):
        torch.manual_seed(step)
        optimizer.step(closure_of(model, step))
    plain = train(model_of(), None)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: SAM(-1.0), gossamer.ArgumentError, "rho"),
        (lambda: SAM("1"), gossamer.DTypeError, "rho"),
        (lambda: FSAM(keep=2.0), gossamer.ArgumentError, "keep"),
        (lambda: AdaSAP(2.0, 1.0), gossamer.ArgumentError, "smaller radius"),
        (lambda: GradientPenalty(eps=0.0), gossamer.ArgumentError, "eps"),
        (lambda: GAM(weights=(1.0, 2.0)), gossamer.DTypeError, "weights"),
        (lambda: SAM().attach(nn.Linear(2, 2), object()), gossamer.DTypeError, "Optimizer"),
        (lambda: SAM().perturbed().__enter__(), RecipeError, "before attach"),
    ],
)
def test_bad_input_has_one_clear_error(
    make: Callable[[], Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        make()


def test_several_passes_need_a_closure_and_norms_must_be_there() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    for method, error in ((GAM(), RecipeError), (SAMON(), gossamer.ArgumentError)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        method.attach(model, optimizer)
        model(torch.randn(2, 3)).sum().backward()
        before = model[0].weight.detach().clone()
        with pytest.raises(error), method.perturbed():
            pass
        assert torch.equal(before, model[0].weight)
