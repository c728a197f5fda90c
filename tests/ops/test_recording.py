"""Recorders, counters and transforms: right numbers, or an error that names the layer."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.utils.flop_counter import FlopCounterMode

import gossamer
from gossamer import GossamerError, SparseLinear, SparseWeight, sddmm, spmm, spmm_t
from gossamer.nn import AdaptedLinear, MaskedLinear
from gossamer.nn.layers.threshold import ThresholdLinear
from support import oracle

# torch's own: it deprecates torch.jit, which its rules for jvp import.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
PATTERNS = ["2:4", "2:4:v4", "90%", "block 4x4 50%"]


def model(pattern: str = "2:4") -> nn.Sequential:
    rows, cols = oracle.sizes(pattern)
    return nn.Sequential(
        nn.Identity(), nn.Sequential(SparseLinear(cols, rows, pattern=pattern), nn.Tanh())
    ).double()


def source(layer: nn.Module, *lead: int) -> Tensor:
    return torch.randn(*lead, layer[1][0].in_features, dtype=torch.float64)


def weight(pattern: str, backward: str = "exact") -> SparseWeight:
    dense = torch.randn(oracle.sizes(pattern), dtype=torch.float64)
    return SparseWeight.from_dense(dense, pattern, backward=backward)


# torch.jit.trace


@pytest.mark.parametrize("grad_mode", [True, False])
@pytest.mark.parametrize("lead", [(4,), (2, 3)])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_traced_model_computes_what_the_model_does(
    pattern: str, lead: tuple[int, ...], grad_mode: bool
) -> None:
    eager = model(pattern).eval()
    with torch.set_grad_enabled(grad_mode):
        traced = torch.jit.trace(eager, source(eager, *lead))
    assert "gossamer::spmm" in str(traced.inlined_graph)
    x = source(eager, *(n + 1 for n in lead)).requires_grad_()
    torch.testing.assert_close(traced(x), eager(x))
    got, wanted = (
        torch.autograd.grad(m(x).sum(), [x, eager[1][0].weight.values]) for m in (traced, eager)
    )
    torch.testing.assert_close(got, wanted)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(x), eager(x))


# torch.fx


LEAVES: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "sparse": lambda linear: SparseLinear.from_dense(linear, "2:4"),
    "adapted": lambda linear: AdaptedLinear.from_dense(linear, "2:4"),
    "masked": lambda linear: MaskedLinear.from_dense(linear, "2:4"),
    "threshold": lambda linear: ThresholdLinear.from_dense(linear, "75%", None),
}


@pytest.mark.parametrize("name", LEAVES)
def test_a_layer_is_a_leaf_of_a_symbolic_trace(name: str) -> None:
    layer = LEAVES[name](nn.Linear(12, 8))
    if isinstance(layer, AdaptedLinear):
        layer.insert(2)
        nn.init.normal_(layer.adapter.right)
    eager = nn.Sequential(nn.Identity(), nn.Sequential(layer, nn.ReLU()))
    graph = torch.fx.symbolic_trace(eager)
    calls = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert "1.0" in calls
    x = torch.randn(3, 12)
    assert torch.equal(graph(x), eager(x))
    assert type(copy.deepcopy(graph).get_submodule("1.0")) is type(layer)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_records_the_operators(mode: str) -> None:
    eager = model()
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(lambda x: eager(x), tracing_mode=mode, _allow_non_fake_inputs=True)(
        source(eager, 4)
    )
    assert "gossamer.spmm" in graph.code
    x = source(eager, 4)
    torch.testing.assert_close(graph(x), eager(x))


# Counters and the profiler


@pytest.mark.parametrize("lead", [(), (6,), (2, 3)])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_flops_are_those_of_the_kept_entries(pattern: str, lead: tuple[int, ...]) -> None:
    eager = model(pattern)
    x = source(eager, *lead).requires_grad_()
    one = 2 * eager[1][0].nnz * x[..., 0].numel()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        eager(x)
    assert counter.get_total_flops() == one
    with FlopCounterMode(display=False) as counter:
        eager(x).sum().backward()
    assert counter.get_total_flops() == 3 * one
    y = eager(x)  # recorded by nobody, differentiated under a counter
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * one


def test_flops_of_a_pruned_backward_pass_are_its_own() -> None:
    layer = SparseLinear(16, 8, pattern="2:4", backward="double_pruned")
    x = torch.randn(5, 16, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    entries = 2 * layer.nnz + len(layer.weight.t_perm)
    assert counter.get_total_flops() == 2 * 5 * entries
    assert len(layer.weight.t_perm) < layer.nnz


@pytest.mark.parametrize("gradient", ["dense", "kept"])
def test_flops_of_a_masked_layer(gradient: str) -> None:
    layer = MaskedLinear.from_dense(nn.Linear(16, 8), "2:4", True, gradient)
    x = torch.randn(5, 16, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    by_weight = 16 * 8 if gradient == "dense" else layer.nnz
    assert counter.get_total_flops() == 2 * 5 * (2 * layer.nnz + by_weight)


def test_the_profiler_sees_the_operators() -> None:
    eager = model()
    x = source(eager, 4).requires_grad_()
    with torch.profiler.profile() as profile:
        eager(x).sum().backward()
        with torch.no_grad():
            eager(x)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["gossamer::spmm"] == 2
    assert counts["gossamer::spmm_t"] == counts["gossamer::sddmm"] == 1


# Transforms


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_vmap_of_every_operand(pattern: str, dim: int) -> None:
    w = weight(pattern)
    rows, cols = w.shape
    x, g = (torch.randn(3, 2, n, dtype=torch.float64).movedim(0, dim) for n in (cols, rows))
    values = torch.randn(w.nnz, 3, dtype=torch.float64)
    bias = torch.randn(3, rows, dtype=torch.float64)
    dense = w.to_dense().detach()

    def each(f: Callable[..., Tensor], *args: tuple[Tensor, int]) -> Tensor:
        return torch.stack([f(*(t.select(d, i) for t, d in args)) for i in range(3)])

    def by_values(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        other = functional_call(SparseLinear.of_parts(w), {"weight.values": values}, (x,))
        return other + bias

    checks = [
        (vmap(lambda x: spmm(x, w), dim)(x), each(lambda x: x @ dense.T, (x, dim))),
        (vmap(lambda g: spmm_t(g, w), dim)(g), each(lambda g: g @ dense, (g, dim))),
        (
            vmap(lambda g, x: sddmm(g, x, w), (dim, dim))(g, x),
            each(lambda g, x: sddmm(g, x, w), (g, dim), (x, dim)),
        ),
        (
            vmap(lambda b: spmm(x.select(dim, 0), w, b))(bias),
            each(lambda b: x.select(dim, 0) @ dense.T + b, (bias, 0)),
        ),
        (
            vmap(by_values, (dim, 1, 0))(x, values, bias),
            each(by_values, (x, dim), (values, 1), (bias, 0)),
        ),
        (
            vmap(vmap(lambda x: spmm(x, w)))(x.movedim(dim, 0)[:, None]),
            x.movedim(dim, 0)[:, None] @ dense.T,
        ),
    ]
    for found, wanted in checks:
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_gradients_per_sample(pattern: str) -> None:
    eager = model(pattern)
    twin = gossamer.densify(copy.deepcopy(eager))
    mask = eager[1][0].mask()
    x = source(eager, 5)

    def loss(module: nn.Module) -> Callable[..., Tensor]:
        buffers = dict(module.named_buffers())
        return lambda p, x: functional_call(module, (p, buffers), (x,)).square().sum()

    found, wanted = (
        vmap(grad(loss(m)), (None, 0))(dict(m.named_parameters()), x) for m in (eager, twin)
    )
    torch.testing.assert_close(found["1.0.bias"], wanted["1.0.bias"])
    for values, dense in zip(found["1.0.weight.values"], wanted["1.0.weight"], strict=True):
        got = gossamer.backend.scatter(values, eager[1][0].structure)
        torch.testing.assert_close(got, dense * mask)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_jacobians_and_hessians(pattern: str) -> None:
    eager = model(pattern)
    twin = gossamer.densify(copy.deepcopy(eager))
    x = source(eager)
    tangent = torch.randn_like(x)
    for transform in (jacrev, jacfwd, lambda f: hessian(lambda x: f(x).sum())):
        torch.testing.assert_close(transform(eager)(x), transform(twin)(x))
    torch.testing.assert_close(jvp(eager, (x,), (tangent,)), jvp(twin, (x,), (tangent,)))
    got, wanted = (torch.autograd.functional.jacobian(m, x, vectorize=True) for m in (eager, twin))
    torch.testing.assert_close(got, wanted)
    leaf = x.clone().requires_grad_()
    directions = torch.eye(eager[1][0].out_features, dtype=torch.float64)
    got, wanted = (
        torch.autograd.grad(m(leaf), leaf, directions, is_grads_batched=True)[0]
        for m in (eager, twin)
    )
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_forward_derivatives_of_every_operand(pattern: str) -> None:
    w = weight(pattern)
    rows, cols = w.shape
    layer = SparseLinear.of_parts(w)
    x, g = (torch.randn(2, 3, n, dtype=torch.float64) for n in (cols, rows))
    bias = torch.randn(rows, dtype=torch.float64)

    def with_values(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(values: Tensor, *args: Tensor) -> Tensor:
            class Holder(nn.Module):
                def __init__(self) -> None:
                    super().__init__()
                    self.weight = w

                def forward(self, *args: Tensor) -> Tensor:
                    return f(*args)

            return functional_call(Holder(), {"weight.values": values}, args)

        return call

    functions = [
        (with_values(lambda x, b: spmm(x, w, b)), (w.values.detach(), x, bias)),
        (lambda b: spmm(x, w, b), (bias,)),
        (with_values(lambda g: spmm_t(g, w)), (w.values.detach(), g)),
        (lambda g, x: sddmm(g, x, w), (g, x)),
    ]
    for function, primals in functions:
        tangents = tuple(torch.randn_like(p) for p in primals)
        _, found = jvp(function, primals, tangents)
        step = 1e-6
        ends = [
            function(*(p + s * t for p, t in zip(primals, tangents, strict=True)))
            for s in (step, -step)
        ]
        torch.testing.assert_close(found, (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-7)
    with forward_ad.dual_level():  # without torch.func
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        tangent = forward_ad.unpack_dual(layer(dual)).tangent
    torch.testing.assert_close(tangent, torch.ones_like(x) @ w.to_dense().T)


def test_an_ensemble_of_one_mask_works_and_one_of_many_says_vmap() -> None:
    first = SparseLinear(12, 8, pattern="2:4")
    layers = [copy.deepcopy(first) for _ in range(3)]
    for layer in layers:
        nn.init.normal_(layer.weight.values)
    parameters, buffers = stack_module_state(layers)
    x = torch.randn(5, 12)
    own = dict(first.named_buffers())
    found = vmap(lambda p: functional_call(first, (p, own), (x,)))(parameters)
    torch.testing.assert_close(found, torch.stack([layer(x) for layer in layers]))
    with pytest.raises(GossamerError, match="vmap with a batch of structures"):
        vmap(lambda p, b: functional_call(first, (p, b), (x,)))(parameters, buffers)


# What cannot be recorded


def called_by_name(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Identity(), nn.Sequential(layer))


REFUSED: dict[str, tuple[str, Callable[[nn.Module, Tensor], object]]] = {
    "trace": ("torch.jit.trace", lambda m, x: torch.jit.trace(m, x)),
    "make_fx": ("make_fx", lambda m, x: make(m, x)),
    "vmap": ("vmap", lambda m, x: vmap(m)(x)),
    "grad": ("torch.func", lambda m, x: grad(lambda x: m(x).sum())(x)),
    "jvp": ("jvp", lambda m, x: jvp(m, (x,), (x,))),
    "dual": ("forward-mode", lambda m, x: dual(m, x)),
}


def make(module: nn.Module, x: Tensor) -> object:
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(module)(x)


def dual(module: nn.Module, x: Tensor) -> object:
    with forward_ad.dual_level():
        return module(forward_ad.make_dual(x, x))


@pytest.mark.parametrize("way", REFUSED)
@pytest.mark.parametrize("kind", [MaskedLinear, ThresholdLinear])
def test_a_masked_layer_refuses_what_cannot_see_its_selection(
    kind: type[MaskedLinear], way: str
) -> None:
    layer = called_by_name(kind.from_dense(nn.Linear(12, 8), "2:4"))
    words, call = REFUSED[way]
    with pytest.raises(GossamerError, match=rf"1\.0: {kind.__name__}.*{words}.*densify"):
        call(layer, torch.randn(3, 12))
    layer(torch.randn(3, 12)).sum().backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["sparse", "masked"])
def test_onnx_is_refused_by_name(kind: str, tmp_path) -> None:
    layer = called_by_name(LEAVES[kind](nn.Linear(12, 8)))
    words = r"1\.0.*ONNX.*densify"
    with pytest.raises(GossamerError, match=words):
        torch.onnx.export(layer, (torch.randn(3, 12),), str(tmp_path / "a.onnx"), dynamo=False)
