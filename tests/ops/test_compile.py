"""The registered ops: opcheck, torch.compile, torch.export, fake and meta tensors."""

import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.library import opcheck

import gossamer
from gossamer import SparseLinear, SparseWeight
from gossamer.ops.library import parts_of
from support import oracle

pytestmark = pytest.mark.slow


def parts(pattern: str, transpose: str = "packed") -> tuple[SparseWeight, tuple[object, ...]]:
    weight = SparseWeight.from_dense(
        torch.randn(oracle.sizes(pattern), dtype=torch.float64), pattern, transpose=transpose
    )
    return weight, parts_of(weight)


@pytest.mark.parametrize(
    ("pattern", "transpose"), [(p, "packed") for p in oracle.PATTERNS] + [("90%", "none")]
)
def test_opcheck(pattern: str, transpose: str) -> None:
    weight, structure = parts(pattern, transpose)
    rows, cols = weight.shape
    ops = torch.ops.gossamer
    x = torch.randn(5, cols, dtype=torch.float64, requires_grad=True)
    g = torch.randn(rows, 5, dtype=torch.float64).T.requires_grad_()
    bias = torch.randn(rows, dtype=torch.float64, requires_grad=True)
    for op, args, rest in [
        (ops.spmm, (x, weight.values), (bias,)),
        (ops.spmm, (x, weight.values.detach()), (None,)),
        (ops.spmm_t, (g, weight.values), ()),
        (ops.sddmm, (g, x), ()),
    ]:
        results = opcheck(op.default, (*args, *structure, *rest))
        assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("pattern", oracle.PATTERNS)
def test_second_derivatives_of_the_ops(pattern: str) -> None:
    weight, structure = parts(pattern)
    rows, cols = weight.shape
    ops = torch.ops.gossamer
    x = torch.randn(3, cols, dtype=torch.float64, requires_grad=True)
    g = torch.randn(3, rows, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(rows, dtype=torch.float64, requires_grad=True)
    for op, args in [
        (ops.spmm, (x, weight.values, bias)),
        (ops.spmm_t, (g, weight.values)),
        (ops.sddmm, (g, x)),
    ]:

        def call(*args: Tensor, op=op) -> Tensor:
            return op(*args[:2], *structure, *args[2:])

        assert torch.autograd.gradcheck(call, args, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, args, fast_mode=True)


def model(pattern: str) -> nn.Module:
    rows, cols = oracle.sizes(pattern)
    return nn.Sequential(
        SparseLinear(cols, rows, pattern=pattern), nn.GELU(), nn.Linear(rows, 4), nn.LayerNorm(4)
    )


@pytest.mark.parametrize("pattern", oracle.PATTERNS)
def test_compiled_training_equals_eager(pattern: str) -> None:
    """One graph, no break, for every batch size; `aot_eager` runs the traced backward."""
    torch.compiler.reset()
    eager = model(pattern)
    compiled = torch.compile(eager, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 5, 9):
        x = torch.randn(3, batch, oracle.sizes(pattern)[1], requires_grad=True)
        wanted = [x, *eager.parameters()]
        expected = torch.autograd.grad(eager(x).square().sum(), wanted)
        got = torch.autograd.grad(compiled(x).square().sum(), wanted)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_dynamic_batch_is_one_graph() -> None:
    torch.compiler.reset()
    graphs = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    layer = model("2:4")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counting)
    for batch in (2, 3, 17):
        x = torch.randn(batch, 12)
        torch.testing.assert_close(compiled(x), layer(x))
    assert len(graphs) == 1
    assert "gossamer.spmm" in str(graphs[0].graph)


def test_a_moved_mask_is_seen_by_compiled_code() -> None:
    torch.compiler.reset()
    layer = SparseLinear(12, 7, pattern="2:4")
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 12)
    compiled(x)
    layer.weight.set_mask(gossamer.masks.random_mask((7, 12), "2:4", seed=5))
    torch.testing.assert_close(compiled(x), x @ layer.weight.to_dense().T + layer.bias)


def test_compiled_autocast() -> None:
    torch.compiler.reset()
    layer = SparseLinear(12, 8, pattern="2:4:v4")

    def step(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(x)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 12)
    assert compiled(x).dtype == torch.bfloat16
    assert torch.equal(compiled(x), step(x))
    (grad,) = torch.autograd.grad(compiled(x).sum(), layer.weight.values)
    assert grad.dtype == torch.float32


def test_backward_called_under_autocast_keeps_the_dtype_of_forward() -> None:
    weight = SparseWeight.from_dense(torch.randn(8, 12), "2:4:v4")
    x, g = torch.randn(3, 12, requires_grad=True), torch.randn(3, 8, requires_grad=True)
    wanted = [x, g, weight.values]
    ops, structure = torch.ops.gossamer, parts_of(weight)
    for registered in (True, False):

        def loss(registered=registered) -> Tensor:
            if registered:
                y = ops.spmm(x, weight.values, *structure, None)
                back = ops.spmm_t(g, weight.values, *structure)
                sampled = ops.sddmm(g, x, *structure)
            else:
                y, back = gossamer.spmm(x, weight), gossamer.spmm_t(g, weight)
                sampled = gossamer.sddmm(g, x, weight)
            return y.square().sum() + back.square().sum() + sampled.square().sum()

        expected = torch.autograd.grad(loss(), wanted)
        out = loss()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = torch.autograd.grad(out, wanted)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own imports
def test_inductor() -> None:
    torch.compiler.reset()
    layer = model("2:4")
    run = torch.compile(layer, fullgraph=True, dynamic=True)
    for batch in (6, 3):
        x = torch.randn(batch, 12, requires_grad=True)
        got = run(x)
        torch.testing.assert_close(got, layer(x))
        expected = torch.autograd.grad(layer(x).sum(), list(layer.parameters()))
        for a, b in zip(
            torch.autograd.grad(got.sum(), list(layer.parameters())), expected, strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("pattern", ["2:4", "2:4:v4", "90%"])
def test_export(pattern: str, strict: bool) -> None:
    layer = model(pattern).eval()
    cols = oracle.sizes(pattern)[1]
    program = torch.export.export(
        layer,
        (torch.randn(4, cols),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=1024)},),
        strict=strict,
    )
    assert "gossamer.spmm" in str(program.graph)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch in (2, 9):
        x = torch.randn(batch, cols)
        torch.testing.assert_close(loaded(x), layer(x))


def test_shapes_without_data() -> None:
    layer = SparseLinear(12, 7, pattern="2:4", device="meta")
    assert layer(torch.empty(2, 3, 12, device="meta")).shape == (2, 3, 7)
    from torch._subclasses.fake_tensor import FakeTensorMode

    real = SparseLinear(12, 7, pattern="2:4")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert real(mode.from_tensor(torch.randn(2, 12))).shape == (2, 7)


def test_vmap_of_the_ops() -> None:
    weight, structure = parts("2:4")
    ops, rows, cols = torch.ops.gossamer, *weight.shape
    x, g = (torch.randn(3, 2, n, dtype=torch.float64) for n in (cols, rows))
    values = torch.randn(2, weight.nnz, dtype=torch.float64)
    bias = torch.randn(2, rows, dtype=torch.float64)

    def each(op: Callable[..., Tensor], *args: Tensor) -> Tensor:
        return torch.stack([op(*(t[i] for t in args)) for i in range(2)])

    x, g = x.movedim(1, 0), g.movedim(1, 0)
    calls: list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = [
        (lambda x: ops.spmm(x, weight.values, *structure, None), (x,)),
        (lambda x, v, b: ops.spmm(x, v, *structure, b), (x, values, bias)),
        (lambda g: ops.spmm_t(g, weight.values, *structure), (g,)),
        (lambda g, v: ops.spmm_t(g, v, *structure), (g, values)),
        (lambda g, x: ops.sddmm(g, x, *structure), (g, x)),
    ]
    for call, args in calls:
        torch.testing.assert_close(torch.func.vmap(call)(*args), each(call, *args))
