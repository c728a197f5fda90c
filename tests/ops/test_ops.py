"""The verbs: values against the dense oracle, gradients of every order, roads and refusals."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import gossamer
from gossamer import SparseWeight, backend, sddmm, spmm, spmm_t
from support import oracle
from support.grids import covering

PATTERNS = [*oracle.PATTERNS, "1:4:v16", "75%:v32", "block 32x4 50%"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
LEADS = [(), (1,), (5,), (2, 3), (2, 1, 3), (0,), (2, 0, 3)]
TRANSPOSES = ["packed", "none"]


def make(
    pattern: str, dtype: torch.dtype = torch.float64, transpose: str = "packed"
) -> SparseWeight:
    return SparseWeight.from_dense(
        torch.randn(oracle.sizes(pattern)).to(dtype), pattern, transpose=transpose
    )


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()


@pytest.mark.parametrize(("pattern", "dtype", "transpose"), covering(PATTERNS, DTYPES, TRANSPOSES))
def test_verbs_match_the_dense_formulas(pattern: str, dtype: torch.dtype, transpose: str) -> None:
    weight = make(pattern, dtype, transpose)
    rows, cols = weight.shape
    dense, mask = weight.to_dense().detach(), weight.mask()
    for lead in LEADS:
        x = draw(*lead, cols, dtype=dtype).detach()
        g = draw(*lead, rows, dtype=dtype).detach()
        bias = draw(rows, dtype=dtype).detach()
        oracle.assert_close(
            spmm(x, weight, bias),
            oracle.spmm(x, dense, bias),
            oracle.spmm(x.abs(), dense.abs(), bias.abs()),
        )
        oracle.assert_close(
            spmm_t(g, weight), oracle.spmm_t(g, dense), oracle.spmm_t(g.abs(), dense.abs())
        )
        got = backend.scatter(sddmm(g, x, weight), weight.structure)
        if x.numel():
            oracle.assert_close(got, oracle.sddmm(g, x, mask), oracle.sddmm(g.abs(), x.abs(), mask))
        else:
            assert not got.any()


@pytest.mark.parametrize("pattern", ["2:4", "3:5", "2:4:v4", "75%", "block 4x4 50%"])
def test_many_column_blocks(pattern: str) -> None:
    """More than 256 columns: a column id is a byte inside its block."""
    weight = SparseWeight.from_dense(torch.randn(8, 700), pattern)
    x = torch.randn(33, 700, requires_grad=True)
    dense = weight.to_dense().detach()
    y = spmm(x, weight)
    y.backward(torch.ones_like(y))
    oracle.assert_close(
        y.detach(), oracle.spmm(x, dense).detach(), oracle.spmm(x.abs(), dense.abs())
    )
    ones = torch.ones(33, 8)
    oracle.assert_close(x.grad, oracle.spmm_t(ones, dense), oracle.spmm_t(ones, dense.abs()))


# What is done with the output decides what the upstream gradient looks like in memory.
UPSTREAM: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda y: y,
    "stride-0": lambda y: y.sum(),
    "stride-0 rows": lambda y: y.sum(-1),
    "transposed": lambda y: y.movedim(-1, 0).contiguous() * 2,
    "sliced": lambda y: torch.cat([y, y * y], -1),
    "stepped": lambda y: y[..., ::2] * 3,
}


@pytest.mark.parametrize("transpose", TRANSPOSES)
@pytest.mark.parametrize("lead", [(), (3,), (2, 2)], ids=["rank1", "rank2", "rank3"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.slow
def test_gradients_of_spmm(pattern: str, bias: bool, lead: tuple[int, ...], transpose: str) -> None:
    weight = make(pattern, transpose=transpose)
    rows, cols = weight.shape
    inputs = [draw(*lead, cols), weight.values] + ([draw(rows)] if bias else [])
    for after in UPSTREAM.values():

        def function(x: Tensor, _: Tensor, b: Tensor | None = None, after=after) -> Tensor:
            return after(spmm(x, weight, b))

        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("transpose", TRANSPOSES)
@pytest.mark.parametrize("lead", [(), (3,), (2, 2)], ids=["rank1", "rank2", "rank3"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.slow
def test_gradients_of_spmm_t_and_sddmm(pattern: str, lead: tuple[int, ...], transpose: str) -> None:
    weight = make(pattern, transpose=transpose)
    rows, cols = weight.shape
    g, x = draw(*lead, rows), draw(*lead, cols)
    for after in UPSTREAM.values():

        def back(g: Tensor, _: Tensor, after=after) -> Tensor:
            return after(spmm_t(g, weight))

        assert torch.autograd.gradcheck(back, [g, weight.values], fast_mode=True)
        assert torch.autograd.gradgradcheck(back, [g, weight.values], fast_mode=True)

        def sampled(g: Tensor, x: Tensor, after=after) -> Tensor:
            return after(sddmm(g, x, weight))

        assert torch.autograd.gradcheck(sampled, [g, x], fast_mode=True)
        assert torch.autograd.gradgradcheck(sampled, [g, x], fast_mode=True)


@pytest.mark.parametrize("pattern", ["2:4", "50%:v4"])
def test_every_entry_of_the_jacobian(pattern: str) -> None:
    """The slow mode compares each entry; the fast one a random projection of them."""
    weight = SparseWeight.from_dense(torch.randn(4, 8, dtype=torch.float64), pattern)
    inputs = [draw(2, 8), weight.values, draw(4)]
    assert torch.autograd.gradcheck(lambda x, _, b: spmm(x, weight, b), inputs)
    assert torch.autograd.gradgradcheck(lambda x, _, b: spmm(x, weight, b), inputs)


def test_third_derivative_matches_dense() -> None:
    weight = make("75%:v4")
    x = draw(3, weight.shape[1])
    dense = weight.to_dense()

    def third(y: Tensor) -> tuple[Tensor, ...]:
        out: Tensor = y.sin().sum()
        for _ in range(2):
            out = sum(g.sin().sum() for g in torch.autograd.grad(out, wanted, create_graph=True))
        return torch.autograd.grad(out, wanted)

    wanted = [x, weight.values]
    for got, expected in zip(third(spmm(x, weight)), third(x @ dense.T), strict=True):
        torch.testing.assert_close(got, expected)


def count_calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    calls = dict.fromkeys(["spmm", "spmm_t", "sddmm"], 0)

    def counted(name: str) -> Callable[..., Tensor]:
        real = getattr(backend.products, name)

        def call(*args: object) -> Tensor:
            calls[name] += 1
            return real(*args)

        return call

    for name in calls:
        monkeypatch.setattr(backend.products, name, counted(name))
    return calls


@pytest.mark.parametrize(
    ("train_x", "train_values", "expected"),
    [(True, True, (1, 1, 1)), (False, True, (1, 0, 1)), (True, False, (1, 1, 0))],
)
def test_only_asked_for_gradients_are_computed(
    train_x: bool, train_values: bool, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = make("2:4")
    weight.values.requires_grad_(train_values)
    x = draw(3, weight.shape[1]).requires_grad_(train_x)
    calls = count_calls(monkeypatch)
    y = spmm(x, weight)
    saved_x, saved_values, _ = y.grad_fn.saved_tensors
    assert (saved_x is not None) == train_values, "the input is kept only for sddmm"
    assert (saved_values is not None) == train_x
    y.sum().backward()
    assert tuple(calls.values()) == expected
    assert (x.grad is not None, weight.values.grad is not None) == (train_x, train_values)


def test_no_node_without_a_reason() -> None:
    weight = make("2:4")
    x = draw(3, weight.shape[1])
    with torch.no_grad():
        assert spmm(x, weight).grad_fn is None
    with torch.inference_mode():
        assert not spmm(x, weight).requires_grad
    weight.values.requires_grad_(False)
    assert spmm(x.detach(), weight).grad_fn is None
    bias = draw(weight.shape[0])
    spmm(x.detach(), weight, bias).sum().backward()
    assert torch.equal(bias.grad, torch.full_like(bias, 3.0))


@pytest.mark.parametrize("view", ["transposed", "stepped", "expanded", "offset", "negated"])
def test_any_view_is_ordinary_input(view: str) -> None:
    weight = make("75%:v4")
    cols = weight.shape[1]
    x = {
        "transposed": lambda: torch.randn(cols, 5, dtype=torch.float64).T,
        "stepped": lambda: torch.randn(10, 3 * cols, dtype=torch.float64)[::2, ::3],
        "expanded": lambda: torch.randn(1, cols, dtype=torch.float64).expand(5, cols),
        "offset": lambda: torch.randn(7, cols + 3, dtype=torch.float64)[2:, 3:],
        "negated": lambda: torch._neg_view(torch.randn(5, cols, dtype=torch.float64)),
    }[view]()
    dense = weight.to_dense().detach()
    y = spmm(x, weight)
    oracle.assert_close(y.detach(), oracle.spmm(x, dense), oracle.spmm(x.abs(), dense.abs()))


def test_moving_the_mask_before_backward_is_refused() -> None:
    weight = SparseWeight.from_dense(torch.tensor([[4.0, 3.0, 2.0, 1.0]]), "2:4")
    y = spmm(torch.ones(1, 4), weight)
    weight.set_mask(torch.tensor([[False, False, True, True]]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_autocast() -> None:
    weight = make("2:4", torch.float32)
    rows, cols = weight.shape
    x, bias = draw(3, cols, dtype=torch.float32), draw(rows, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = spmm(x, weight, bias)
        assert y.dtype == torch.bfloat16
        assert spmm_t(y.detach(), weight).dtype == torch.bfloat16
        assert sddmm(torch.randn(3, rows), x, weight).dtype == torch.bfloat16
        y.sum().backward()
    assert x.grad.dtype == weight.values.grad.dtype == bias.grad.dtype == torch.float32
    dense = weight.to_dense().detach()
    expected = oracle.spmm_t(torch.ones(3, rows), dense)
    torch.testing.assert_close(x.grad.double(), expected, rtol=0.02, atol=0.02)

    double = make("2:4")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert spmm(draw(3, cols), double).dtype == torch.float64
    with (
        torch.autocast("cpu", dtype=torch.float16),
        pytest.raises(gossamer.DTypeError, match="bfloat16"),
    ):
        spmm(x, weight)


def test_torch_func() -> None:
    weight = make("2:4")
    x = torch.randn(3, weight.shape[1], dtype=torch.float64)
    grad = torch.func.grad(lambda x: spmm(x, weight).pow(2).sum())(x)
    dense = weight.to_dense().detach()
    torch.testing.assert_close(grad, 2 * x @ dense.T @ dense)

    layer = gossamer.SparseLinear.of_parts(weight, None)

    def loss(values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight.values": values}, (x,)).square().sum()

    expected = backend.gather(2 * (x @ dense.T).T @ x, weight.structure)
    torch.testing.assert_close(torch.func.grad(loss)(weight.values.detach()), expected)


def as_written(x: np.ndarray) -> np.ndarray:
    return x


def read_only(x: np.ndarray) -> np.ndarray:
    x.flags.writeable = False
    return x


@pytest.mark.parametrize(
    "view", [as_written, read_only, lambda x: x[::-1], lambda x: x[:, ::-1], np.asfortranarray]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_numpy_in_numpy_out(view: Callable[[np.ndarray], np.ndarray], dtype: torch.dtype) -> None:
    weight = make("2:4", dtype)
    rows, cols = weight.shape
    x, g = (view(torch.randn(5, n).to(dtype).numpy()) for n in (cols, rows))
    bias = torch.randn(rows).to(dtype).numpy()
    got = spmm(x, weight, bias), spmm_t(g, weight), sddmm(g, x, weight)
    tx, tg = torch.tensor(x.copy()), torch.tensor(g.copy())
    expected = spmm(tx, weight, torch.tensor(bias)), spmm_t(tg, weight), sddmm(tg, tx, weight)
    for array, tensor in zip(got, expected, strict=True):
        assert type(array) is np.ndarray
        assert np.array_equal(array, tensor.detach().numpy())


def bad_calls() -> dict[str, tuple[type[Exception], str, Callable[[SparseWeight], object]]]:
    shape, dtype = gossamer.ShapeError, gossamer.DTypeError
    return {
        "0-d": (shape, "last size must be 12", lambda w: spmm(torch.tensor(1.0), w)),
        "last size": (shape, "last size must be 12", lambda w: spmm(torch.ones(2, 7), w)),
        "0-d g": (shape, "last size must be 7", lambda w: spmm_t(torch.tensor(1.0), w)),
        "last size of g": (shape, "last size must be 7", lambda w: spmm_t(torch.ones(12), w)),
        "leading sizes": (
            shape,
            "leading sizes",
            lambda w: sddmm(torch.ones(2, 7), torch.ones(3, 12), w),
        ),
        "g of sddmm": (
            shape,
            "grad_output has",
            lambda w: sddmm(torch.ones(2, 5), torch.ones(2, 12), w),
        ),
        "x of sddmm": (shape, "x has", lambda w: sddmm(torch.ones(2, 7), torch.ones(2, 5), w)),
        "bias size": (shape, "bias", lambda w: spmm(torch.ones(2, 12), w, torch.ones(6))),
        "bias list": (dtype, "bias is list", lambda w: spmm(torch.ones(2, 12), w, [0.0] * 7)),
        "bias array": (dtype, "bias is ndarr", lambda w: spmm(torch.ones(2, 12), w, np.ones(7))),
        "two dtypes": (dtype, "float64", lambda w: spmm(torch.ones(2, 12).double(), w)),
        "bias dtype": (
            dtype,
            "bias",
            lambda w: spmm(torch.ones(2, 12), w, torch.ones(7).double()),
        ),
        "float16": (dtype, "float16", lambda w: spmm(torch.ones(2, 12).half(), w)),
        "integers": (dtype, "int64", lambda w: spmm(torch.ones(2, 12).long(), w)),
        "complex": (dtype, "complex", lambda w: spmm(torch.ones(2, 12).cfloat(), w)),
        "a list": (dtype, "list", lambda w: spmm([1.0] * 12, w)),
        "sparse layout": (dtype, "to_dense", lambda w: spmm(torch.ones(2, 12).to_sparse(), w)),
        "dense weight": (dtype, "from_dense", lambda w: spmm(torch.ones(2, 12), torch.ones(7, 12))),
        "array and tensor": (
            dtype,
            "one kind",
            lambda w: sddmm(np.ones((2, 7), "f"), torch.ones(2, 12), w),
        ),
        "array dtype": (dtype, "float16", lambda w: spmm(np.ones((2, 12), np.float16), w)),
        "array of objects": (dtype, "object", lambda w: spmm(np.ones((2, 12), object), w)),
        "array shape": (shape, "last size", lambda w: spmm(np.ones((2, 7), "f"), w)),
    }


@pytest.mark.parametrize("case", bad_calls())
def test_bad_input_is_one_clear_error(case: str) -> None:
    error, text, call = bad_calls()[case]
    with pytest.raises(error, match=text):
        call(make("2:4", torch.float32))


def test_tensors_of_another_device_are_refused() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    weight = make("2:4", torch.float32)
    with FakeTensorMode(), pytest.raises(gossamer.DeviceError, match=r"x\.to\('cpu'\)"):
        spmm(torch.empty(2, 12, device="cuda"), weight)
