"""A forward and backward pass of modules that multiply by parameters of their own.

The sparse module is the dense one after `sparsify`; its output and its input's gradient are first
compared with those of `densify`. Of the experts, the dense form runs in each of the
implementations of transformers, and the fastest is the rival.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.harness.bars import Bar
from bench.harness.contest import UnavailableError, check_answer, package
from bench.harness.plan import Job, Plan, quick, time_together
from bench.harness.record import GOSSAMER, Key, Record
from bench.harness.training import SEED
from gossamer import densify, sparsify
from gossamer.nn import MaskedLayer

GROUP, TOPIC, DENSE = "weights", "forward + backward", "torch dense"
TOLERANCE = 1e-4
PATTERNS = ("2:4:v4", "75%:v4", "90%:v4")
IMPLEMENTATIONS = ("eager", "grouped_mm")


@dataclass(frozen=True)
class Scope:
    """How much is measured.

    Args:
        width: features; a feed-forward network has twice or four times as many.
        rows: tokens, or steps times sequences.
        patterns: of all weights.
    """

    width: int = 512
    rows: int = 1024
    patterns: tuple[str, ...] = PATTERNS


FULL = Plan(Scope())
QUICK = quick(Scope(width=32, rows=32, patterns=("2:4:v4",)))
BARS: tuple[Bar, ...] = (
    Bar(TOPIC, (DENSE,), 1.2, patterns=("2:4:v4",)),
    Bar(TOPIC, (DENSE,), 2.0, patterns=("90%:v4",)),
)

Run = Callable[[nn.Module, Tensor], Tensor]


def modules(scope: Scope) -> dict[str, tuple[Callable[[], nn.Module], Run, tuple[int, ...]]]:
    """Return what is measured: a module, how it is called, and the sizes of its input."""
    width, heads = scope.width, max(scope.width // 64, 1)
    options: dict[str, Any] = {"batch_first": True, "dropout": 0.0}
    steps = (min(32, scope.rows), max(scope.rows // 32, 1), width)
    tokens = (max(scope.rows // 128, 1), min(128, scope.rows), width)
    return {
        f"MultiheadAttention {width}": (
            lambda: nn.MultiheadAttention(width, heads, **options),
            lambda m, x: m(x, x, x, need_weights=False)[0],
            tokens,
        ),
        f"TransformerEncoderLayer {width}": (
            lambda: nn.TransformerEncoderLayer(width, heads, 4 * width, **options),
            lambda m, x: m(x),
            tokens,
        ),
        f"LSTM {width}": (lambda: nn.LSTM(width, width), lambda m, x: m(x)[0], steps),
        f"GRU {width}": (lambda: nn.GRU(width, width), lambda m, x: m(x)[0], steps),
        f"experts of Mixtral, 8 of {width}": (
            partial(_experts, width),
            _routed,
            (scope.rows, width),
        ),
    }


def jobs(plan: Plan[Scope]) -> Iterator[Job]:
    """One job per module, pattern and number of threads."""
    for name in modules(plan.scope):
        for pattern in plan.scope.patterns:
            for threads in plan.threads:
                key: Key = (TOPIC, name, pattern, "float32", threads)
                title = f"{name} {pattern}, threads: {threads}"
                yield Job(GROUP, title, threads, [key], partial(_measure, plan, key))


def _measure(plan: Plan[Scope], key: Key, errors: list[str]) -> list[Record]:
    make, run, shape = modules(plan.scope)[key[1]]
    torch.manual_seed(SEED)
    try:
        sparse = make()
    except UnavailableError as reason:
        errors.append(str(reason))
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # routers stay dense
        sparse = sparsify(sparse, key[2])
    dense = densify(copy.deepcopy(sparse))
    x = torch.randn(shape).requires_grad_()
    expected, found = step(dense, run, x), step(sparse, run, x)
    for what, mine, wanted in zip(("output", "input"), found, expected, strict=True):
        check_answer(f"{GOSSAMER}, {key[1]} {key[2]}: {what}", mine, wanted, TOLERANCE)
    entrants: dict[str, Callable[[], Any]] = {}
    for who, module in ((GOSSAMER, sparse), (DENSE, dense)):
        for how in IMPLEMENTATIONS if hasattr(module, "config") else ("",):
            entrants[f"{who} {how}".strip()] = partial(step, module, run, x, how)
    timings = time_together(plan, entrants)
    for who in (GOSSAMER, DENSE):  # each in its fastest form
        own = [name for name in timings if name.startswith(who)]
        timings[who] = min((timings.pop(name) for name in own), key=lambda timing: timing.median)
    layers = [module for module in sparse.modules() if isinstance(module, MaskedLayer)]
    entries = sum(layer.in_features * layer.out_features for layer in layers)
    density = sum(layer.nnz for layer in layers) / entries
    return [Record.timed(key, timings, density=density)]


def step(module: nn.Module, run: Run, x: Tensor, how: str = "eager") -> tuple[Tensor, Tensor]:
    """Return the output and the input's gradient; the parameters' gradients are made too."""
    if hasattr(module, "config"):
        module.config._experts_implementation = how  # type: ignore[union-attr]
    y = run(module, x)
    parameters = [p for p in module.parameters() if p.requires_grad]
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(SEED))
    grads = torch.autograd.grad(y, [x, *parameters], g, allow_unused=True)
    return y.detach(), grads[0]


def _experts(width: int) -> nn.Module:
    made: Any = package(
        "transformers.models.mixtral.modeling_mixtral", "MixtralExperts", "transformers"
    )
    config: Any = package("transformers", "MixtralConfig", "transformers")
    experts: nn.Module = made(
        config(hidden_size=width, intermediate_size=2 * width, num_local_experts=8)
    )
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=width**-0.5)
    return experts


def _routed(module: nn.Module, x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    scores = torch.rand(len(x), 8, generator=generator).topk(2)
    y: Tensor = module(x, scores.indices, scores.values)
    return y
