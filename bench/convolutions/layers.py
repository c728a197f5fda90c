"""Single convolutions, forward and backward, beside torch's dense one and SparseProp's.

Every candidate is first compared with torch's convolution of the masked weight.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.convolutions.cases import BOTH, DENSE, SPARSEPROP, SPARSEPROP_PATTERNS, Scope, Shape
from bench.harness.contest import UnavailableError, WrongResultError, check_answer, package
from bench.harness.plan import Job, Plan, time_together
from bench.harness.record import GOSSAMER, Key, Record
from bench.harness.training import SEED
from gossamer.nn import SparseConv2d

GROUP = "convolutions"
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1.6e-2}
# SparseProp's two loops: over the pixels, or over the images.
OVER_IMAGES = f"{SPARSEPROP} over images"


def jobs(plan: Plan[Scope]) -> Iterator[Job]:
    """One job per shape, dtype, pattern and number of threads."""
    scope = plan.scope
    for dtype, patterns in (("float32", scope.patterns), ("bfloat16", scope.half)):
        for shape in scope.shapes:
            for pattern in patterns:
                for threads in plan.threads:
                    key: Key = (BOTH, str(shape), pattern, dtype, threads)
                    title = f"{BOTH} {shape} {pattern} {dtype}, threads: {threads}"
                    yield Job(GROUP, title, threads, [key], partial(_measure, plan, shape, key))


def _measure(plan: Plan[Scope], shape: Shape, key: Key, errors: list[str]) -> list[Record]:
    pattern, dtype = key[2], getattr(torch, key[3])
    generator = torch.Generator().manual_seed(SEED)
    dense = nn.Conv2d(shape.channels, shape.channels, shape.kernel, shape.stride, shape.kernel // 2)
    with torch.no_grad():
        dense.weight.copy_(torch.randn(dense.weight.shape, generator=generator))
    dense.to(dtype)
    ours = SparseConv2d.from_dense(dense, pattern)
    with torch.no_grad():
        dense.weight.copy_(ours.filters())
    x = torch.randn(shape.images, shape.channels, shape.side, shape.side, generator=generator)
    x = x.to(dtype).requires_grad_()
    g = torch.randn(dense(x).shape, generator=generator).to(dtype)
    layers: dict[str, nn.Module] = {GOSSAMER: ours, DENSE: dense}
    skipped = {}
    if dtype == torch.float32 and pattern in SPARSEPROP_PATTERNS:
        for name, over_images in ((SPARSEPROP, False), (OVER_IMAGES, True)):
            try:
                layers[name] = sparseprop(dense, over_images)
            except UnavailableError as reason:
                skipped[name] = str(reason)
    exact = x.detach().float().requires_grad_()
    expected = step(deepcopy(dense).float(), exact, g.float())
    for name, layer in list(layers.items()):
        found = step(layer, x, g)
        try:
            for what, mine, wanted in zip(("output", "input"), found, expected, strict=True):
                who = f"{name}, {key[1]} {pattern} {key[3]}: {what}"
                check_answer(who, mine.float(), wanted, TOLERANCE[dtype])
        except WrongResultError as error:
            if name == GOSSAMER:
                raise
            errors.append(str(error))
            skipped[name] = str(error)
            del layers[name]
    timings = time_together(plan, {n: partial(step, layer, x, g) for n, layer in layers.items()})
    # The better of its two loops takes part, as its own tuner chooses.
    theirs = [timings.pop(name) for name in (SPARSEPROP, OVER_IMAGES) if name in timings]
    if theirs:
        timings[SPARSEPROP] = min(theirs, key=lambda timing: timing.median)
        skipped = {}
    useful = 3 * shape.flops * ours.density
    return [Record.timed(key, timings, density=ours.density, useful_flops=useful, skipped=skipped)]


def step(layer: nn.Module, x: Tensor, grad_output: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output and the input's gradient; the parameters' gradients are made too."""
    y = layer(x)
    grads = torch.autograd.grad(y, [x, *layer.parameters()], grad_output)
    return y.detach(), grads[0]


def sparseprop(dense: nn.Conv2d, over_images: bool) -> nn.Module:
    """Return SparseProp's layer (Nikdan et al. 2023) if it is installed.

    Raises:
        UnavailableError: it is not.
    """
    theirs: Any = package("sparseprop.modules", "SparseConv2d", "sparseprop")
    make: Callable[..., nn.Module] = theirs.from_dense
    return make(dense, vectorizing_over_on=over_images)
