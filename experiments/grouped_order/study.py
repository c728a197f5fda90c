"""Products that use the order of n:m:g, beside products of panels: times, checked first."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import gossamer
from bench.harness import machine
from gossamer import GossamerError, timing

NAME = "grouped-order"
SHAPES = ((512, 768, 3072), (512, 3072, 768))
GROUPS = (8, 16)
ROUNDS = 15
TILE = 64
FLAGS = ["-O3", "-std=c++20", "-mavx512f", "-mfma", "-ffp-contract=fast", "-shared", "-fPIC"]
# Of 2 of 4 columns, as order.cpp counts them.
CHOICES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


def run(out: Path, shapes: Any = SHAPES, groups: Any = GROUPS, rounds: int = ROUNDS) -> Path:
    """Measure all shapes; write the table.

    Args:
        out: folder of the result.
        shapes: (batch, in_features, out_features).
        groups: g of 2:4:g.
        rounds: interleaved calls of each product.

    Returns:
        The path of the table.

    Raises:
        GossamerError: there is no compiler or no AVX-512, or a prototype is wrong.
    """
    with tempfile.TemporaryDirectory() as folder, timing.threads(1), torch.no_grad():
        library = _compiled(Path(folder))
        lines = [
            f"- {machine.cpu_name()}, one thread, float32; medians of {rounds} interleaved calls",
            "- prototypes are given packed activations; the engine's products pack theirs",
            "",
            "| batch×in×out, g | product | order of n:m:g | 2:4:g, V = 1 | 2:4:v4 | dense |",
            "| --- | --- | ---: | ---: | ---: | ---: |",
        ]
        for shape in shapes:
            for g in groups:
                for product, times in _measured(library, shape, g, rounds).items():
                    cells = " | ".join(f"{1e3 * seconds:.2f} ms" for seconds in times)
                    lines.append(f"| {'×'.join(map(str, shape))}, {g} | {product} | {cells} |")
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{NAME}.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _compiled(folder: Path) -> ctypes.CDLL:
    target = folder / "order.so"
    source, compiler = Path(__file__).with_name("order.cpp"), shutil.which("c++")
    if compiler is None or "avx512" not in gossamer.isas():
        raise GossamerError("grouped-order needs a C++ compiler and a processor with AVX-512")
    try:
        subprocess.run([compiler, *FLAGS, "-o", str(target), str(source)], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise GossamerError(f"order.cpp cannot be compiled: {error}") from None
    return ctypes.CDLL(str(target))


def _measured(
    library: ctypes.CDLL, shape: tuple[int, int, int], g: int, rounds: int
) -> dict[str, list[float]]:
    batch, cols, rows = shape
    torch.manual_seed(0)
    pattern = gossamer.GroupedNM(2, 4, g)
    dense = torch.randn(rows, cols)
    dense *= gossamer.masks.random_mask((rows, cols), pattern, 1)
    values, places = arranged(dense, g)
    x, grad = torch.randn(batch, cols), torch.randn(batch, rows)
    packed = {"forward": _packed(x), "transposed": _packed(grad)}
    results = {
        "forward": torch.empty(batch // TILE, rows, TILE),
        "transposed": torch.empty(batch // TILE, cols, TILE),
    }
    sizes = [ctypes.c_int64(n) for n in (rows // (6 * g), cols // 4, g)]

    def ordered(name: str) -> Callable[[], None]:
        call = getattr(library, f"{name}_ordered")

        def product() -> None:
            for given, result in zip(packed[name], results[name], strict=True):
                pointers = [ctypes.c_void_p(t.data_ptr()) for t in (given, values, places, result)]
                call(*pointers, *sizes)

        return product

    grouped = gossamer.SparseWeight.from_dense(dense, pattern, dense != 0)
    panels = gossamer.SparseWeight.from_dense(torch.randn(rows, cols), "2:4:v4")
    products: dict[str, list[Callable[[], Any]]] = {
        "forward": [
            ordered("forward"),
            lambda: gossamer.spmm(x, grouped),
            lambda: gossamer.spmm(x, panels),
            lambda: x @ dense.t(),
        ],
        "transposed": [
            ordered("transposed"),
            lambda: gossamer.spmm_t(grad, grouped),
            lambda: gossamer.spmm_t(grad, panels),
            lambda: grad @ dense,
        ],
    }
    for name, expected in (("forward", x @ dense.t()), ("transposed", grad @ dense)):
        products[name][0]()
        got = results[name].transpose(1, 2).reshape(batch, -1)
        if not torch.allclose(got, expected, atol=1e-2):
            raise GossamerError(f"the prototype of the {name} product is wrong")
    return {name: _times(functions, rounds) for name, functions in products.items()}


def _times(functions: list[Callable[[], Any]], rounds: int) -> list[float]:
    found: list[list[float]] = [[] for _ in functions]
    for turn in range(rounds + 1):  # the first is not counted
        for function, seconds in zip(functions, found, strict=True):
            start = time.perf_counter()
            function()
            if turn:
                seconds.append(time.perf_counter() - start)
    return [median(seconds) for seconds in found]


def arranged(dense: Tensor, g: int) -> tuple[Tensor, Tensor]:
    """Return values [chunks, groups, 6, g, 2] and rows in the chunk [chunks, groups, 6, g]."""
    rows, cols = dense.shape
    chunks, groups = rows // (6 * g), cols // 4
    kept = (dense != 0).view(chunks, 6 * g, groups, 4)
    columns = kept.nonzero()[:, 3].view(chunks, 6 * g, groups, 2)
    choice = torch.zeros(columns.shape[:3], dtype=torch.int64)
    for number, (a, b) in enumerate(CHOICES):
        choice[(columns[..., 0] == a) & (columns[..., 1] == b)] = number
    order = choice.argsort(dim=1, stable=True).permute(0, 2, 1)
    values = dense.view(chunks, 6 * g, groups, 4).gather(3, columns).permute(0, 2, 1, 3)
    values = values.gather(2, order[..., None].expand(-1, -1, -1, 2))
    return values.contiguous(), order.to(torch.int16).contiguous()


def _packed(x: Tensor) -> Tensor:
    return x.view(-1, TILE, x.shape[1]).transpose(1, 2).contiguous()
