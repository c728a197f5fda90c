"""Muon on dense, masked and sparse weights: the formula, masks that move, resume."""

import copy

import pytest
import torch
from torch import Tensor, nn

from gossamer import SparseLinear, backend
from gossamer.errors import GossamerError
from gossamer.nn import MaskedLinear, SparseConv2d
from gossamer.optim import Muon
from gossamer.optim.muon import newton_schulz
from gossamer.recipes import RigL
from support.recipe_course import batch, bits, network, take_step

pytestmark = pytest.mark.usefixtures("one_thread")


def orthogonal(matrix: Tensor) -> Tensor:
    """By singular values: five times the quintic 3.4445 s - 4.775 s^3 + 2.0315 s^5."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    return u @ s.diag() @ v


def oracle(weight: Tensor, grads: list[Tensor], mask: Tensor, every: int, nesterov: bool) -> Tensor:
    """The dense weight after one step per gradient, with lr 0.1, decay 0.05, RMS 0.2."""
    weight, momentum = weight.double() * mask, torch.zeros_like(weight, dtype=torch.float64)
    for t, gradient in enumerate(grads):
        gradient = gradient.double() * mask
        momentum = 0.9 * momentum + gradient
        if t % every == 0:
            ahead = gradient + 0.9 * momentum if nesterov else momentum
            direction = orthogonal(ahead) * mask
            direction *= 0.2 / (direction.square().sum() / mask.sum()).sqrt()
        weight = weight * (1 - 0.1 * 0.05) - 0.1 * direction
    return weight


SETTINGS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("pattern", ["2:4", "75%:v4", "block 4x4 50%", None])
def test_it_is_the_formula(pattern: str | None, nesterov: bool, every: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(24, 16)
    layer = linear if pattern is None else SparseLinear.from_dense(linear, pattern)
    mask = torch.ones(16, 24, dtype=torch.bool) if pattern is None else layer.weight.mask()
    dense = nn.Parameter(linear.weight.detach() * mask)
    masked = MaskedLinear(dense, None, pattern or "2:4", False)
    masked.set_mask(mask) if pattern else masked.set_dense()
    start = linear.weight.detach().clone()
    grads = [torch.randn(16, 24) for _ in range(5)]
    models = [layer, masked]
    optimizers = [
        Muon(m.parameters(), m, nesterov=nesterov, every=every, **SETTINGS) for m in models
    ]
    for gradient in grads:
        masked.weight.grad = gradient.clone()
        if pattern is None:
            linear.weight.grad = gradient.clone()
        else:
            layer.weight.values.grad = backend.gather(gradient, layer.structure)
        for optimizer in optimizers:
            optimizer.step()
    expected = oracle(start, grads, mask, every, nesterov)
    found = layer.weight if pattern is None else layer.weight.to_dense()
    torch.testing.assert_close(found.detach().double(), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(masked.weight.detach() * mask, found.detach(), rtol=1e-3, atol=1e-4)


def test_singular_values_become_about_one() -> None:
    matrix = torch.randn(32, 96)
    for given in (matrix, matrix.T, matrix.double() * 1e-9):
        values = torch.linalg.svdvals(newton_schulz(given))
        assert values.min() > 0.65
        assert values.max() < 1.25
    assert not newton_schulz(torch.zeros(4, 8)).any()


def test_all_the_rest_is_adamw_bit_for_bit() -> None:
    """Biases, norms, embeddings, and what is excluded."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(8, 16), SparseLinear(16, 8, pattern="2:4"), nn.LayerNorm(8))
    model.append(nn.Linear(8, 4))
    twin = copy.deepcopy(model)
    options = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.9), "eps": 1e-6}
    mine = Muon(model.parameters(), model, exclude=["*"], **options)
    theirs = torch.optim.AdamW(twin.parameters(), **options)
    x = torch.arange(8)
    for _ in range(4):
        for net, optimizer in ((model, mine), (twin, theirs)):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
    some = Muon(model.parameters(), model, exclude="3")
    held = [[tuple(p.shape) for p in g["params"]] for g in some.param_groups if g["orthogonal"]]
    assert held == [[(64,)]]


def test_groups_keep_their_settings_and_convolutions_are_matrices() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    model[0] = SparseConv2d.from_dense(model[0], "50%")
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[2].parameters()}]
    optimizer = Muon(groups, model, lr=0.1, rms=0.3, weight_decay=0.0)
    assert [(g["lr"], g["orthogonal"]) for g in optimizer.param_groups] == [
        (0.5, True), (0.5, False), (0.1, True), (0.1, False)
    ]  # fmt: skip
    before = [model[0].weight.values.detach().clone(), model[2].weight.detach().clone()]
    model(torch.randn(2, 4, 8, 8)).square().sum().backward()
    optimizer.step()
    after = model[0].weight.values, model[2].weight
    for old, new, rate in zip(before, after, (0.5, 0.1), strict=True):
        assert (old - new).square().mean().sqrt().item() == pytest.approx(0.3 * rate, rel=1e-3)


def course(every: int) -> tuple[nn.Module, RigL, Muon]:
    recipe = RigL("75%", every=3)
    model = recipe.prepare(network(), exclude=["4"])
    optimizer = Muon(recipe.parameters(model), model, lr=0.02, every=every)
    recipe.attach(model, optimizer, total_steps=24)
    return model, recipe, optimizer


@pytest.mark.parametrize("every", [1, 4])
def test_resume_is_bit_equal_and_state_follows_the_mask(every: int) -> None:
    model, recipe, optimizer = course(every)
    for t in range(24):
        if t == 14:
            parts = {"r": recipe, "m": model, "o": optimizer}
            saved = copy.deepcopy({k: part.state_dict() for k, part in parts.items()})
        weight = model[0].weight
        old = weight.mask()
        take_step(model, optimizer, *batch(t))
        if not torch.equal(old, weight.mask()):
            for name in ("momentum_buffer", "direction")[: 1 if every == 1 else 2]:
                held = optimizer.state[weight.values][name]
                dense = backend.scatter(held, weight.structure)
                assert not dense[weight.mask() & ~old].any()
                assert (dense[weight.mask() & old] != 0).float().mean() > 0.9
    again, resumed, other = course(every)
    resumed.load_state_dict(saved["r"])
    again.load_state_dict(saved["m"])
    other.load_state_dict(saved["o"])
    for t in range(14, 24):
        take_step(again, other, *batch(t))
    assert bits(again.state_dict()) == bits(model.state_dict())
    assert bits(other.state_dict()) == bits(optimizer.state_dict())


def test_it_learns_under_a_recipe() -> None:
    model, _, optimizer = course(2)
    losses = [take_step(model, optimizer, *batch(t)) for t in range(24)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    "options", [{"momentum": 1.0}, {"every": 0}, {"rms": 0.0}, {"lr": -1.0}, {"exclude": 3}]
)
def test_bad_settings_are_refused(options: dict) -> None:
    layer = nn.Linear(4, 4)
    with pytest.raises(GossamerError):
        Muon(layer.parameters(), layer, **options)
