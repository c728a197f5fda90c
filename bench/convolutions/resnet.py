"""A training step of a ResNet-18 of CIFAR's size, sparse beside dense: time and memory.

The stem reads three channels and stays dense, like the head. Memory is what a process needs beyond
what it has before its first step, each model in a process of its own.
"""

import copy
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import gossamer
from bench.convolutions.cases import DENSE, MEMORY, STEP, STEP_PATTERNS, Scope
from bench.harness.contest import check_answer
from bench.harness.plan import Job, Plan
from bench.harness.record import GOSSAMER, Key, Quartiles, Record
from bench.harness.training import SEED
from gossamer.nn import SparseConv2d
from gossamer.timing import interleaved

GROUP = "resnet"
TOLERANCE = 1e-3


class Block(nn.Module):
    """Two convolutions of 3 x 3 with norms, and a way around them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = outputs // inputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.around = nn.Sequential(
            *([nn.Conv2d(inputs, outputs, 1, stride, bias=False)] if stride > 1 else []),
            *([nn.BatchNorm2d(outputs)] if stride > 1 else []),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [images, inputs, side, side] to [images, outputs, side / stride, side / stride]."""
        return torch.relu(self.body(x) + self.around(x))


def resnet18(width: int) -> nn.Sequential:
    """Return the dense model; the same width gives the same weights."""
    torch.manual_seed(SEED)
    sizes = [width * times for times in (1, 1, 1, 2, 2, 4, 4, 8, 8)]
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        *(Block(*pair) for pair in pairwise(sizes)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(sizes[-1], 10),
    )


def sparse_resnet18(width: int, pattern: str) -> nn.Module:
    """Return the same model with sparse convolutions."""
    return gossamer.sparsify(resnet18(width), pattern, exclude=("0", "13"))


class Stepper(NamedTuple):
    """A model, its optimizer and a batch."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, model: nn.Module, images: int) -> "Stepper":
        """Take a model and draw a batch."""
        generator = torch.Generator().manual_seed(SEED)
        x = torch.randn(images, 3, 32, 32, generator=generator)
        y = torch.randint(10, (images,), generator=generator)
        return cls(model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9), x, y)

    def step(self) -> None:
        """Train one step."""
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(self.x), self.y)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def jobs(plan: Plan[Scope]) -> Iterator[Job]:
    """One job per pattern and number of threads, and one of memory."""
    for threads in plan.threads:
        for pattern in STEP_PATTERNS:
            keys: list[Key] = [
                (topic, plan.scope.resnet, pattern, "float32", threads) for topic in (STEP, MEMORY)
            ]
            title = f"{STEP} {keys[0][1]} {pattern}, threads: {threads}"
            yield Job(GROUP, title, threads, keys, partial(_measure, plan, keys))


def _measure(plan: Plan[Scope], keys: list[Key], errors: list[str]) -> list[Record]:
    scope, pattern, threads = plan.scope, keys[0][2], keys[0][4]
    sparse = Stepper.of(sparse_resnet18(scope.width, pattern), scope.images)
    layers = [m for m in sparse.model.modules() if isinstance(m, SparseConv2d)]
    density = sum(m.nnz for m in layers) / sum(m.mask().numel() for m in layers)
    with torch.no_grad():
        wanted = gossamer.densify(copy.deepcopy(sparse.model))(sparse.x)
        check_answer(f"{GOSSAMER}, ResNet {pattern}", sparse.model(sparse.x), wanted, TOLERANCE)
    dense = Stepper.of(resnet18(scope.width), scope.images)
    calls = {GOSSAMER: sparse.step, DENSE: dense.step}
    timings = interleaved(calls, repeats=scope.rounds, warmup=1)
    needed = {
        name: Quartiles.exactly(memory(of, scope.width, scope.images, threads))
        for name, of in ((GOSSAMER, pattern), (DENSE, DENSE))
    }
    topic, shape, _, dtype, _ = keys[1]
    share = Quartiles.exactly(needed[DENSE].median / needed[GOSSAMER].median)
    return [
        Record.timed(keys[0], timings, density=density),
        Record(
            topic, shape, pattern, dtype, threads, density, GOSSAMER, "B", needed, {DENSE: share}
        ),
    ]


def memory(pattern: str, width: int, images: int, threads: int) -> float:
    """Return the bytes that steps of a model need, measured in a process of its own."""
    arguments = [pattern, str(width), str(images), str(threads)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.convolutions.resnet", *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout)


def _resident(name: str) -> int:
    """Bytes of this process, "VmRSS" now or "VmHWM" at most."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])


def _steps(pattern: str, width: int, images: int, threads: int) -> int:
    torch.set_num_threads(threads)
    warm = Stepper.of(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), images)
    warm.step()  # what libraries need once does not count
    before = _resident("VmRSS")
    model = resnet18(width) if pattern == DENSE else sparse_resnet18(width, pattern)
    stepper = Stepper.of(model, images)
    for _ in range(3):
        stepper.step()
    return _resident("VmHWM") - before


if __name__ == "__main__":
    print(_steps(sys.argv[1], *map(int, sys.argv[2:])))
