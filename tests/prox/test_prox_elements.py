"""The compiled operators on elements, against closed forms and a dense formula of AdamW."""

import numpy as np
import pytest
import torch

from gossamer import backend
from gossamer.errors import ArgumentError, DTypeError, ShapeError
from gossamer.prox.operators.elementwise import adamw_step_, elementwise_
from gossamer.prox.penalties.registry import PENALTIES
from gossamer.prox.penalties.separable import Separable
from support.prox_oracle import PHI, ROWS

CASES = [(kind, params) for kind, row in ROWS.items() for params in row.cases]


def penalty(kind: str, params: tuple[float, ...], z: np.ndarray) -> np.ndarray:
    return PHI[kind](np.abs(z), *params)


def test_every_operator_has_a_case() -> None:
    separable = {name for name, kind in PENALTIES.items() if issubclass(kind, Separable)}
    assert {kind for kind, _ in CASES} == separable


@pytest.mark.parametrize("step", [0.05, 1.0, 6.0])
@pytest.mark.parametrize(("kind", "params"), CASES)
def test_no_grid_point_is_better(kind: str, params: tuple[float, ...], step: float) -> None:
    x = np.concatenate([np.linspace(0, 5, 51), np.geomspace(1e-8, 1e4, 20)])
    z = elementwise_(x.copy(), kind, params, step)
    grid = np.linspace(0, 1, 20_001)[:, None] * x

    def cost(at: np.ndarray) -> np.ndarray:
        return (at - x) ** 2 / 2 + step * penalty(kind, params, at)

    best = cost(grid).min(0)
    assert (cost(z) <= best + 1e-12 * (1 + best)).all()


@pytest.mark.parametrize("step", [0.05, 1.0, 6.0])
@pytest.mark.parametrize(("kind", "params"), CASES)
def test_signs_zeros_and_specials(kind: str, params: tuple[float, ...], step: float) -> None:
    for dtype in (np.float32, np.float64):
        x = np.array([0.0, -0.0, 1e-9, -1e-9, 2.5, -2.5, np.nan, np.inf, -np.inf], dtype)
        z = elementwise_(x.copy(), kind, params, step)
        assert z[4] == -z[5]
        assert np.isnan(z[6])
        assert z[7] == np.inf
        assert z[8] == -np.inf
        assert not np.signbit(z[:4][z[:4] == 0]).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "params"), CASES)
def test_a_step_for_each_entry(kind: str, params: tuple[float, ...], dtype: torch.dtype) -> None:
    x = torch.randn(700, dtype=dtype) * 2
    steps = torch.rand(700, dtype=dtype) * 3 + 0.01
    together = elementwise_(x.clone(), kind, params, steps)
    alone = torch.stack(
        [
            elementwise_(v.clone().view(1), kind, params, float(s))[0]
            for v, s in zip(x, steps, strict=True)
        ]
    )
    close = torch.isclose(together, alone, rtol=2e-5 if dtype == torch.float32 else 1e-12)
    # On the very threshold the last bit decides; nowhere else.
    assert (~close).sum() <= 1


@pytest.mark.parametrize(("kind", "params"), CASES)
def test_every_table_and_any_thread_count(kind: str, params: tuple[float, ...]) -> None:
    x = torch.randn(40_003, dtype=torch.float64) * 2  # the smallest that is split has 2^15
    results = []
    for isa in backend.isas():
        backend.use_isa(isa)
        by_threads = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            by_threads.append(elementwise_(x.clone(), kind, params, 0.7))
        assert all(torch.equal(by_threads[0], other) for other in by_threads)
        results.append(by_threads[0])
    for other in results[1:]:
        assert torch.allclose(results[0], other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lam", [1e-12, 1e-6, 1e-2, 1.0, 1e2])
@pytest.mark.parametrize("p", [0.05, 0.1, 0.3, 0.5, 2 / 3, 0.7, 0.9, 0.99])
def test_lp_in_float32(p: float, lam: float) -> None:
    beta = (2 * lam * (1 - p)) ** (1 / (2 - p))
    threshold = beta * (2 - p) / (2 - 2 * p)
    x = np.concatenate(
        [threshold * np.geomspace(1 + 1e-5, 1e6, 400), -threshold * np.array([1.5, 3.0])]
    )
    x = x.astype(np.float32)
    exact = elementwise_(x.astype(np.float64), "lp", (lam, p))
    single = elementwise_(x.copy(), "lp", (lam, p))
    assert np.abs(single / exact - 1).max() <= 3e-5
    assert np.abs(exact[:-2]).min() >= beta * (1 - 1e-12)
    assert not elementwise_((x * 0.999 * threshold / np.abs(x)).copy(), "lp", (lam, p)).any()


def test_lp_closed_forms() -> None:
    # Half: Xu et al. 2012; two thirds: Cao, Sun and Xu 2013.
    lam, v = 0.37, np.geomspace(1.0, 50.0, 200)
    phi = np.arccos(lam / 4 * (v / 3) ** -1.5)
    half = 2 / 3 * v * (1 + np.cos(2 * np.pi / 3 - 2 / 3 * phi))
    assert np.allclose(elementwise_(v.copy(), "lp", (lam, 0.5)), half, rtol=1e-13, atol=0)
    phi = np.arccosh(27 / 16 * v**2 * (2 * lam) ** -1.5)
    a = 2 / np.sqrt(3) * (2 * lam) ** 0.25 * np.sqrt(np.cosh(phi / 3))
    thirds = ((a + np.sqrt(2 * v / a - a**2)) / 2) ** 3
    assert np.allclose(elementwise_(v.copy(), "lp", (lam, 2 / 3)), thirds, rtol=1e-12, atol=0)


def test_strides_and_versions() -> None:
    x = torch.randn(6, 8, dtype=torch.float64)
    expected = elementwise_(x.t().contiguous(), "l1", (0.5,))
    version = x._version
    assert elementwise_(x.t(), "l1", (0.5,)).data_ptr() == x.data_ptr()
    assert torch.equal(x.t(), expected)
    assert x._version > version
    a = np.arange(24.0).reshape(4, 6)[:, ::-2]
    expected_array = np.maximum(a - 1.0, 0.0)
    assert np.array_equal(elementwise_(a, "l1", (1.0,)), expected_array)
    leaf = torch.ones(3, requires_grad=True)
    elementwise_(leaf, "l1", (0.25,))
    assert leaf.tolist() == [0.75] * 3


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adamw_takes_one_step_for_gradient_and_threshold(dtype: torch.dtype, decay: float) -> None:
    lr, beta1, beta2, eps, lam = 0.01, 0.9, 0.999, 1e-8, 0.2
    param = torch.randn(40, 1025, dtype=dtype)
    ours, m, v = param.clone(), torch.zeros_like(param), torch.zeros_like(param)
    exact, em, ev = param.double(), torch.zeros_like(m).double(), torch.zeros_like(m).double()
    for step in range(1, 6):
        grad = torch.randn_like(param)
        adamw_step_(
            ours, grad, m, v, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=decay,
            step=step, kind="l1", params=(lam,),
        )  # fmt: skip
        g = grad.double()
        em, ev = beta1 * em + (1 - beta1) * g, beta2 * ev + (1 - beta2) * g**2
        length = lr / ((ev / (1 - beta2**step)).sqrt() + eps)
        moved = (1 - lr * decay) * exact - length * em / (1 - beta1**step)
        exact = torch.sign(moved) * (moved.abs() - lam * length).clamp(min=0)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    assert torch.allclose(ours.double(), exact, rtol=tolerance, atol=tolerance)
    assert torch.allclose(m.double(), em, rtol=tolerance, atol=tolerance)
    assert (ours == 0).any()


def test_adamw_without_penalty_is_torch() -> None:
    ours = torch.randn(5000, dtype=torch.float64)
    theirs = ours.clone().requires_grad_()
    optimizer = torch.optim.AdamW([theirs], lr=3e-3, weight_decay=0.02)
    m, v = torch.zeros_like(ours), torch.zeros_like(ours)
    for step in range(1, 30):
        grad = torch.randn_like(ours)
        theirs.grad = grad
        optimizer.step()
        adamw_step_(
            ours, grad, m, v, lr=3e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.02,
            step=step, kind="l1", params=(0.0,),
        )  # fmt: skip
    assert torch.allclose(ours, theirs.detach(), rtol=1e-13, atol=1e-14)


def frozen() -> np.ndarray:
    array = np.ones(3)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("x", "kind", "params", "step", "error", "words"),
    [
        (torch.ones(3, dtype=torch.int64), "l1", (1.0,), 1.0, DTypeError, "int64"),
        (torch.ones(3, dtype=torch.float16), "l1", (1.0,), 1.0, DTypeError, "float16"),
        ([1.0], "l1", (1.0,), 1.0, DTypeError, "list"),
        (torch.ones(0), "l1", (1.0,), 1.0, ShapeError, "empty"),
        (frozen(), "l1", (1.0,), 1.0, ArgumentError, "read-only"),
        (torch.ones(1).expand(3), "l1", (1.0,), 1.0, ShapeError, "expanded"),
        (torch.ones(3), "l1", (-1.0,), 1.0, ArgumentError, "lam"),
        (torch.ones(3), "l1", (float("nan"),), 1.0, ArgumentError, "lam"),
        (torch.ones(3), "l1", (1.0, 2.0), 1.0, ArgumentError, "parameters"),
        (torch.ones(3), "lp", (1.0, 1.0), 1.0, ArgumentError, "lp"),
        (torch.ones(3), "lp", (1.0, 0.0), 1.0, ArgumentError, "lp"),
        (torch.ones(3), "scad", (1.0, 2.0), 1.0, ArgumentError, "scad"),
        (torch.ones(3), "mcp", (1.0, 0.0), 1.0, ArgumentError, "mcp"),
        (torch.ones(3), "elastic_net", (1.0, 1.5), 1.0, ArgumentError, "elastic_net"),
        (torch.ones(3), "l1", (1.0,), -1.0, ArgumentError, "step"),
        (torch.ones(3), "l1", (1.0,), float("inf"), ArgumentError, "step"),
        (torch.ones(3), "l1", (1.0,), torch.ones(4), ShapeError, "steps"),
        (torch.ones(3), "l1", (1.0,), torch.ones(3).double(), DTypeError, "steps"),
        (torch.ones(3), "ridge", (1.0,), 1.0, ValueError, "ridge"),
    ],
)
def test_bad_input_is_one_clear_error(
    x: object, kind: str, params: tuple[float, ...], step: object, error: type, words: str
) -> None:
    before = x.clone() if isinstance(x, torch.Tensor) else None
    with pytest.raises(error, match=words):
        elementwise_(x, kind, params, step)  # type: ignore[type-var]
    if before is not None:
        assert torch.equal(before, x)
