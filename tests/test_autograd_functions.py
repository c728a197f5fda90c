"""In-place operations behind every autograd Function, as behind torch's own operators.

Autograd forbids in-place operations on a view that a Function returns, so that
`ReLU(inplace=True)` or a masked write behind a layer would die in training.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.autograd import Function

import gossamer
from gossamer import SparseWeight, codes
from gossamer.activations import Options, Weights, sparse_feed_forward
from gossamer.activations.functions import _Penalized
from gossamer.activations.memory import GradientMemory
from gossamer.backend.convolutions import Window
from gossamer.nn import MaskedLinear, SubsetLinear
from gossamer.ops import convolution_autograd as convolutions
from gossamer.ops.autograd import sddmm
from gossamer.ot import sparsity_constrained
from gossamer.patterns import NM, OPERATORS, register_operator

Case = tuple[Tensor, Tensor]

# Programs that need an extra, and files that are run.
NOT_IMPORTED = ("gossamer.cli", "gossamer.commands", "gossamer.train", "gossamer.integrations")


def functions() -> Iterator[type]:
    """Every autograd Function of the package."""
    for module in pkgutil.walk_packages(gossamer.__path__, "gossamer."):
        if not module.name.startswith(NOT_IMPORTED):
            importlib.import_module(module.name)
    waiting = [Function]
    while waiting:
        waiting += (found := waiting.pop()).__subclasses__()
        if found.__module__.startswith("gossamer."):
            yield found


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def weight() -> SparseWeight:
    return SparseWeight.from_dense(draw(8, 12), "2:4")


def masked(lead: tuple[int, ...], kind: type[MaskedLinear], share: float = 0.0) -> Case:
    torch.manual_seed(0)
    layer = kind.from_dense(torch.nn.Linear(12, 8, dtype=torch.float64), "2:4")
    layer.masked_weight_share.fill_(share)
    return layer(draw(*lead, 12)), layer.weight


def partly(lead: tuple[int, ...]) -> Case:
    torch.manual_seed(0)
    mask = draw(8, 12) > 0
    layer = SubsetLinear.from_dense(torch.nn.Linear(12, 8, dtype=torch.float64), mask)
    return layer(draw(*lead, 12)), layer.trained.values


def sampled(lead: tuple[int, ...]) -> Case:
    g = draw(*lead, 8).requires_grad_()
    return gossamer.sddmm(g, draw(*lead, 12), weight()), g


def own(lead: tuple[int, ...]) -> Case:
    def kernel(x: Tensor, weight: SparseWeight) -> Tensor:
        return (x.reshape(-1, 12) @ gossamer.ops.expand(weight).t()).view(*lead, 8)

    try:
        register_operator(NM, "spmm", kernel)
        register_operator(NM, "sddmm", lambda g, x, weight: sddmm(g, x, weight.structure))
        matrix = weight()
        return gossamer.spmm(draw(*lead, 12), matrix), matrix.values
    finally:
        OPERATORS.clear()


def convolved(name: str) -> Case:
    matrix = SparseWeight.from_dense(draw(8, 36), "2:4")
    values, structure = matrix.values, matrix.structure
    window = Window((3, 3), (1, 1), (1, 1), (1, 1), (1, 1), 1)
    x, g = draw(2, 4, 5, 6), draw(2, 8, 5, 6).requires_grad_()
    if name == "_Convolve":
        return convolutions.convolve(x, values, structure, window), values
    if name == "_Input":
        return convolutions.convolve_input(g, values, structure, window, (5, 6)), values
    return convolutions.convolve_weight(g, x, structure, window), g


def coded(name: str) -> Case:
    x, dictionary = draw(5, 12).requires_grad_(), draw(8, 12)
    if name == "top_k":
        return codes.top_k(x, 3).values, x
    code = codes.encode(x, dictionary, draw(8), 3)
    if name == "encode":
        return code.values, x
    if name == "decode":
        return codes.decode(code, dictionary), x
    return codes.prefix_errors(x, code, dictionary)[0], x


def transported() -> Case:
    cost = draw(4, 5).abs().requires_grad_()
    return sparsity_constrained(cost, k=4, gamma=0.1).value, cost


def shrunk(lead: tuple[int, ...]) -> Case:
    x = draw(*lead, 12).requires_grad_()
    return gossamer.prox.L1(0.1).prox(x), x


def alive(network: Callable[..., tuple[Tensor, object]]) -> Case:
    gate, up, down = (draw(8, 12).requires_grad_() for _ in range(3))
    options = Options("relu", "float32", 1.0, 0.1, 0, GradientMemory())
    weights = Weights(gate, up, down, None, None, None)
    return network(draw(5, 12), weights, options)[0], gate


def penalized(x: Tensor, weights: Weights, options: Options) -> tuple[Tensor, object]:
    return _Penalized.apply(x @ weights.gate.T, options.penalty), None


# By the Function: what it returns for an input with these leading dimensions, where it has some,
# and a leaf of its graph.
CASES: dict[str, Callable[[tuple[int, ...]], Case]] = {
    "_Spmm": lambda lead: (gossamer.spmm(draw(*lead, 12), w := weight()), w.values),
    "_SpmmT": lambda lead: (gossamer.spmm_t(draw(*lead, 8), w := weight()), w.values),
    "_Sddmm": sampled,
    "_Own": own,
    "_Convolve": lambda lead: convolved("_Convolve"),
    "_Input": lambda lead: convolved("_Input"),
    "_Weight": lambda lead: convolved("_Weight"),
    "Masked": lambda lead: masked(lead, MaskedLinear),
    "SoftlyMasked": lambda lead: masked(lead, MaskedLinear, 0.5),
    "Subset": partly,
    "_TopK": lambda lead: coded("top_k"),
    "_Selected": lambda lead: coded("encode"),
    "_Decode": lambda lead: coded("decode"),
    "_PrefixErrors": lambda lead: coded("prefix"),
    "_Prox": shrunk,
    "_FeedForward": lambda lead: alive(sparse_feed_forward),
    "_Penalized": lambda lead: alive(penalized),
    "_Value": lambda lead: transported(),
}
# Its gradient is a function of its output, as that of tanh: torch says so.
KEEPS_ITS_OUTPUT = {"_Prox"}


def test_every_function_has_a_case() -> None:
    assert {f.__name__.removesuffix("Transformed") for f in functions()} == set(CASES)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("name", CASES)
def test_what_a_function_returns_can_be_changed_in_place(name: str, lead: tuple[int, ...]) -> None:
    y, leaf = CASES[name](lead)
    assert type(y.grad_fn).__name__ == f"{name}Backward"
    (wanted,) = torch.autograd.grad(y.tanh().sum(), leaf)
    y, leaf = CASES[name](lead)
    y.tanh_()
    if name in KEEPS_ITS_OUTPUT:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
        return
    (found,) = torch.autograd.grad(y.sum(), leaf)
    torch.testing.assert_close(found, wanted)
