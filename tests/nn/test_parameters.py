"""Sparse weights in the places of parameters: their numbers, states, compilers and exports."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import sparsify
from gossamer.nn import SparseParameter
from support.parameters import CASES, F64, built

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*outputs that read nothing", "ignore:.*nested tensors"
)


@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward_are_those_of_the_masked_dense_model(name: str) -> None:
    model, dense, run = built(name)
    wholes = SparseParameter.find_in(model)
    assert len(wholes) == CASES[name][3]
    original = nn.Sequential(nn.ModuleDict({"part": CASES[name][0](), "fc": nn.Linear(8, 8)}))
    assert [type(m) for m in dense.modules()] == [type(m) for m in original.modules()]
    assert [*dict(dense.named_parameters())] == [*dict(original.named_parameters())]
    for mode in (True, False):
        model.train(mode)
        dense.train(mode)
        y, expected = run(model), run(dense)
        torch.testing.assert_close(y, expected)
        with torch.no_grad():  # fast paths of torch
            torch.testing.assert_close(run(model), run(dense))
    for out in (y, expected):
        out.square().sum().backward()
    grads = {name: p.grad for name, p in dense.named_parameters()}
    for at, module in model.named_modules():
        if not isinstance(module, SparseParameter):
            continue
        twin = copy.deepcopy(module)
        for part, source in zip(twin.children(), module.children(), strict=True):
            part.weight.values.data = source.weight.values.grad
        got, mask = twin.to_dense(), copy.deepcopy(module)
        for part in mask.children():
            part.weight.values.data.fill_(1)
        torch.testing.assert_close(got, grads[at] * mask.to_dense())
    others = {n: p.grad for n, p in model.named_parameters() if n in grads}
    for n, grad in others.items():
        torch.testing.assert_close(grad, grads[n])


@pytest.mark.parametrize("name", CASES)
def test_state_copies_and_pickles(name: str, tmp_path: Any) -> None:
    model, dense, run = built(name)
    expected = run(model)
    torch.testing.assert_close(run(copy.deepcopy(model)), expected)
    gossamer.save(model, tmp_path)
    for into in (copy.deepcopy(dense), copy.deepcopy(model)):
        with torch.no_grad():
            for parameter in into.parameters():
                parameter.fill_(0.1)
        loaded = gossamer.load(tmp_path, into)
        torch.testing.assert_close(run(loaded), expected)
        assert [*loaded.state_dict()] == [*model.state_dict()]
    state = model.state_dict()
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    fresh.load_state_dict(state)
    torch.testing.assert_close(run(fresh), expected)
    torch.testing.assert_close(run(model.float().double()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["cross attention", "encoder", "bilinear", "bare", "GRUCell"])
def test_compile_and_export(name: str) -> None:
    model, _, _ = built(name)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Any:
            return CASES[name][1](self.model[0]["part"], x)

    wrapped = Wrapped().eval()
    x = torch.randn(CASES[name][2], dtype=F64)
    expected = wrapped(x)
    compiled = torch.compile(wrapped, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    compiled(x).sum().backward()
    exported = torch.export.export(wrapped, (x,))
    torch.testing.assert_close(exported.module()(x), expected)


@pytest.mark.parametrize("name", ["LSTM", "GRU packed", "RNN", "LSTMCell", "attention"])
def test_autocast_multiplies_in_bfloat16_and_keeps_states(name: str) -> None:
    make, run, shape, _ = CASES[name]
    model, x = sparsify(make(), "2:4"), torch.randn(shape)
    expected = run(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        y = run(model, x)
    assert y.dtype is (torch.bfloat16 if name == "attention" else torch.float32)
    assert not torch.equal(y.float(), expected)
    torch.testing.assert_close(y.float(), expected, rtol=5e-2, atol=5e-2)
    y.sum().backward()
    assert all(p.grad.dtype is torch.float32 for p in model.parameters() if p.grad is not None)
