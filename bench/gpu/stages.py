"""The stages of a run on a GPU. Each returns records; one that fails or is left out says why."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gossamer
from bench.gpu.clock import TOLERANCE, error, seconds, synchronize
from gossamer import SparseLinear

ROOT = Path(__file__).resolve().parents[2]
PATTERNS = ("block 128x128 75%", "block 64x64 75%", "1:4:v128", "1:4:v16", "1:8:v8", "2:4", "99%")
Record = dict[str, Any]


@dataclass
class Setup:
    """Where a run measures, and how much.

    Attributes:
        device: "cuda", or "cpu" to see that the script works.
        tiny: sizes of a test.
        out: folder for programs and results.
    """

    device: str
    tiny: bool
    out: Path

    @property
    def rounds(self) -> int:
        """How often a call is timed."""
        return 2 if self.tiny else 20

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Sizes (in, out) of layers."""
        return [(256, 512)] if self.tiny else [(4096, 4096), (5120, 5120), (4096, 14336)]

    @property
    def tokens(self) -> list[int]:
        """Rows of a batch."""
        return [64] if self.tiny else [2048, 8192]

    def randn(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Return normal numbers on the device."""
        return torch.randn(*shape, device=self.device).to(dtype)


def machine(setup: Setup) -> list[Record]:
    """Return the device, its driver and the versions."""
    found: Record = {"torch": torch.__version__, "gossamer": gossamer.__version__}
    if setup.device == "cuda":
        facts = torch.cuda.get_device_properties(0)
        found |= {"name": facts.name, "memory": facts.total_memory, "cuda": torch.version.cuda}
        found["capability"] = torch.cuda.get_device_capability(0)
    return [found]


def kernels(setup: Setup) -> list[Record]:
    """Compile tests/gpu/check, and run its cases on the device, or emulated."""
    program, sources = setup.out / "check", ROOT / "tests" / "gpu"
    includes = [f"-I{ROOT / 'csrc'}", f"-I{sources}"]
    if setup.device == "cuda":
        targets = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90a,code=sm_90a"]
        command = ["nvcc", "-std=c++20", "-O3", "--expt-relaxed-constexpr", *targets, *includes]
        command.append(str(sources / "check.cu"))
    else:
        command = ["g++", "-std=c++20", "-O1", "-U_FORTIFY_SOURCE", *includes]
        command.append(str(sources / "check.cpp"))
    subprocess.run([*command, "-o", str(program)], check=True, timeout=200)
    ran = subprocess.run(
        [str(program), *(["--small"] if setup.tiny else [])],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    return [{"status": ran.returncode, "said": ran.stdout.splitlines()[-6:]}]


def sanitizer(setup: Setup) -> list[Record]:
    """Run the cases under compute-sanitizer, whose findings are its last lines."""
    tool, program = shutil.which("compute-sanitizer"), setup.out / "check"
    if tool is None or setup.device != "cuda" or not program.exists():
        return [{"left out": "needs compute-sanitizer and the program of the stage before"}]
    found = []
    for check in ("memcheck", "racecheck", "synccheck", "initcheck"):
        command = [tool, "--tool", check, str(program), "--small"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        found.append({"tool": check, "status": ran.returncode, "said": ran.stdout[-300:]})
    return found


def correct(setup: Setup) -> list[Record]:
    """Compare the products and gradients of each pattern and dtype with float64, twice each."""
    dtypes = [torch.bfloat16, torch.float32, torch.float64]
    found: list[Record] = []
    for pattern in PATTERNS:
        for dtype in dtypes:
            weight = SparseLinear(512, 384, pattern=pattern, dtype=dtype).to(setup.device).weight
            for batch in (1, 33, 256):
                x = setup.randn(batch, 512, dtype=dtype)
                g = setup.randn(batch, 384, dtype=dtype)
                first, second = _results(x, g, weight), _results(x, g, weight)
                for verb, exact in _exact(x, g, weight).items():
                    off = error(first[verb], exact)
                    if not off <= TOLERANCE[dtype] or not torch.equal(first[verb], second[verb]):
                        found.append({"pattern": pattern, "dtype": str(dtype), "verb": verb,
                                      "batch": batch, "error": off})  # fmt: skip
    return [{"wrong": found, "cases": len(PATTERNS) * len(dtypes) * 9}]


def _results(x: Tensor, g: Tensor, weight: gossamer.SparseWeight) -> dict[str, Tensor]:
    with torch.no_grad():
        return {
            "spmm": gossamer.spmm(x, weight),
            "spmm_t": gossamer.spmm_t(g, weight),
            "sddmm": gossamer.backend.scatter(gossamer.sddmm(g, x, weight), weight.structure),
        }


def _exact(x: Tensor, g: Tensor, weight: gossamer.SparseWeight) -> dict[str, Tensor]:
    dense, kept = weight.to_dense().detach().double(), weight.mask().to(x.device)
    x, g = x.double(), g.double()
    return {"spmm": x @ dense.T, "spmm_t": g @ dense, "sddmm": g.T @ x * kept}


def ceilings(setup: Setup) -> list[Record]:
    """Measure what nothing can exceed: a copy, and a dense product on random data."""
    size, n = (1 << 16, 128) if setup.tiny else (1 << 28, 8192)
    a, b = setup.randn(size, dtype=torch.bfloat16), setup.randn(size, dtype=torch.bfloat16)
    x, w = setup.randn(n, n, dtype=torch.bfloat16), setup.randn(n, n, dtype=torch.bfloat16)
    one = setup.randn(1, dtype=torch.float32)
    calls = {"copy": lambda: a.copy_(b), "dense": lambda: x @ w, "launch": lambda: one.add_(1)}
    took = seconds(calls, setup.device, setup.rounds)
    return [{
        "copy GB/s": 4 * size / took["copy"] / 1e9,
        "dense TFLOP/s": 2 * n**3 / took["dense"] / 1e12,
        "launch us": took["launch"] * 1e6,
    }]  # fmt: skip


def products(setup: Setup) -> Iterator[Record]:
    """Time each product of each pattern beside the dense one, in bfloat16, on rotating operands."""
    for into, out in setup.shapes:
        for tokens in setup.tokens:
            xs = [setup.randn(tokens, into, dtype=torch.bfloat16) for _ in range(3)]
            gs = [setup.randn(tokens, out, dtype=torch.bfloat16) for _ in range(3)]
            dense = setup.randn(out, into, dtype=torch.bfloat16)
            for pattern in PATTERNS:
                layer = SparseLinear(into, out, pattern=pattern, dtype=torch.bfloat16, bias=False)
                calls = _calls(xs, gs, dense, layer.to(setup.device).weight)
                with torch.no_grad():
                    took = seconds(calls, setup.device, setup.rounds)
                yield {"in": into, "out": out, "tokens": tokens, "pattern": pattern,
                       "seconds": took, **_ratios(took)}  # fmt: skip


def _calls(
    xs: list[Tensor], gs: list[Tensor], dense: Tensor, weight: gossamer.SparseWeight
) -> dict[str, Callable[[], object]]:
    turn = _turns(len(xs))
    return {
        "spmm": lambda: gossamer.spmm(xs[next(turn)], weight),
        "dense forward": lambda: xs[next(turn)] @ dense.T,
        "spmm_t": lambda: gossamer.spmm_t(gs[next(turn)], weight),
        "dense input": lambda: gs[next(turn)] @ dense,
        "sddmm": lambda: gossamer.sddmm(gs[next(turn)], xs[0], weight),
        "dense weight": lambda: gs[next(turn)].T @ xs[0],
    }


def _turns(count: int) -> Iterator[int]:
    at = 0
    while True:
        yield at
        at = (at + 1) % count


def _ratios(took: dict[str, float]) -> dict[str, float]:
    pairs = {"spmm": "dense forward", "spmm_t": "dense input", "sddmm": "dense weight"}
    return {f"{verb} x": took[dense] / took[verb] for verb, dense in pairs.items()}


def steps(setup: Setup) -> Iterator[Record]:
    """Time a layer's step (forward, backward, fused AdamW) beside the dense one; peak memory."""
    into, out = setup.shapes[-1]
    x = setup.randn(setup.tokens[-1], into, dtype=torch.bfloat16)
    for pattern in PATTERNS:
        layers: dict[str, nn.Module] = {
            "dense": nn.Linear(into, out, dtype=torch.bfloat16, device=setup.device),
            "sparse": SparseLinear(into, out, pattern=pattern, dtype=torch.bfloat16),
        }
        calls: dict[str, Callable[[], object]] = {}
        memory: dict[str, int] = {}
        for name, layer in layers.items():
            layer.to(setup.device)
            optimizer = torch.optim.AdamW(layer.parameters(), fused=setup.device == "cuda")
            calls[name] = partial(_step, layer, optimizer, x)
            if setup.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                calls[name]()
                memory[name] = torch.cuda.max_memory_allocated()
        took = seconds(calls, setup.device, setup.rounds)
        yield {"pattern": pattern, "seconds": took, "x": took["dense"] / took["sparse"],
               "peak bytes": memory}  # fmt: skip


def _step(layer: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    layer(x).float().square().mean().backward()
    optimizer.step()


def losses(setup: Setup) -> list[Record]:
    """Train one network on the CPU and on the device from one state: the first losses of both."""
    torch.manual_seed(0)
    width = 64 if setup.tiny else 256
    found = {}
    model = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
    gossamer.sparsify(model, "2:4:v4")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = torch.randn(2, 128, width)
    for device in ("cpu", setup.device):
        model.cpu().load_state_dict(state)
        model.to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        curve = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = (model(x.to(device)) - y.to(device)).square().mean()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        found[device] = curve
    off = max(abs(a - b) for a, b in zip(found["cpu"], found[setup.device], strict=True))
    return [{"losses": found, "largest difference": off}]


def waits(setup: Setup) -> list[Record]:
    """Train steps while torch refuses whatever waits for the device."""
    if setup.device != "cuda":
        return [{"left out": "needs a device"}]
    found = []
    for pattern in ("2:4:v4", "75%"):
        layer = SparseLinear(512, 512, pattern=pattern).to("cuda")
        optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
        x = setup.randn(64, 512, dtype=torch.float32)
        _step(layer, optimizer, x)
        torch.cuda.set_sync_debug_mode("error")
        try:
            _step(layer, optimizer, x)
            said = "no wait"
        except RuntimeError as refused:
            said = str(refused)[:200]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        synchronize("cuda")
        found.append({"pattern": pattern, "said": said})
    return found


def masks(setup: Setup) -> Iterator[Record]:
    """Time the selection of N:M, beside a copy of the weight."""
    rows, cols = (64, 256) if setup.tiny else (8192, 8192)
    w = setup.randn(rows, cols, dtype=torch.bfloat16)
    to = torch.empty_like(w)
    for pattern in ("2:4", "1:4:v8"):
        calls: dict[str, Callable[[], object]] = {
            "copy": partial(to.copy_, w),
            "select": partial(gossamer.masks.select_nm, w, pattern),
        }
        took = seconds(calls, setup.device, setup.rounds)
        yield {"pattern": pattern, "seconds": took, "of a copy": took["copy"] / took["select"]}


STAGES: dict[str, tuple[int, Callable[[Setup], Any]]] = {
    "machine": (5, machine),
    "kernels": (100, kernels),
    "correct": (60, correct),
    "sanitizer": (60, sanitizer),
    "ceilings": (20, ceilings),
    "waits": (10, waits),
    "losses": (20, losses),
    "products": (120, products),
    "steps": (60, steps),
    "masks": (20, masks),
}
"""Seconds that a stage may take, and the stage."""
