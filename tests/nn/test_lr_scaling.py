"""The learning rate of a sparse weight follows its density, and schedulers do not notice."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import SparseLinear, parameter_groups
from gossamer.errors import ArgumentError, DTypeError
from gossamer.nn import MaskedLinear
from gossamer.nn.lr_scaling import follow_density, scaled_groups, unscaled_lr


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        SparseLinear(64, 32, pattern="75%"),
        nn.LayerNorm(32),
        MaskedLinear.from_dense(nn.Linear(32, 16), "1:8"),
        nn.Linear(16, 4),
    )


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 64, generator=generator)
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def factors(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr_factor"] for group in optimizer.param_groups if "lr_factor" in group]


def test_each_weight_with_a_mask_has_a_group_and_all_others_keep_theirs() -> None:
    model = network()
    names = {id(p): n for n, p in model.named_parameters()}
    groups = parameter_groups(model, 0.1, scale_lr=0.5)
    assert [([names[id(p)] for p in g["params"]], g["weight_decay"]) for g in groups] == [
        (["3.weight"], 0.1),
        (["0.weight.values"], 0.1),
        (["2.weight"], 0.1),
        (["0.bias", "1.weight", "1.bias", "2.bias", "3.bias"], 0.0),
    ]
    assert [g.get("lr_factor") for g in groups] == [None, 2.0, pytest.approx(8**0.5), None]
    assert parameter_groups(model, 0.1, scale_lr=False) == parameter_groups(model, 0.1)
    taken = parameter_groups(model, scale_lr=True)
    assert taken[1]["lr_factor"] == 4.0
    assert taken[1]["weight_decay"] == 0.0


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW, gossamer.optim.ProxAdamW])
def test_a_step_is_that_of_groups_with_the_multiplied_rate(make: type) -> None:
    model, twin = network(), network()
    scaled = make(parameter_groups(model, 0.1, scale_lr=1.0), lr=0.01)
    groups = parameter_groups(twin, 0.1, scale_lr=1.0)
    for group in groups:
        group["lr"] = 0.01 * group.pop("lr_factor", 1.0)
        group.pop("lr_exponent", None)
    by_hand = make(groups, lr=0.01)
    for _ in range(3):
        step(model, scaled)
        step(twin, by_hand)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)
    assert {group["lr"] for group in scaled.param_groups} == {0.01}


@pytest.mark.parametrize("kind", ["lambda", "cosine", "cycle", "plateau"])
def test_schedulers_own_the_rate(kind: str) -> None:
    rates: list[list[float]] = []
    for scale_lr in (False, 1.0):
        model = network()
        optimizer = torch.optim.SGD(parameter_groups(model, scale_lr=scale_lr), lr=0.01)
        seen: list[float] = []
        optimizer.register_step_pre_hook(
            lambda o, *_, seen=seen: seen.append(max(g["lr"] for g in o.param_groups))
        )
        schedule: torch.optim.lr_scheduler.LRScheduler = {
            "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
            "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 6),
            "cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(
                o, max_lr=0.02, total_steps=6, cycle_momentum=False
            ),
            "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
        }[kind](optimizer)
        outside = []
        for _ in range(5):
            step(model, optimizer)
            schedule.step(*([1.0] if kind == "plateau" else []))
            outside.append(optimizer.param_groups[0]["lr"])
            assert {g["lr"] for g in optimizer.param_groups} == {outside[-1]}
        rates += [seen, outside]
    plain, plain_outside, scaled, outside = rates
    assert outside == plain_outside
    assert scaled == pytest.approx([8.0 * rate for rate in plain])


def test_a_state_dict_holds_the_plain_rate_and_brings_the_factor_back() -> None:
    model = network()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1, scale_lr=0.5), lr=0.01)
    step(model, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    assert {group["lr"] for group in saved["param_groups"]} == {0.01}
    weights = copy.deepcopy(model.state_dict())
    step(model, optimizer)
    again = network()
    other = torch.optim.AdamW(parameter_groups(again, 0.1, scale_lr=1.0), lr=0.5)
    again.load_state_dict(weights)
    other.load_state_dict(saved)
    assert factors(other) == factors(optimizer)
    step(again, other)
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_step_that_raises_scales_no_rate_twice() -> None:
    model = network()
    optimizer = torch.optim.SGD(parameter_groups(model, scale_lr=1.0), lr=0.01)

    def refuse(*_: object) -> None:
        raise RuntimeError("refused")

    handle = optimizer.register_step_pre_hook(refuse)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="refused"):
            optimizer.step()
    assert [unscaled_lr(group) for group in optimizer.param_groups] == [0.01] * 4
    handle.remove()
    step(model, optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01] * 4


def test_an_optimizer_in_an_optimizer_scales_once() -> None:
    class Outer(torch.optim.Optimizer):
        """Shares the groups of its base, as implementations of SAM do."""

        def __init__(self, base: torch.optim.Optimizer) -> None:
            super().__init__(base.param_groups, {})
            self.base = base
            self.param_groups = base.param_groups

        def step(self, closure: None = None) -> None:  # type: ignore[override]
            self.base.step()

    model, twin = network(), network()
    outer = Outer(torch.optim.SGD(parameter_groups(model, scale_lr=1.0), lr=0.01))
    plain = torch.optim.SGD(parameter_groups(twin, scale_lr=1.0), lr=0.01)
    for _ in range(2):
        step(model, outer)
        step(twin, plain)
    assert torch.equal(model[0].weight.values, twin[0].weight.values)
    assert [group["lr"] for group in outer.param_groups] == [0.01] * 4


def test_the_factor_follows_a_mask_of_another_density() -> None:
    model = network()
    optimizer = torch.optim.AdamW(parameter_groups(model, scale_lr=1.0), lr=0.01)
    pattern = gossamer.parse_pattern("90%")
    mask = gossamer.masks.random_mask((32, 64), pattern, seed=1)
    model[0].weight.set_mask(mask, optimizer, pattern)
    model[2].set_dense()
    follow_density(optimizer, model)
    assert factors(optimizer) == [pytest.approx(1 / model[0].weight.density), 1.0]
    model[0].weight.set_mask(
        torch.zeros(32, 64, dtype=torch.bool), None, gossamer.Unstructured(1.0)
    )
    follow_density(optimizer, model)
    assert factors(optimizer)[0] == 1.0


@pytest.mark.parametrize("bad", [-0.5, math.inf, math.nan, "0.5"])
def test_exponents_are_checked(bad: object) -> None:
    with pytest.raises((ArgumentError, DTypeError), match="scale_lr="):
        parameter_groups(network(), 0.1, scale_lr=bad)  # type: ignore[arg-type]


def test_empty_groups_stay_and_zero_changes_nothing() -> None:
    model = network()
    own = [{"params": list(model.parameters())}, {"params": [], "kept": True}]
    assert scaled_groups(own, model, 0.0) == own
    *_, last = scaled_groups(own, model, 1.0)
    assert last == {"params": [], "kept": True}


def response(density: float, exponent: float) -> dict[str, Tensor]:
    """Sizes in a fresh layer of 1024 inputs, and what a step of Adam changes for its sample."""
    torch.manual_seed(0)
    layer = SparseLinear(1024, 1024, bias=False, pattern=gossamer.Unstructured(1.0 - density))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 1024, generator=generator, requires_grad=True)
    target = torch.randn(1, 1024, generator=generator)
    optimizer = torch.optim.Adam(parameter_groups(layer, scale_lr=exponent), lr=1e-4)
    before = layer(x)
    (before - target).square().sum().mul(0.5).backward()
    assert x.grad is not None
    assert layer.weight.values.grad is not None
    optimizer.step()
    change = layer(x.detach()) - before
    sizes = {
        "activations": before, "gradients": x.grad, "weights": layer.weight.values.grad,
        "updates": change,
    }  # fmt: skip
    return {name: size.detach().square().mean().sqrt() for name, size in sizes.items()}


@pytest.mark.parametrize("density", [0.5, 0.25, 0.1, 0.05, 0.01])
def test_activations_gradients_and_updates_keep_their_scale(density: float) -> None:
    whole, sparse = response(1.0, 1.0), response(density, 1.0)
    for name, size in whole.items():
        assert float(sparse[name] / size) == pytest.approx(1.0, abs=0.1), name
    # Without a factor an update is as much smaller as there are fewer inputs.
    unscaled = response(density, 0.0)["updates"] / whole["updates"]
    assert float(unscaled) == pytest.approx(density, rel=0.1)
