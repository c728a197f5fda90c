"""State and errors of the proximal optimizers: resume bit for bit, one clear error each."""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer.errors import (
    ArgumentError,
    DeviceError,
    DTypeError,
    GossamerError,
    PatternError,
    ShapeError,
)
from gossamer.optim import AcceleratedProxGradient, HalfSpace, ProxAdamW, ProxSGD
from gossamer.prox import L1, WGSEF, Lp
from gossamer.schedules import Cubic, Linear
from gossamer.train import load_checkpoint, save_checkpoint
from gossamer.weight import SparseWeight
from support.grids import covering

Make = Callable[[nn.Module], Any]


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(7, 12), nn.Tanh(), nn.Linear(12, 4))


def groups(model: nn.Module) -> list[dict[str, Any]]:
    first, second = model[0], model[2]
    wgsef = WGSEF(k=Cubic(12, 4, 5, 15), lam=0.5, groups="neuron")
    return [
        {"params": [first.weight], "penalty": wgsef, "half_space": HalfSpace(start=13)},
        {"params": [second.weight], "penalty": L1(Linear(0.0, 0.01, 2, 18))},
        {"params": [first.bias], "penalty": Lp(1e-4, 0.5)},
        {"params": [second.bias]},
    ]


MAKERS: dict[str, Make] = {
    "sgd": lambda model: ProxSGD(groups(model), lr=0.1),
    "nesterov": lambda model: ProxSGD(groups(model), lr=0.05, momentum=0.9, nesterov=True),
    "adamw": lambda model: ProxAdamW(groups(model), lr=0.02, weight_decay=0.1),
    "accumulate": lambda model: ProxAdamW(
        [g | {"half_space": None} for g in groups(model)], lr=0.02, accumulate=True
    ),
    "amsgrad": lambda model: ProxAdamW(groups(model), lr=0.02, amsgrad=True),
    "accelerated": lambda model: AcceleratedProxGradient(
        [g | {"half_space": None} for g in groups(model)], lr=0.1
    ),
    "objective": lambda model: AcceleratedProxGradient(
        [g | {"half_space": None} for g in groups(model)], lr=0.1, restart="objective"
    ),
}


def train(model: nn.Module, optimizer: Any, first: int, last: int) -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(last, 16, 7, generator=generator)
    for step in range(first, last):
        x = data[step if not isinstance(optimizer, AcceleratedProxGradient) else 0]

        def closure(x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = (model(x) - x[:, :4].sin()).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


@pytest.mark.parametrize(
    ("name", "stop", "through"),
    covering(list(MAKERS), [1, 9, 14], ["torch.save", "checkpoint", "deepcopy"]),
)
def test_resuming_equals_no_interruption_bit_for_bit(
    name: str, stop: int, through: str, tmp_path: Path
) -> None:
    whole, part, resumed = network(), network(), network()
    train(whole, MAKERS[name](whole), 0, 20)
    optimizer = MAKERS[name](part)
    train(part, optimizer, 0, stop)
    state = {"model": part.state_dict(), "optimizer": optimizer.state_dict()}
    if through == "torch.save":
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
    elif through == "checkpoint":
        save_checkpoint(tmp_path / "a.safetensors", state)
        state = load_checkpoint(tmp_path / "a.safetensors")
    else:
        state = copy.deepcopy(state)
    resumed.load_state_dict(state["model"])
    second = MAKERS[name](resumed)
    second.load_state_dict(state["optimizer"])
    train(resumed, second, stop, 20)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert (whole[0].weight == 0).any()


@pytest.mark.parametrize("ours", [ProxSGD, ProxAdamW])
def test_a_state_of_torch_is_taken_up(ours: Any) -> None:
    theirs = torch.optim.SGD if ours is ProxSGD else torch.optim.AdamW
    options: dict[str, Any] = {"lr": 0.05} | ({"momentum": 0.9} if ours is ProxSGD else {})
    one, other = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 2))
    before, after = theirs([one], **options), ours([other], penalty=L1(0.0), **options)
    for step in range(8):
        one.grad = other.grad = torch.full((3, 2), 0.1 * step)
        before.step()
        if step == 3:
            other.data.copy_(one.data)
            after.load_state_dict(copy.deepcopy(before.state_dict()))
        elif step > 3:
            after.step()
            assert torch.equal(one, other)
    after.param_groups[0]["penalty"] = L1(0.1)
    after.step()
    assert (other < one).all()
    before.load_state_dict(after.state_dict())


def test_the_state_dict_has_no_penalty_and_loading_keeps_it() -> None:
    model = network()
    optimizer = MAKERS["adamw"](model)
    train(model, optimizer, 0, 2)
    state = optimizer.state_dict()
    assert all(not {"penalty", "half_space"} & group.keys() for group in state["param_groups"])
    assert [group["penalty_step"] for group in state["param_groups"]] == [2, 2, 2, 2]
    penalties = [group["penalty"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    assert all(g["penalty"] is p for g, p in zip(optimizer.param_groups, penalties, strict=True))
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(state | {"param_groups": state["param_groups"][:2]})
    assert all(g["penalty"] is p for g, p in zip(optimizer.param_groups, penalties, strict=True))


# ---- sparse weights ------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [ProxSGD, ProxAdamW])
def test_a_sparse_weight_is_penalised_by_its_coordinates(kind: Any) -> None:
    """The kept entries move as those of the dense matrix with the same zeros do."""
    torch.manual_seed(0)
    dense = torch.randn(8, 16) * torch.tensor([0.01, 6.0]).repeat_interleave(4)[:, None]
    sparse = SparseWeight.from_dense(dense, "2:4:v4")
    mask = sparse.mask()
    masked = nn.Parameter(dense * mask)
    penalty = L1(0.2, groups="neuron")
    first = kind([{"params": [sparse.values], "penalty": penalty.on(sparse)}], lr=0.1)
    second = kind([masked], lr=0.1, penalty=penalty)
    for _ in range(12):
        gradient = 0.1 * torch.randn(8, 16) * mask
        masked.grad = gradient
        sparse.values.grad = SparseWeight.from_dense(gradient, "2:4:v4", mask=mask).values.detach()
        first.step()
        second.step()
        torch.testing.assert_close(sparse.to_dense(), masked.detach(), rtol=1e-5, atol=1e-6)
    counts = first.sparsity()["0.0"]
    assert 0 < counts.zero_groups < 8
    assert counts.groups == 8
    assert counts.zero_groups == second.sparsity()["0.0"].zero_groups


# ---- errors --------------------------------------------------------------------------------------
def weight(*shape: int, **options: Any) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape, **options))


@pytest.mark.parametrize("kind", [ProxSGD, ProxAdamW, AcceleratedProxGradient])
@pytest.mark.parametrize(
    ("params", "options", "error", "message"),
    [
        ([weight(2)], {"penalty": "l1"}, DTypeError, "group 0 got penalty='l1'.*such as L1"),
        ([weight(2)], {"penalty": L1}, DTypeError, "group 0 got penalty=<class"),
        ([weight(2, dtype=torch.bfloat16)], {"penalty": L1(1.0)}, DTypeError, "parameter 0.0 is"),
        ([weight(2, dtype=torch.cfloat)], {"penalty": L1(1.0)}, DTypeError, "complex64"),
        ([weight(2, device="meta")], {"penalty": L1(1.0)}, DeviceError, "is on meta"),
        (
            [("fc.weight", weight(2, 2)), ("fc.bias", weight(2))],
            {"penalty": L1(1.0, groups="filter")},
            (PatternError, ShapeError),
            "parameter fc.weight",
        ),
        (
            [{"params": [weight(2)]}, {"params": [weight(3)], "penalty": 3}],
            {},
            DTypeError,
            "group 1 got penalty=3",
        ),
    ],
)
def test_construction_refuses(
    kind: Any, params: Any, options: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        kind(params, lr=0.1, **options)


@pytest.mark.parametrize("kind", [ProxSGD, ProxAdamW])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": 0.0}, ArgumentError, "lr=0 and a penalty"),
        ({"lr": float("nan")}, ValueError, "lr=nan"),
        ({"half_space": 7}, DTypeError, "half_space=7"),
        ({"lr": -1.0}, ArgumentError, "lr=-1.0; it must be finite and >= 0"),
    ],
)
def test_settings_are_checked(
    kind: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        kind([weight(2)], **({"lr": 0.1, "penalty": L1(1.0)} | options))
    assert kind([weight(2)], lr=0.0)


def test_what_is_not_supported_says_so() -> None:
    with pytest.raises(DTypeError, match="capturable=True and a penalty"):
        ProxAdamW([weight(2)], capturable=True, penalty=L1(1.0))
    with pytest.raises(DTypeError, match="differentiable=True"):
        ProxSGD([{"params": [weight(2)], "differentiable": True}])
    with pytest.raises(DTypeError, match=r"half_space=.*use ProxSGD"):
        AcceleratedProxGradient([{"params": [weight(2)], "half_space": HalfSpace(0)}], lr=0.1)
    with pytest.raises(ArgumentError, match="restart='often'; choose"):
        AcceleratedProxGradient([weight(2)], lr=0.1, restart="often")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="lr=0"):
        AcceleratedProxGradient([weight(2)], lr=0)
    with pytest.raises(DTypeError, match="got no closure"):
        AcceleratedProxGradient([weight(2)], lr=0.1).step()
    for options in ({"start": -1}, {"start": 1.5}, {"start": 0, "eps": 1.0}):
        with pytest.raises(ArgumentError, match="HalfSpace got"):
            HalfSpace(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="empty parameter list"):
        ProxSGD([])
    with pytest.raises(DTypeError, match="iterable of parameters"):
        ProxSGD(torch.ones(2))


@pytest.mark.parametrize("kind", [ProxSGD, ProxAdamW])
def test_sparse_gradients_and_negative_rates_are_refused_before_anything_moves(kind: Any) -> None:
    table, other = weight(4, 3), weight(2)
    optimizer = kind([other, table], lr=0.1, penalty=L1(0.1))
    other.grad = torch.ones(2)
    table.grad = torch.ones(4, 3).to_sparse()
    with pytest.raises(DTypeError, match="sparse gradient"):
        optimizer.step()
    table.grad = torch.ones(4, 3)
    optimizer.param_groups[0]["lr"] = -0.1
    with pytest.raises(ArgumentError, match=r"lr=-0\.1 and a penalty"):
        optimizer.step()
    assert torch.equal(other, torch.ones(2))
    assert not optimizer.state[other]


def test_a_group_that_does_not_fit_is_not_added() -> None:
    optimizer = ProxSGD([weight(2)], lr=0.1)
    with pytest.raises(GossamerError, match=r"parameter 1\.0"):
        optimizer.add_param_group({"params": weight(2), "penalty": L1(0.1, groups="filter")})
    assert len(optimizer.param_groups) == 1
