"""Single convolutions, forward and backward, beside torch's dense one and SparseProp's.

Every candidate is first compared with torch's convolution of the masked weight.
"""

from collections.abc import Callable, Iterator
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
TOLERANCE = 1e-4
# SparseProp's two loops: over the pixels, or over the images.
OVER_IMAGES = f"{SPARSEPROP} over images"


def jobs(plan: Plan[Scope]) -> Iterator[Job]:
    """One job per shape, pattern and number of threads."""
    for shape in plan.scope.shapes:
        for pattern in plan.scope.patterns:
            for threads in plan.threads:
                key: Key = (BOTH, str(shape), pattern, "float32", threads)
                title = f"{BOTH} {shape} {pattern}, threads: {threads}"
                yield Job(GROUP, title, threads, [key], partial(_measure, plan, shape, key))


def _measure(plan: Plan[Scope], shape: Shape, key: Key, errors: list[str]) -> list[Record]:
    pattern = key[2]
    generator = torch.Generator().manual_seed(SEED)
    dense = nn.Conv2d(shape.channels, shape.channels, shape.kernel, shape.stride, shape.kernel // 2)
    with torch.no_grad():
        dense.weight.copy_(torch.randn(dense.weight.shape, generator=generator))
    ours = SparseConv2d.from_dense(dense, pattern)
    with torch.no_grad():
        dense.weight.copy_(ours.filters())
    x = torch.randn(
        shape.images, shape.channels, shape.side, shape.side, generator=generator
    ).requires_grad_()
    g = torch.randn(dense(x).shape, generator=generator)
    layers: dict[str, nn.Module] = {GOSSAMER: ours, DENSE: dense}
    skipped = {}
    if pattern in SPARSEPROP_PATTERNS:
        for name, over_images in ((SPARSEPROP, False), (OVER_IMAGES, True)):
            try:
                layers[name] = sparseprop(dense, over_images)
            except UnavailableError as reason:
                skipped[name] = str(reason)
    expected = step(dense, x, g)
    for name, layer in list(layers.items()):
        found = step(layer, x, g)
        try:
            for what, mine, wanted in zip(("output", "input"), found, expected, strict=True):
                check_answer(f"{name}, {key[1]} {pattern}: {what}", mine, wanted, TOLERANCE)
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
