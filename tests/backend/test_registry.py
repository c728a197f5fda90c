"""A second module is registered for a device: callers do not change, and nothing of theirs does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from operator import attrgetter
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import gossamer
from gossamer import SparseLinear, SparseWeight, backend, masks
from gossamer.backend import registry
from gossamer.codes import core as codes
from gossamer.prox.operators.elementwise import elementwise_

CPU = registry.module_of(None)


class Recorder:
    """A module for the meta device: it records each call, and computes nothing."""

    def __init__(self, unserved: tuple[str, ...] = (), topic: str = "") -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.unserved = unserved
        self.topic = topic

    def __getattr__(self, name: str) -> Any:
        path = f"{self.topic}.{name}" if self.topic else name
        ours = attrgetter(path)(CPU)
        if isinstance(ours, ModuleType):
            topic = Recorder(self.unserved, path)
            topic.calls = self.calls
            return topic

        def record(*args: Any) -> Any:
            self.calls.append((path, args))
            if path in self.unserved:
                raise backend.Unserved(f"no kernel for {path}")
            if path == "codes.top_k":
                return -1
            return None

        return record

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@pytest.fixture
def meta() -> Iterator[Recorder]:
    module = Recorder()
    backend.register("meta", module)
    yield module
    backend.unregister("meta")


def on_meta(pattern: str = "2:4", transpose: str = "packed") -> SparseWeight:
    weight = SparseWeight.from_dense(torch.randn(8, 16), pattern, transpose=transpose)
    return weight.to("meta")


@pytest.mark.parametrize(
    ("transpose", "spmm_t"), [("packed", "products.spmm_t_packed"), ("none", "products.spmm_t")]
)
def test_verbs_and_their_gradients_reach_the_module(
    meta: Recorder, transpose: str, spmm_t: str
) -> None:
    weight = on_meta(transpose=transpose)
    x = torch.empty(2, 3, 16, device="meta", requires_grad=True)
    bias = torch.empty(8, device="meta", requires_grad=True)
    y = gossamer.spmm(x, weight, bias)
    assert (y.shape, y.device.type) == ((2, 3, 8), "meta")
    y.backward(torch.empty_like(y))
    assert meta.names == ["products.spmm", spmm_t, "products.sddmm"]
    _, given = meta.calls[0]
    expected = {"x": (6, 16), "bias": (8,), "y": (6, 8), "values": (64,)}
    shapes = [tuple(a.shape) for a in given if isinstance(a, torch.Tensor)]
    assert sorted(shapes) == sorted([*expected.values(), (64,)])  # the indices too
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert weight.values.grad is not None
    assert weight.values.grad.shape == (64,)
    assert bias.grad is not None
    assert bias.grad.shape == (8,)
    grad_output = torch.empty(6, 8, device="meta")
    assert gossamer.spmm_t(grad_output, weight).shape == (6, 16)
    assert gossamer.sddmm(grad_output, x.reshape(6, 16), weight).shape == (64,)
    assert meta.names[3:] == [spmm_t, "products.sddmm"]


def test_a_layer_reaches_the_module(meta: Recorder) -> None:
    layer = SparseLinear(16, 8, pattern="2:4").to("meta")
    layer(torch.empty(3, 16, device="meta")).sum().backward()
    assert meta.names == ["products.spmm", "products.sddmm"]


def test_structure_masks_prox_and_codes_reach_the_module(meta: Recorder) -> None:
    structure = on_meta().structure
    backend.validate(structure)
    assert backend.gather(torch.empty(8, 16, device="meta"), structure).device.type == "meta"
    assert backend.scatter(torch.empty(64, device="meta"), structure).shape == (8, 16)
    values, selected = masks.select_nm(torch.empty(8, 16, device="meta"), "2:4")
    assert (values.device.type, selected.indices.device.type) == ("meta", "meta")
    masks.transposable_mask(torch.empty(8, 8, device="meta"), 2, 4)
    masks.add_pruned_(torch.empty(8, 16, device="meta"), values.new_empty(8, 16), 0.5, selected)
    elementwise_(torch.empty(5, device="meta"), "l1", (1.0,))
    codes.top_k(torch.empty(3, 9, device="meta"), 2)
    assert meta.names == [
        "products.check_structure",
        "products.gather",
        "products.scatter",
        "masks.select",
        "masks.transposable",
        "masks.add_pruned",
        "prox.elements",
        "codes.top_k",
    ]


def test_the_cpu_keeps_its_module(meta: Recorder) -> None:
    weight = SparseWeight.from_dense(torch.randn(8, 16), "2:4")
    x = torch.randn(3, 16)
    torch.testing.assert_close(gossamer.spmm(x, weight), x @ weight.to_dense().T)
    backend.spmm(x.numpy(), weight.values.detach().numpy(), weight.structure)
    assert registry.module_of(x) is registry.module_of(np.ones(1)) is CPU
    assert backend.devices() == ("cpu", "cuda", "meta")
    assert not meta.calls


def test_without_a_module_a_device_is_refused() -> None:
    assert backend.devices() == ("cpu", "cuda")
    structure = SparseWeight.from_dense(torch.randn(8, 16), "2:4").structure
    with pytest.raises(gossamer.DeviceError, match="x is on device meta"):
        backend.spmm(torch.empty(3, 16, device="meta"), torch.ones(64), structure)
    with pytest.raises(gossamer.DeviceError, match=r"kernels run on cpu and cuda: move it"):
        backend.check_array(torch.empty(3, device="meta"), "x", device=True)


def test_the_queue_follows_the_arguments() -> None:
    module = Recorder()
    backend.register("meta", module, queue=lambda x: (x.device.type, 7))
    try:
        gossamer.spmm(torch.empty(3, 16, device="meta"), on_meta())
    finally:
        backend.unregister("meta")
    ((name, args),) = module.calls
    assert (name, args[-2:]) == ("products.spmm", ("meta", 7))
    assert len(args) == 9


def test_an_unserved_call_goes_to_the_composite() -> None:
    module, composite = Recorder(unserved=("products.spmm",)), Recorder()
    backend.register("meta", module, queue=lambda x: (7,), composite=composite)
    x, weight = torch.empty(3, 16, device="meta"), on_meta()
    try:
        gossamer.sddmm(torch.empty(3, 8, device="meta"), x, weight)
        assert not composite.calls
        assert gossamer.spmm(x, weight).shape == (3, 8)
    finally:
        backend.unregister("meta")
    assert composite.names == ["products.spmm"]
    assert composite.calls[0][1] == module.calls[-1][1][:-1]  # without the queue


def test_without_a_composite_the_error_comes_through() -> None:
    backend.register("meta", Recorder(unserved=("products.spmm",)))
    try:
        with pytest.raises(backend.Unserved, match=r"no kernel for products\.spmm"):
            gossamer.spmm(torch.empty(3, 16, device="meta"), on_meta())
    finally:
        backend.unregister("meta")


def test_a_name_is_imported_at_the_first_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    backend.register("meta", "a_module_of_kernels")
    try:
        with pytest.raises(ModuleNotFoundError, match="a_module_of_kernels"):
            registry.module_of(torch.empty(1, device="meta"))
        late = ModuleType("a_module_of_kernels")
        monkeypatch.setitem(sys.modules, "a_module_of_kernels", late)
        assert registry.module_of(torch.empty(1, device="meta")) is late
    finally:
        backend.unregister("meta")


def test_submodules_take_the_queue() -> None:
    seen: list[tuple[int, ...]] = []
    module = SimpleNamespace(products=SimpleNamespace(spmm=lambda *args: seen.append(args)))
    backend.register("meta", module, queue=lambda x: (7,))
    try:
        registry.module_of(torch.empty(1, device="meta")).products.spmm(1, 2)
    finally:
        backend.unregister("meta")
    assert seen == [(1, 2, 7)]


def test_another_module_can_serve_the_cpu() -> None:
    module = Recorder()
    backend.register("cpu", module)
    try:
        x = torch.ones(3, 16)
        assert registry.module_of(x) is module
        backend.register("cpu", module, queue=lambda x: (1,))
        registry.module_of(x).prox.top_k(x, 2)
        assert module.calls == [("prox.top_k", (x, 2, 1))]
    finally:
        backend.unregister("cpu")
    assert registry.module_of(torch.ones(1)) is CPU


@pytest.mark.parametrize("device", ["", "cuda:0", None, 3])
def test_a_bad_device_is_refused(device: object) -> None:
    with pytest.raises(gossamer.ArgumentError, match="device type"):
        backend.register(device, Recorder())  # type: ignore[arg-type]
    with pytest.raises(gossamer.DeviceError, match="choose one of cpu, cuda"):
        backend.unregister("xpu")


@pytest.mark.parametrize(
    ("x", "options", "error", "text"),
    [
        ([1.0], {}, gossamer.DTypeError, "x is a list; a torch tensor is needed"),
        (np.ones(2), {}, gossamer.DTypeError, "x is a ndarray; a torch tensor is needed"),
        (torch.ones(2).to_sparse(), {}, gossamer.DTypeError, "to_dense"),
        (torch.ones(2), {"rank": 2}, gossamer.ShapeError, r"shape \[2\]; 2 dimensions"),
        (torch.ones(2).int(), {"dtypes": (torch.float32,)}, gossamer.DTypeError, "int32; float32"),
        (np.ones(2), {"dtypes": (torch.float32,), "numpy": True}, gossamer.DTypeError, "float64"),
        (torch.ones(4)[::2], {"contiguous": True}, gossamer.ShapeError, "contiguous"),
        (torch.ones(2, 3, 4), {"rank": 2}, gossamer.ShapeError, r"flatten\(1\)"),
        (torch.ones(2, 0), {"filled": True}, gossamer.ShapeError, r"shape \[2, 0\].*one entry"),
        (np.ones(0), {"filled": True, "numpy": True}, gossamer.ShapeError, "at least one entry"),
        (
            np.broadcast_to(1.0, 3),
            {"writable": True, "numpy": True},
            gossamer.ArgumentError,
            "copy",
        ),
        (np.float64(1), {"writable": True, "numpy": True}, gossamer.DTypeError, "x is a float64"),
        (torch.ones(2, dtype=torch.cfloat), {}, gossamer.DTypeError, "complex64; real numbers"),
        (np.ma.ones(2), {"numpy": True}, gossamer.DTypeError, "masked"),
        (np.ones(2, complex), {"numpy": True}, gossamer.DTypeError, "real numbers"),
    ],
)
def test_check_array(x: object, options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        backend.check_array(x, "x", **options)


def test_check_array_gives_back_what_fits() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    checked = backend.check_array(x, "x", rank=2, dtypes=(torch.float32,), device=True)
    assert checked.data_ptr() == x.data_ptr()
    assert not checked.requires_grad
    array = np.ones((2, 3))
    assert backend.check_array(array, "x", rank=2, numpy=True, contiguous=True) is array
    assert backend.check_array(array, "x", dtypes=(torch.float64,), numpy=True) is array
