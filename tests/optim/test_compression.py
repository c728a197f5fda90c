"""CrAM equals its formula on dense weights, runs on the sparse kernels and resumes exactly."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer
from gossamer import ArgumentError, CheckpointError, DTypeError, PatternError, RecipeError
from gossamer.masks import magnitude_mask
from gossamer.optim.sharpness import CrAM, GradientPenalty, Sharpness

DTYPE = torch.float64
KEPT_DENSE = "7"
SETTINGS: dict[str, dict[str, Any]] = {
    "plus": {},
    "cram": {"plus": False},
    "normalised": {"normalise": True, "rho": 0.3},
    "unmasked": {"masked": False},
    "in place": {"rho": 0.0},
    "global": {"distribution": "global", "patterns": ["50%", "80%", "75%:v4"]},
    "n of m": {"patterns": ["2:4", "1:4:v4", "2:4:v4", "70%:v8"]},
}


def model_of(dropout: float = 0.3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 16, 16), nn.Dropout(dropout), nn.GELU(), nn.Linear(16, 4),
    ).to(DTYPE)  # fmt: skip


def loss_of(model: nn.Module, step: int) -> Tensor:
    random = torch.Generator().manual_seed(step)
    x = torch.randn(6, 4, 4, 4, generator=random, dtype=DTYPE)
    return F.mse_loss(model(x), torch.randn(6, 4, generator=random, dtype=DTYPE))


def closure_of(model: nn.Module, step: int) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        model.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        return loss

    return closure


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    # Not Adam: the bias before the BatchNorm has a gradient of rounding errors alone.
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def train(
    model: nn.Module, cram: CrAM | None, optimizer: torch.optim.Optimizer, steps: range = range(4)
) -> nn.Module:
    if cram is not None and cram.optimizer is None:
        cram.attach(model, optimizer)
    for step in steps:
        torch.manual_seed(step)
        optimizer.step(closure_of(model, step))
    return model


def by_formula(
    model: nn.Module,
    patterns: list[str],
    rho: float = 0.05,
    plus: bool = True,
    normalise: bool = False,
    masked: bool = True,
    distribution: str = "uniform",
) -> nn.Module:
    """CrAM over dense weights, without kernels: the oracle."""
    optimizer, draws = optimizer_of(model), torch.Generator().manual_seed(0)
    pruned = [model[0].weight, model[4].weight]  # type: ignore[index]
    parameters = list(model.parameters())
    for step in range(4):
        torch.manual_seed(step)
        g = torch.autograd.grad(loss_of(model, step), parameters)
        pattern = patterns[int(torch.randint(len(patterns), (), generator=draws))]
        factor = rho / torch.cat([x.flatten() for x in g]).norm() if normalise else rho
        moved = {p: p.detach() + factor * x for p, x in zip(parameters, g, strict=True)}
        flat = [moved[p].movedim(1, -1).flatten(1) for p in pruned]  # taps, then channels
        if distribution == "global":
            high = gossamer.parse_pattern(pattern).tile[0]
            scores = [m.square().view(len(m) // high, high, -1).sum(1) for m in flat]
            kept = sum(gossamer.parse_pattern(pattern).count(*m.shape) for m in flat) // high
            bar = torch.cat([s.flatten() for s in scores]).sort(descending=True).values[kept - 1]
            masks = [(s >= bar).repeat_interleave(high, 0) for s in scores]
        else:
            masks = [magnitude_mask(m, pattern) for m in flat]
        mask = {
            p: m.view(len(p), *p.shape[2:], -1).movedim(-1, 1)
            for p, m in zip(pruned, masks, strict=True)
        }
        other = copy.deepcopy(model)
        for p, q in zip(parameters, other.parameters(), strict=True):
            q.data = moved[p] * mask.get(p, torch.ones(()))
        torch.manual_seed(step)
        second = torch.autograd.grad(loss_of(other, step), list(other.parameters()))
        for p, x, y in zip(parameters, g, second, strict=True):
            kept_second = y * mask[p] if masked and p in mask else y
            p.grad = x + kept_second if plus else kept_second
        optimizer.step()
    return model


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_its_formula(name: str) -> None:
    options = {"patterns": ["50%", "70%", "90%"]} | SETTINGS[name]
    model = model_of()
    got = train(model, CrAM(**options, exclude=KEPT_DENSE), optimizer_of(model))
    expected = by_formula(model_of(), **options)
    for (key, a), b in zip(got.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=key)
    plain = train(other := model_of(), None, optimizer_of(other))
    assert not torch.allclose(plain[4].weight, got[4].weight)  # type: ignore[index]


def test_the_pruned_pass_runs_on_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer to prune is multiplied densely once a step, and once by its kept entries."""
    model, calls = model_of(), []
    dense, sparse = F.linear, gossamer.nn.layers.straight_through.Masked.forward
    monkeypatch.setattr(F, "linear", lambda *a: calls.append("dense") or dense(*a))
    masked = gossamer.nn.layers.straight_through.Masked
    monkeypatch.setattr(
        masked, "forward", staticmethod(lambda *a: calls.append("kept") or sparse(*a))
    )
    train(model, CrAM("2:4", exclude=KEPT_DENSE), optimizer_of(model), range(1))
    # First pass: both linear layers. Second: the convolution, one linear layer, the other one.
    assert calls == ["dense", "dense", "kept", "kept", "dense"]
    assert all("forward" not in vars(module) for module in model.modules())


def test_off_is_the_optimizer_bit_for_bit() -> None:
    off, plain = model_of(), model_of()
    train(off, CrAM([]), optimizer_of(off))
    train(plain, None, optimizer_of(plain))
    for a, b in zip(off.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_resume_is_bit_equal() -> None:
    whole, cut, fresh = model_of(), model_of(), model_of()
    train(whole, CrAM(exclude=KEPT_DENSE), optimizer_of(whole), range(8))
    cram, optimizer = CrAM(exclude=KEPT_DENSE), optimizer_of(cut)
    train(cut, cram, optimizer, range(3))
    saved = copy.deepcopy((cut.state_dict(), optimizer.state_dict(), cram.state_dict()))
    cram, optimizer = CrAM(exclude=KEPT_DENSE, seed=5), optimizer_of(fresh)
    cram.attach(fresh, optimizer)
    for part, state in zip((fresh, optimizer, cram), saved, strict=True):
        part.load_state_dict(state)
    train(fresh, cram, optimizer, range(3, 8))
    for a, b in zip(whole.state_dict().values(), fresh.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_pass_by_hand_and_scaled_losses() -> None:
    """The radius is that of the gradient itself, whatever the loss was multiplied by."""
    models = [model_of(dropout=0.0) for _ in range(3)]
    train(models[0], CrAM(exclude=KEPT_DENSE, rho=0.5), optimizer_of(models[0]))
    for model, scale in zip(models[1:], (1.0, 1024.0), strict=True):
        optimizer, cram = optimizer_of(model), CrAM(exclude=KEPT_DENSE, rho=0.5)
        cram.attach(model, optimizer)
        for step in range(4):
            optimizer.zero_grad()
            (loss_of(model, step) * scale).backward()
            with cram.perturbed(loss_scale=scale):
                (loss_of(model, step) * scale).backward()
            for p in model.parameters():
                p.grad /= scale
            optimizer.step()
    for other in models[1:]:
        for a, b in zip(models[0].parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_gradients_that_are_not_finite_move_nothing() -> None:
    model = model_of()
    optimizer, cram = optimizer_of(model), CrAM("50%", exclude=KEPT_DENSE, rho=1.0)
    cram.attach(model, optimizer)
    (loss_of(model, 0) * torch.inf).backward()
    before = [p.detach().clone() for p in model.parameters()]
    with cram.perturbed():
        changed = (model[0].weight != before[0]) & (model[0].weight != 0)
        assert not changed.any()
        assert (model[0].weight == 0).float().mean() == 0.5
    for p, start in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, start)


def test_accumulated_micro_batches_are_one_batch() -> None:
    results = []
    for cuts in (1, 3):
        model = model_of(dropout=0.0)[4:5]
        optimizer, cram = torch.optim.SGD(model.parameters(), lr=0.1), CrAM("2:4", rho=0.5)
        cram.attach(model, optimizer)
        x = torch.randn(6, 128, generator=torch.Generator().manual_seed(0), dtype=DTYPE)

        def closure(model: nn.Module = model, cuts: int = cuts, x: Tensor = x) -> float:
            model.zero_grad()
            for part in x.chunk(cuts):
                (model(part).square().mean() / cuts).backward()
            return 0.0

        optimizer.step(closure)
        results.append(model[0].weight.detach())
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_shared_weights_other_uses_and_foreign_forwards() -> None:
    """Two layers of one weight, a weight that code multiplies by itself, a replaced forward."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(16, 16, bias=False) for _ in range(4))
            self.b.weight = self.a.weight
            self.d.forward = lambda x: F.linear(x, self.d.weight) * 2

        def forward(self, x: Tensor) -> Tensor:
            return self.d(F.linear(self.b(self.a(x).relu()), self.c.weight))

    torch.manual_seed(0)
    model = Tied().to(DTYPE)
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1), dtype=DTYPE)
    pruned, optimizer = copy.deepcopy(model), torch.optim.SGD(model.parameters(), lr=1.0)
    pruned.d.forward = lambda x: F.linear(x, pruned.d.weight) * 2
    CrAM("2:4", rho=0.0, plus=False).attach(model, optimizer)
    masks = {name: magnitude_mask(p.detach(), "2:4") for name, p in model.named_parameters()}
    for name, p in pruned.named_parameters():
        p.data *= masks[name]
    pruned(x).square().sum().backward()
    expected = {n: p.grad * masks[n] for n, p in pruned.named_parameters()}

    def closure() -> float:
        model.zero_grad()
        model(x).square().sum().backward()
        return 0.0

    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer.step(closure)
    for name, p in model.named_parameters():
        torch.testing.assert_close(before[name] - p, expected[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "make", [lambda: CrAM("50%", exclude=KEPT_DENSE), lambda: GradientPenalty(0.5)]
)
def test_gradients_that_are_views_of_buckets(make: Callable[[], Sharpness], tmp_path: Path) -> None:
    """The second pass writes into the buckets that hold the gradients of the first."""
    plain, wrapped = model_of(), model_of()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    try:
        parallel = nn.parallel.DistributedDataParallel(wrapped, gradient_as_bucket_view=True)
        for model in (plain, parallel):
            optimizer = optimizer_of(model)
            make().attach(model, optimizer)
            for step in range(3):
                torch.manual_seed(step)
                optimizer.step(closure_of(model, step))
    finally:
        torch.distributed.destroy_process_group()
    for a, b in zip(plain.parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_autocast_and_compiled_models() -> None:
    for compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 8))
        call = torch.compile(model, backend="eager") if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        CrAM("2:4:v4", exclude="2").attach(model, optimizer)
        x = torch.randn(16, 32)

        def closure(call: Any = call, optimizer: Any = optimizer, x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=not compiled):  # noqa: B023
                loss = call(x).float().square().mean()
            loss.backward()
            return loss

        losses = [optimizer.step(closure).item() for _ in range(8)]
        assert losses[-1] < losses[0]
        assert model[0].weight.grad.dtype == torch.float32


def test_the_cut_costs_less() -> None:
    """A network that is trained with CrAM+ loses less when it is cut than one trained without."""
    x = torch.randn(512, 16, generator=torch.Generator().manual_seed(0))
    y = torch.stack([x[:, 0] * x[:, 1], x[:, 2].abs(), (x[:, 3] - x[:, 4]).relu()], 1)
    lost = []
    for cram in (None, CrAM(["50%", "75%"], exclude="4")):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        if cram is not None:
            cram.attach(model, optimizer)

        def closure(model: nn.Module = model) -> Tensor:
            model.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            return loss

        for _ in range(150):
            optimizer.step(closure)
        dense = F.mse_loss(model(x), y).item()
        cut = gossamer.sparsify(model, "75%", exclude="4")
        lost.append(F.mse_loss(cut(x), y).item() - dense)
    assert lost[1] < 0.3 * lost[0]


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: CrAM(rho=-1.0), ArgumentError, "rho"),
        (lambda: CrAM(["80", "x"]), PatternError, "80"),
        (lambda: CrAM("nonzeros"), PatternError, "prunes nothing"),
        (lambda: CrAM(distribution="local"), ArgumentError, "distribution"),  # type: ignore[arg-type]
        (lambda: CrAM(seed="a"), DTypeError, "seed"),  # type: ignore[arg-type]
        (lambda: attached(CrAM("2:5")), PatternError, "multiple of 5"),
        (lambda: attached(CrAM(exclude="x*")), PatternError, "matches no module"),
        (lambda: attached(CrAM(exclude="*")), PatternError, "no layer to prune"),
        (lambda: CrAM().load_state_dict({}), CheckpointError, "state_dict"),
        (lambda: CrAM().load_state_dict({"random": 1}), CheckpointError, "state_dict"),  # type: ignore[dict-item]
        (lambda: CrAM().perturbed(0.0).__enter__(), ArgumentError, "loss_scale"),
        (lambda: CrAM().perturbed().__enter__(), RecipeError, "before attach"),
    ],
)
def test_bad_input_has_one_clear_error(
    make: Callable[[], Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        make()


def attached(cram: CrAM) -> None:
    model = model_of()
    try:
        cram.attach(model, optimizer_of(model))
    except Exception:
        assert cram.optimizer is None
        raise
