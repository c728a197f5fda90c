"""What operators, optimizers and sparse codes refuse, and what extreme numbers must not break."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gossamer import codes
from gossamer.codes import Code
from gossamer.errors import (
    ArgumentError,
    DeviceError,
    DTypeError,
    GossamerError,
    ScheduleError,
    ShapeError,
    StructureError,
)
from gossamer.optim import AcceleratedProxGradient, HalfSpace, ProxAdamW, ProxSGD
from gossamer.prox import (
    L1,
    WGSEF,
    ElasticNet,
    L1Ball,
    LogSum,
    Lp,
    Penalty,
    Simplex,
    TopK,
    TransformedL1,
)
from gossamer.prox.checks import share_memory
from gossamer.prox.groupings import Groups, partition
from gossamer.prox.path_norm import joint_prox_, path_norm, path_thresholds
from gossamer.schedules import Linear
from support.prox_penalty_cases import ONE_OF_EACH, name

pytestmark = pytest.mark.slow

# Memory that is not there, not plain, or not of one entry alone.


def _freed() -> Tensor:
    x = torch.ones(4, 4)
    x.untyped_storage().resize_(0)
    return x


ODD: dict[str, tuple[Callable[[], Any], type[Exception]]] = {
    "list": (lambda: [[1.0, 2.0]], DTypeError),
    "number": (lambda: 1.0, DTypeError),
    "sparse": (lambda: torch.eye(4).to_sparse(), DTypeError),
    "csr": (lambda: torch.eye(4).to_sparse_csr(), DTypeError),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(2)]), DTypeError),
    "meta": (lambda: torch.empty(4, 4, device="meta"), DeviceError),
    "freed": (_freed, DeviceError),
    "complex": (lambda: torch.ones(4, 4, dtype=torch.complex64), DTypeError),
    "text": (lambda: np.zeros((4, 4), "U3"), DTypeError),
    "masked": (lambda: np.ma.masked_array(np.eye(4), mask=np.eye(4) > 0), DTypeError),
}


@pytest.mark.parametrize("penalty", [L1(0.5), WGSEF(k=2, lam=1.0), Simplex()], ids=name)
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.filterwarnings("ignore:(Sparse CSR|The PyTorch API of nested):UserWarning")
def test_entries_that_are_no_plain_memory(penalty: Penalty, odd: str) -> None:
    make, error = ODD[odd]
    good = torch.ones(4, 4)
    for use in (
        lambda: penalty.prox_(make()),
        lambda: penalty.value(make()),
        lambda: penalty.subdiff_distance(make(), make()),
        lambda: penalty.prox_(good, metric=make()),
    ):
        with pytest.raises(error):
            use()
    assert torch.equal(good, torch.ones(4, 4))


def _window(sizes: tuple[int, ...], strides: tuple[int, ...]) -> list[Any]:
    array = np.arange(64.0)
    bytes_ = tuple(8 * stride for stride in strides)
    return [
        torch.arange(64.0).as_strided(sizes, strides),
        np.lib.stride_tricks.as_strided(array, sizes, bytes_),
    ]


@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (0, 1), (1, 0)])
@pytest.mark.parametrize("penalty", [L1(0.5), L1(0.5, groups="neuron"), TopK(3)], ids=name)
def test_entries_that_share_memory(penalty: Penalty, strides: tuple[int, ...]) -> None:
    for x in _window((4, 3), strides):
        before = torch.as_tensor(x).clone()
        with pytest.raises(ShapeError, match="share memory"):
            penalty.prox_(x)
        assert torch.equal(torch.as_tensor(x), before)


def test_strides_that_interleave_without_sharing() -> None:
    assert not share_memory((2, 3), (3, 2))
    assert share_memory((2, 4), (3, 3))
    for x in _window((2, 3), (3, 2)):
        expected = (torch.as_tensor(x).double() - 1.5).clamp(min=0.0)
        assert torch.equal(torch.as_tensor(L1(1.5).prox_(x)).double(), expected)


def test_neurons_that_share_memory() -> None:
    for w in _window((3, 2), (1, 1)):
        v = torch.ones(3) if isinstance(w, Tensor) else np.ones(3)
        thresholds = w.copy() if isinstance(w, np.ndarray) else w.clone()
        with pytest.raises(ShapeError, match="w is expanded"):
            joint_prox_(v, w, thresholds)


# Numbers that are none, or too large.


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: L1(10**400), GossamerError),
        (lambda: TopK(10**400), GossamerError),
        (lambda: L1(1.0).prox_(torch.ones(2), 10**400), GossamerError),
        (lambda: Linear(10**400, 1, 0, 10), ScheduleError),
        (lambda: HalfSpace(0, "0.5"), ArgumentError),  # type: ignore[arg-type]
        (lambda: HalfSpace(True), ArgumentError),
        (lambda: AcceleratedProxGradient([torch.ones(2)], lr="1"), DTypeError),  # type: ignore[arg-type]
        (lambda: path_norm(torch.ones(2), torch.ones(2, 2), "1"), DTypeError),  # type: ignore[arg-type]
        (lambda: path_norm([1.0], torch.ones(1, 2), 0.5), DTypeError),  # type: ignore[arg-type]
        (lambda: path_thresholds(torch.ones(2, 2), 0.5, None), DTypeError),  # type: ignore[arg-type]
        (lambda: codes.top_k(torch.ones(2, 3), 2.0), DTypeError),  # type: ignore[arg-type]
        (lambda: codes.top_k(torch.ones(2, 3), 2**70), ArgumentError),
        (lambda: codes.top_k(torch.eye(3).to_sparse(), 1), DTypeError),
        (lambda: codes.IHT(torch.eye(2), "1"), DTypeError),  # type: ignore[arg-type]
        (lambda: codes.ISTA(torch.eye(2), 1.0)(torch.ones(1, 2).double()), DTypeError),
        (lambda: codes.TopKAutoencoder(4, 8.0, 2), DTypeError),  # type: ignore[arg-type]
        (lambda: codes.TopKAutoencoder(4, 8, 2, levels=2), DTypeError),  # type: ignore[arg-type]
        (lambda: codes.TopKAutoencoder(4, 8, 2)([[1.0]]), DTypeError),
        (lambda: codes.TopKAutoencoder(4, 8, 2)(torch.ones(1, 4).half()), DTypeError),
        (lambda: codes.encode(torch.ones(2, 3), torch.ones(4, 2), torch.ones(4), 1), ShapeError),
        (lambda: codes.encode(torch.ones(2, 3).half(), torch.eye(3), torch.ones(3), 1), DTypeError),
        (lambda: codes.decode((1, 2), torch.eye(2)), DTypeError),  # type: ignore[arg-type]
    ],
)
def test_a_number_or_a_tensor_that_does_not_fit(
    make: Callable[[], object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        make()


@pytest.mark.parametrize("bias", [torch.ones(1), torch.ones(2, 3), torch.tensor(1.0)])
def test_a_bias_is_not_broadcast(bias: Tensor) -> None:
    code = Code(torch.ones(2, 2), torch.tensor([[0, 1], [1, 0]]))
    with pytest.raises(ShapeError, match="bias"):
        codes.prefix_errors(torch.ones(2, 3), code, torch.ones(2, 3), bias)


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        (["a", "b"], DTypeError),
        ([None, None], DTypeError),
        ([[0, [1]], [2]], DTypeError),
        ([[0, 10**30]], DTypeError),
        (np.array([0, "x"], dtype=object), DTypeError),
        (torch.zeros(4, dtype=torch.int64, device="meta"), DTypeError),
        (Groups(1, 2, 1, torch.tensor([0, 2, 4]), torch.tensor([0, 1, 1, 2])), StructureError),
        (Groups(1, 2, 1, torch.tensor([0, 2, 4]), None), StructureError),
        (Groups(1, 2, 1, [0, 2, 4], [0, 1, 2, 3]), DTypeError),  # type: ignore[arg-type]
        (Groups(1.0, 2, 2), GossamerError),  # type: ignore[arg-type]
    ],
)
def test_a_partition_that_is_none(labels: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        L1(1.0, groups=labels)


def test_a_partition_is_looked_at_once() -> None:
    groups = partition([[0, 2], [1, 3]], 4)
    scheduled = L1(Linear(0, 1, 0, 4), groups=groups)
    assert scheduled.at(2).groups is groups
    assert L1(1.0, groups=[torch.tensor(0), torch.tensor(1)]).value(torch.ones(2)) == 2.0


# Extreme numbers.


@pytest.mark.parametrize("penalty", ONE_OF_EACH, ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lib", ["torch", "numpy"])
def test_a_metric_whose_inverse_overflows(penalty: Penalty, dtype: torch.dtype, lib: str) -> None:
    tiny = torch.full((6,), 1e-45 if dtype == torch.float32 else 5e-324, dtype=dtype)
    for step in (0.0, 1.0):
        x = torch.tensor([0.0, 1.0, -2.0, 0.5, 3.0, -1e-3], dtype=dtype)
        given: Any = (x, tiny) if lib == "torch" else (x.numpy(), tiny.numpy())
        try:
            penalty.prox_(given[0], step, metric=given[1])
        except GossamerError:
            continue  # a product that overflows is said
        assert torch.isfinite(x).all()


def test_strength_zero_in_a_metric_changes_nothing() -> None:
    x, tiny = torch.tensor([1.0, -2.0]), torch.full((2,), 1e-45)
    for penalty in (L1(0.0), ElasticNet(0.0, 0.5)):
        assert torch.equal(penalty.prox_(x.clone(), metric=tiny), x)


@pytest.mark.parametrize("metric", [None, torch.full((2,), 2.0)])
def test_weights_beyond_float32_meet_their_lam_in_time(metric: Tensor | None) -> None:
    penalty = L1(1e-40, weights=torch.tensor([1e40, 1e300], dtype=torch.float64))
    threshold = 1.0 if metric is None else 0.5
    found = penalty.prox_(torch.tensor([3.0, 3.0]), metric=metric)
    assert found.tolist() == [pytest.approx(3.0 - threshold, rel=1e-6), 0.0]


def test_the_value_of_nothing() -> None:
    assert math.isinf(Simplex().value(torch.empty(0)))
    assert L1Ball(1.0).value(torch.empty(0)) == 0.0


# Optimizers.


@pytest.mark.parametrize("kind", [ProxAdamW, ProxSGD])
@pytest.mark.parametrize("fused", [None, True])
def test_scaled_gradients(kind: Any, fused: bool | None) -> None:
    """A gradient scaler unscales the gradients, and skips whole steps, penalties included."""
    slopes = torch.tensor([1.0, 2.0, 3.0])
    scaled, plain = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    extra = {"eps": 1.0} if kind is ProxAdamW else {}  # so that the scale of a gradient matters
    one, two = (kind([w], lr=0.1, penalty=L1(0.1), fused=fused, **extra) for w in (scaled, plain))
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    scaler.scale((scaled * slopes).sum()).backward()
    scaler.step(one)
    scaler.update()
    plain.grad = slopes.clone()
    two.step()
    assert torch.equal(scaled, plain)

    one.zero_grad()
    scaler.scale((scaled * math.inf).sum()).backward()
    scaler.step(one)
    assert torch.equal(scaled, plain)


@pytest.mark.parametrize("restart", ["gradient", "objective", None])
@pytest.mark.parametrize("at_call", [1, 2])
def test_a_closure_that_fails_moves_nothing(restart: Any, at_call: int) -> None:
    w = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = AcceleratedProxGradient([w], lr=0.1, penalty=L1(0.1), restart=restart)
    left = math.inf

    def closure() -> Tensor:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        optimizer.zero_grad()
        loss = (w - 1).square().sum()
        loss.backward()
        return loss

    for _ in range(4):
        optimizer.step(closure)
    before, left = w.detach().clone(), at_call - 1
    if at_call == 2 and restart != "objective":
        return  # one call a step
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert torch.equal(w, before)


_RACE = """
import sys, threading, time, torch
from gossamer import codes
from gossamer.errors import ArgumentError, GossamerError
from gossamer.prox.operators.vector import l1_ball_, simplex_, top_k_
x = torch.randn(1 << 18)
one, two, stop = torch.randn(1 << 18), torch.full((1 << 18,), 1.5), False
def write():
    while not stop:
        x.copy_(two), x.copy_(one)
writer = threading.Thread(target=write)
writer.start()
end = time.time() + 2
while time.time() < end:
    for use in (lambda: top_k_(x, 1 << 16), lambda: l1_ball_(x, 100.0),
                lambda: simplex_(x, 100.0), lambda: codes.top_k(x.view(64, -1), 37)):
        try:
            use()
        except GossamerError:
            pass
stop = True
writer.join()
"""


@pytest.mark.process
def test_a_thread_that_writes_meanwhile_breaks_no_memory() -> None:
    """As in Hogwild training: the result means little, but nothing beyond it is touched."""
    subprocess.run([sys.executable, "-c", _RACE], check=True, timeout=120)


def test_operators_where_terms_cancel_or_overflow() -> None:
    tiny = torch.tensor([1e-31, -1e-25, 1e-9], dtype=torch.float64)
    found = TransformedL1(1e-60, a=1.0).prox_(tiny.clone())
    assert torch.allclose(found, tiny, rtol=1e-15, atol=0.0)
    smallest = torch.tensor([-1.4e-45])
    found = TransformedL1(0.0, a=1.0).prox_(smallest.clone())
    assert torch.equal(found, smallest) or not found.signbit()
    largest = torch.tensor([3.4e38, -3.4e38])
    assert torch.equal(LogSum(1.0, eps=1.0).prox_(largest.clone()), largest)
    almost = Lp(lam=1.0, p=1 - 2**-53).prox_(torch.tensor([1e5], dtype=torch.float64))
    assert float(almost) == pytest.approx(1e5 - 1.0, rel=1e-9)
