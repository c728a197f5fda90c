"""Top-k selection, decoding and their gradients against the plain torch formulas."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from gossamer import backend
from gossamer.codes import Code, core, decode, encode, prefix_errors, scatter_touched, top_k
from gossamer.errors import ArgumentError, DTypeError, GossamerError, ShapeError, StructureError

DTYPES = [torch.float32, torch.float64]
# The others run the portable table.
ISAS = [isa for isa in backend.isas() if isa in ("avx512", "avx2", "portable")]
TOLERANCE = {torch.float32: {"rtol": 2e-5, "atol": 2e-5}, torch.float64: {}}


def expected_top_k(x: Tensor, k: int) -> Code:
    """Stable descending order, by NumPy."""
    order = torch.from_numpy(np.argsort(-x.numpy(), axis=1, kind="stable")[:, :k].copy())
    return Code(x.gather(1, order), order)


def same(a: Code, b: Code) -> bool:
    return torch.equal(a.values, b.values) and torch.equal(a.indices.long(), b.indices)


def random_code(batch: int, n: int, k: int, dtype: torch.dtype = torch.float64) -> Code:
    # Indices repeat within a row and between rows.
    return Code(torch.randn(batch, k, dtype=dtype), torch.randint(n, (batch, k)))


def refuses_second_derivatives(out: Tensor, leaf: Tensor) -> bool:
    (grad,) = torch.autograd.grad(out.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
    return True


ROWS: dict[str, Callable[[int, int], Tensor]] = {
    "normal": lambda b, n: torch.randn(b, n),
    "few values": lambda b, n: torch.randint(-2, 3, (b, n)).double(),
    "all equal": lambda b, n: torch.full((b, n), -1.5),
    "relu": lambda b, n: (torch.randn(b, n) - 2.5).relu(),
    "ascending": lambda b, n: torch.arange(float(b * n)).view(b, n),
    "descending": lambda b, n: -torch.arange(float(b * n)).view(b, n),
    "one run": lambda b, n: (
        torch.where(torch.arange(n) // 64 == n // 128, 5.0, 0.0) + torch.rand(b, n)
    ),
    "one group": lambda b, n: torch.where(torch.arange(n) % 64 == 3, 5.0, 0.0) + torch.rand(b, n),
    "infinite": lambda b, n: torch.randn(b, n).masked_fill(torch.rand(b, n) < 0.7, -torch.inf),
    "mostly infinite": lambda b, n: torch.full((b, n), -torch.inf).index_fill(
        1, torch.arange(0, n, 97), torch.inf
    ),
    "both zeros": lambda b, n: torch.zeros(b, n) * torch.randn(b, n).sign(),
    "subnormal": lambda b, n: torch.randn(b, n) * 1e-40,
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
def test_top_k(rows: str, dtype: torch.dtype, isa: str) -> None:
    backend.use_isa(isa)
    sizes = [(1, 1), (7, 3), (63, 63), (64, 1), (1023, 5), (1024, 31), (1025, 8), (5000, 40)]
    for n, k in [*sizes, (16384, 32), (20011, 100), (40000, 7), (4096, 4096)]:
        x = ROWS[rows](3, n).to(dtype)
        assert same(top_k(x, k), expected_top_k(x, k)), (n, k)


@pytest.mark.parametrize("seed", range(40))
def test_top_k_of_random_sizes(seed: int) -> None:
    random = np.random.default_rng(seed)
    n = int(random.integers(1, 9000))
    k = int(random.integers(1, min(n, 400) + 1))
    levels = int(random.integers(1, 2000))
    x = torch.from_numpy(random.integers(-levels, levels, (4, n)).astype(np.float32))
    assert same(top_k(x, k), expected_top_k(x, k)), (n, k)


def test_top_k_of_views() -> None:
    x = torch.randn(9, 5000)
    for view in (x[::2, 100:], x.T.contiguous().T, x[:1].expand(4, 5000), x.flip(0)):
        assert same(top_k(view, 6), expected_top_k(view.contiguous(), 6))
    assert core.top_k(x, 3, torch.int32).indices.dtype == torch.int32
    assert same(core.top_k(x, 3, torch.int32), expected_top_k(x, 3))


@pytest.mark.parametrize("n", [5, 1024, 20000])
@pytest.mark.parametrize("place", [0, 0.5, 0.999])
@pytest.mark.parametrize("sign", [1, -1])
def test_top_k_refuses_nan(n: int, place: float, sign: int) -> None:
    x = torch.randn(6, n)
    x[2, int(place * n)] = x[4, 1] = torch.tensor(float("nan")).copysign(torch.tensor(float(sign)))
    for isa in ISAS:
        backend.use_isa(isa)
        with pytest.raises(ArgumentError, match="NaN in row 2"):
            top_k(x, 2)


def test_top_k_carries_gradients() -> None:
    x = torch.randn(4, 50, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: top_k(v, 5).values, x)
    assert refuses_second_derivatives(top_k(x, 5).values, x)


# ---- decoding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "n", "k", "d"), [
    (1, 1, 1, 1), (5, 9, 3, 7), (3, 20, 9, 64), (6, 300, 4, 257), (40, 50, 33, 100),
    (4, 8, 17, 800),
])  # fmt: skip
def test_decode(batch: int, n: int, k: int, d: int, dtype: torch.dtype, isa: str) -> None:
    backend.use_isa(isa)
    code, W = random_code(batch, n, k, dtype), torch.randn(n, d, dtype=dtype)
    bias, g = torch.randn(d, dtype=dtype), torch.randn(batch, d, dtype=dtype)
    rows = W[code.indices]
    close = dict(TOLERANCE[dtype])
    scale = k**0.5
    torch.testing.assert_close(
        decode(code, W, bias) / scale,
        (torch.einsum("bk,bkd->bd", code.values, rows) + bias) / scale,
        **close,
    )
    torch.testing.assert_close(decode(code, W), decode(code, W, bias) - bias, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        core.dots(code.indices, W, g) / d**0.5,
        torch.einsum("bd,bkd->bk", g, rows) / d**0.5,
        **close,
    )
    dense = torch.zeros(n, d, dtype=dtype).index_add_(
        0, code.indices.flatten(), (code.values[:, :, None] * g[:, None]).flatten(0, 1)
    )
    torch.testing.assert_close(core.scatter(code, g, n) / scale, dense / scale, **close)
    touched, compact = scatter_touched(code, g)
    assert torch.equal(touched, code.indices.unique())
    assert torch.equal(compact, core.scatter(code, g, n)[touched])


def test_decode_is_differentiable() -> None:
    code = random_code(5, 12, 6)
    inputs = [code.values, torch.randn(12, 7).double(), torch.randn(7).double()]
    inputs = [t.requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(lambda z, W, b: decode(Code(z, code.indices), W, b), inputs)
    out = decode(Code(inputs[0], code.indices), inputs[1])
    assert all(refuses_second_derivatives(out, leaf) for leaf in inputs[:2])


def test_decode_takes_any_strides() -> None:
    code, W = random_code(6, 30, 8), torch.randn(30, 20).double()
    expected = torch.einsum("bk,bkd->bd", code.values, W[code.indices])
    strided = Code(code.values.T.contiguous().T, code.indices.int().T.contiguous().T)
    torch.testing.assert_close(decode(strided, W.T.contiguous().T), expected)
    # A gradient of one number, expanded, is what .sum().backward() gives.
    W.requires_grad_()
    decode(code, W).sum().backward()
    dense = torch.zeros(6, 30).double().scatter_add_(1, code.indices, code.values)
    torch.testing.assert_close(W.grad, dense.sum(0)[:, None].expand(30, 20))


def test_zeros_are_positive() -> None:
    code = Code(torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.long))
    for out in (decode(code, -torch.ones(1, 3)), core.scatter(code, -torch.ones(2, 3), 1)):
        assert not out.signbit().any()
        assert not out.any()


def test_nan_is_passed_on() -> None:
    W = torch.randn(4, 40)
    W[2, 39] = float("nan")
    code = Code(torch.zeros(3, 1), torch.tensor([[2], [1], [2]]))
    assert decode(code, W).isnan().sum(1).tolist() == [1, 0, 1]
    assert core.dots(code.indices, W, torch.zeros(3, 40)).isnan().flatten().tolist() == [
        True,
        False,
        True,
    ]


def test_encode_equals_the_dense_encoder() -> None:
    x, W = torch.randn(9, 6).double(), torch.randn(40, 6).double()
    b = torch.randn(40).double()
    leaves = [t.clone().requires_grad_() for t in (x, W, b)]
    dense = [t.clone().requires_grad_() for t in (x, W, b)]
    values, indices = encode(*leaves, 5)
    want = torch.topk(torch.addmm(dense[2], dense[0], dense[1].T), 5)
    assert torch.equal(indices, want.indices)
    torch.testing.assert_close(values, want.values)
    weights = torch.randn(9, 5).double()
    (values * weights).sum().backward()
    (want.values * weights).sum().backward()
    for mine, theirs in zip(leaves, dense, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


# ---- prefixes ------------------------------------------------------------------------------------


def expected_prefix_errors(x: Tensor, code: Code, W: Tensor, bias: Tensor) -> Tensor:
    partial = (code.values[:, :, None] * W[code.indices]).cumsum(1) + bias
    return (x[:, None] - partial).square().sum(2)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 2, 9])
def test_prefix_errors(k: int, dtype: torch.dtype, isa: str) -> None:
    backend.use_isa(isa)
    code, W = random_code(11, 15, k, dtype), torch.randn(15, 37, dtype=dtype)
    leaves = [torch.randn(11, 37, dtype=dtype), code.values, W, torch.randn(37, dtype=dtype)]
    mine = [t.clone().requires_grad_() for t in leaves]
    theirs = [t.clone().requires_grad_() for t in leaves]
    errors, residual = prefix_errors(mine[0], Code(mine[1], code.indices), *mine[2:])
    want = expected_prefix_errors(theirs[0], Code(theirs[1], code.indices), *theirs[2:])
    torch.testing.assert_close(errors, want, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        residual, leaves[0] - decode(code, W, leaves[3]), rtol=1e-5, atol=1e-5
    )
    weights = torch.rand(11, k, dtype=dtype)
    (errors * weights).sum().backward()
    (want * weights).sum().backward()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(
            a.grad, b.grad, rtol=1e-4, atol=1e-3 if dtype == torch.float32 else 1e-9
        )


def test_prefix_gradients_in_several_chunks() -> None:
    # 8 MiB of suffix sums at a time: here three chunks, the last one short.
    code, W = random_code(700, 50, 16, torch.float32), torch.randn(50, 500)
    z, dictionary = code.values.clone().requires_grad_(), W.clone().requires_grad_()
    x = torch.randn(700, 500)
    prefix_errors(x, Code(z, code.indices), dictionary)[0].mean().backward()
    z64, W64 = code.values.double().requires_grad_(), W.double().requires_grad_()
    expected_prefix_errors(
        x.double(), Code(z64, code.indices), W64, torch.zeros(500)
    ).mean().backward()
    torch.testing.assert_close(z.grad, z64.grad.float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(dictionary.grad, W64.grad.float(), rtol=1e-4, atol=1e-6)


# ---- what holds for all --------------------------------------------------------------------------


def results() -> list[Tensor]:
    x, W = torch.randn(96, 3000), torch.randn(3000, 130)
    code = core.top_k(x, 24)
    g = torch.randn(96, 130)
    errors, residual = core.prefix_errors(g, code, W)
    gradients = core.prefix_gradients(torch.rand(96, 24), residual, code, W)
    return [*code, core.decode(code, W), core.dots(code.indices, W, g), core.scatter(code, g, 3000),
            errors, residual, *gradients]  # fmt: skip


@pytest.mark.parametrize("isa", ISAS)
def test_threads_change_no_bit(isa: str) -> None:
    backend.use_isa(isa)
    found = []
    for threads in (1, 2, 3, 7):
        torch.manual_seed(5)
        torch.set_num_threads(threads)
        found.append(results())
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_instruction_sets_agree() -> None:
    found = []
    for isa in ISAS:
        torch.manual_seed(5)
        backend.use_isa(isa)
        found.append(results())
    for other in found[1:]:
        assert torch.equal(found[0][0], other[0])
        assert torch.equal(found[0][1], other[1])
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-3)


BAD_INDICES = [-1, 5, 2**31, -(2**40)]


@pytest.mark.parametrize("bad", BAD_INDICES)
@pytest.mark.parametrize("place", [(0, 0), (3, 1)])
def test_indices_are_checked_at_every_call(bad: int, place: tuple[int, int]) -> None:
    indices = torch.zeros(4, 2, dtype=torch.long)
    indices[place] = bad
    code, W, g = Code(torch.ones(4, 2), indices), torch.ones(5, 3), torch.ones(4, 3)
    calls: list[Callable[[], object]] = [
        lambda: decode(code, W),
        lambda: core.dots(indices, W, g),
        lambda: core.scatter(code, g, 5),
        lambda: prefix_errors(g, code, W),
        lambda: core.prefix_gradients(torch.ones(4, 2), g, code, W),
    ]
    for call in calls:
        with pytest.raises(StructureError, match=rf"indices\[{place[0]}, {place[1]}\] is {bad}"):
            call()


ones = torch.ones
CODE = Code(torch.ones(4, 2), torch.zeros(4, 2, dtype=torch.long))
Z, IDS = CODE
W53, G43 = torch.ones(5, 3), torch.ones(4, 3)
BAD_CALLS: dict[str, tuple[type[GossamerError], Callable[[], object]]] = {
    "k of 0": (ArgumentError, lambda: top_k(W53, 0)),
    "negative k": (ArgumentError, lambda: top_k(W53, -1)),
    "k above n": (ArgumentError, lambda: top_k(W53, 4)),
    "k far above n": (ArgumentError, lambda: top_k(W53, 2**60)),
    "empty batch": (ShapeError, lambda: top_k(ones(0, 3), 1)),
    "empty rows": (ShapeError, lambda: top_k(ones(3, 0), 1)),
    "a vector": (ShapeError, lambda: top_k(ones(3), 1)),
    "a number": (ShapeError, lambda: top_k(ones(()), 1)),
    "integers": (DTypeError, lambda: top_k(ones(2, 3, dtype=torch.long), 1)),
    "bfloat16": (DTypeError, lambda: top_k(ones(2, 3, dtype=torch.bfloat16), 1)),
    "a list": (DTypeError, lambda: core.top_k([[1.0]], 1)),  # type: ignore[arg-type]
    "short indices": (DTypeError, lambda: core.top_k(W53, 1, torch.int16)),
    "float indices": (DTypeError, lambda: decode(Code(Z, IDS.float()), W53)),
    "no rows in a code": (ShapeError, lambda: decode(Code(ones(0, 2), IDS[:0]), W53)),
    "values of another shape": (ShapeError, lambda: decode(Code(ones(4, 3), IDS), W53)),
    "double values": (DTypeError, lambda: decode(Code(ones(4, 2).double(), IDS), W53)),
    "integer dictionary": (DTypeError, lambda: decode(CODE, W53.long())),
    "empty dictionary": (StructureError, lambda: decode(CODE, ones(0, 3))),
    "flat dictionary": (ShapeError, lambda: decode(CODE, ones(5))),
    "dictionary without features": (ShapeError, lambda: decode(CODE, ones(5, 0))),
    "long bias": (ShapeError, lambda: decode(CODE, W53, ones(4))),
    "bias of another dtype": (DTypeError, lambda: decode(CODE, W53, ones(3).double())),
    "gradient of another shape": (ShapeError, lambda: core.dots(IDS, W53, ones(4, 4))),
    "gradient of another batch": (ShapeError, lambda: core.scatter(CODE, ones(3, 3), 5)),
    "x of another shape": (ShapeError, lambda: prefix_errors(ones(4, 4), CODE, W53)),
    "wide weights": (ShapeError, lambda: core.prefix_gradients(ones(4, 3), G43, CODE, W53)),
    "encoder of another shape": (ShapeError, lambda: core.top_k(W53[None], 1)),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_input_is_told(case: str) -> None:
    error, call = BAD_CALLS[case]
    with pytest.raises(error):
        call()


def test_indices_may_change_during_a_call() -> None:
    """Another thread writes rubbish into the indices: an error or the old ones, never a signal."""
    code, W = random_code(64, 1000, 32, torch.float32), torch.randn(1000, 64)
    good, stop = code.indices.clone(), threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            code.indices.fill_(2**40)
            code.indices.copy_(good)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(300):
            try:
                core.decode(code, W)
            except StructureError:
                continue
    finally:
        stop.set()
        thread.join()
