"""Optimal transport at work on digits, colours and points, and its plans.

Each use writes a picture and gives a few numbers, which `run` keeps in one JSON file.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.harness.results import write_json
from bench.harness.tables import pyplot
from bench.transport.cases import (
    ASSIGNMENT,
    DIGITS_L1,
    DIGITS_L2,
    NO_DIGITS,
    POINTS,
    Array,
    Case,
    build,
    grid,
    has_digits,
)
from bench.transport.cases import points as clouds
from gossamer import DataError, GossamerError, ot

Numbers = dict[str, Any]

METHODS = ("auto", "newton", "sinkhorn", "published")
PIXELS = 784
TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)


def run(out: Path, names: Sequence[str] = (), quick: bool = False) -> Numbers:
    """Show some uses.

    Args:
        out: folder of the pictures and of uses.json; made if it is not there.
        names: keys of ``USES``; empty for all.
        quick: small problems, to see that everything works.

    Returns:
        Numbers by the name of the use.

    Raises:
        DataError: a name is unknown.
        GossamerError: the folder cannot be written.
    """
    for name in names:
        if name not in USES:
            raise DataError(f"there is no use {name!r:.80}; choose among {', '.join(USES)}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GossamerError(f"{out} cannot be made: {error.strerror}; choose another") from error
    found: Numbers = {}
    for name in names or USES:
        if name == "digits" and not names and not has_digits():
            found[name] = NO_DIGITS
        else:
            found[name] = USES[name](out, quick)
    write_json(out / "uses.json", found)
    return found


def digits(out: Path, quick: bool = False) -> Numbers:
    """The digits' experiment of Tang et al. (ICLR 2024): one image's ink moved to another's place.

    Ground cost L1 and squared L2 between pixels, reg 1/1200 of the largest cost; the picture shows
    the ink on its way, each pair's mass at a point of the straight line between them.

    Args:
        out: folder of digits.png.
        quick: fewer pixels, and a larger reg.

    Returns:
        For each cost and method: seconds, iterations, status and L1 error.
    """
    n, reg = (64, 1e-2) if quick else (PIXELS, 1 / 1200)
    plt = pyplot()
    figure, axes = plt.subplots(2, len(TIMES), figsize=(11, 4.8), layout="constrained")
    found: Numbers = {"pixels": n, "reg": reg}
    for row, family in zip(axes, (DIGITS_L1, DIGITS_L2), strict=True):
        problem = build(Case(family, n, reg), seed=0)
        cost, a, b = (torch.from_numpy(part) for part in problem[:3])
        found[family] = {}
        for method in METHODS:
            start = time.perf_counter()
            with warnings.catch_warnings():
                # Who does not converge is shown with its status.
                warnings.simplefilter("ignore")
                result = ot.solve(cost, a, b, reg, method=method)
            found[family][method] = {
                "seconds": time.perf_counter() - start,
                "iterations": result.iterations,
                "status": result.status,
                "error": float(result.marginal_error),
            }
            if method == "auto":
                plan = result.sparse_plan(1e-6)
                found[family]["cost"] = float(result.value_linear)
                found[family]["entries"] = int(plan.values().numel())
        at = grid(n)
        for axis, t in zip(row, TIMES, strict=True):
            axis.imshow(_on_the_way(plan, at, t), cmap="gray_r")
            axis.set(xticks=[], yticks=[], title=f"{family}, {t:.0%}")
    figure.savefig(out / "digits.png", dpi=130)
    plt.close(figure)
    return found


def _on_the_way(plan: Tensor, at: Array, t: float) -> Array:
    """An image of the plan's mass at (1 - t) x_i + t y_j, shared among the nearest pixels."""
    rows = np.repeat(np.arange(plan.shape[0]), np.diff(plan.crow_indices().numpy()))
    sides = np.array([len(np.unique(at[:, 0])), len(np.unique(at[:, 1]))])
    where = ((1 - t) * at[rows] + t * at[plan.col_indices().numpy()]) * (sides - 1)
    corner = np.minimum(where.astype(int), sides - 2)
    share = where - corner
    image = np.zeros(sides)
    for down in (0, 1):
        for right in (0, 1):
            weight = np.abs(1 - down - share[:, 0]) * np.abs(1 - right - share[:, 1])
            pixel = (corner[:, 0] + down, corner[:, 1] + right)
            np.add.at(image, pixel, plan.values().numpy() * weight)
    return image


def colours(out: Path, quick: bool = False) -> Numbers:
    """Colour transfer: a meadow at noon takes the palette of a sunset at sea.

    Pixels are points in RGB; each moves to the mean of the colours that its mass goes to, which
    the gradient of the transport value gives without a plan: y_i = x_i - grad_i / (2 a_i).

    Args:
        out: folder of colours.png.
        quick: smaller images.

    Returns:
        Pixels, seconds, and the divergence between the palettes before and after.
    """
    height, width = (12, 16) if quick else (60, 80)
    source, target = meadow(height, width), sunset(height, width)
    x = torch.from_numpy(source.reshape(-1, 3)).requires_grad_()
    y = torch.from_numpy(target.reshape(-1, 3))
    start = time.perf_counter()
    value = ot.loss(x, y, reg=5e-3, debias=False, tol=1e-6)
    (gradient,) = torch.autograd.grad(value, x)
    moved = x.detach() - gradient * (len(x) / 2)
    seconds = time.perf_counter() - start
    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    titles = ("meadow at noon", "sunset at sea", "the meadow in the sunset's colours")
    result = moved.numpy().reshape(source.shape).clip(0, 1)
    for axis, image, title in zip(axes, (source, target, result), titles, strict=True):
        axis.imshow(image)
        axis.set(xticks=[], yticks=[], title=title)
    figure.savefig(out / "colours.png", dpi=130)
    plt.close(figure)
    before, after = (float(ot.loss(cloud, y, reg=5e-3, tol=1e-6)) for cloud in (x.detach(), moved))
    return {"pixels": len(x), "seconds": seconds, "before": before, "after": after}


def meadow(height: int, width: int) -> Array:
    """A generated image: blue sky, green hills, flowers; RGB in [0, 1], [height, width, 3]."""
    rows, columns = _coordinates(height, width)
    noise = np.random.default_rng(0).normal(0, 0.02, (height, width, 1))
    sky = _mix(rows / 0.6, (0.25, 0.5, 0.9), (0.75, 0.88, 1.0))
    grass = _mix((rows - 0.5) * 2, (0.45, 0.68, 0.25), (0.1, 0.35, 0.08))
    hills = rows > 0.55 + 0.08 * np.sin(7 * columns) + 0.04 * np.sin(17 * columns + 1)
    image = np.where(hills[..., None], grass, sky)
    flowers = hills & (np.random.default_rng(1).random((height, width)) > 0.95)
    image[flowers] = (0.95, 0.85, 0.2)
    return np.asarray((image + noise).clip(0, 1))


def sunset(height: int, width: int) -> Array:
    """A generated image: a low sun over water; RGB in [0, 1], [height, width, 3]."""
    rows, columns = _coordinates(height, width)
    noise = np.random.default_rng(2).normal(0, 0.02, (height, width, 1))
    sky = _mix(rows / 0.6, (0.2, 0.1, 0.35), (1.0, 0.55, 0.2))
    water = _mix((rows - 0.6) / 0.4, (0.75, 0.35, 0.25), (0.05, 0.05, 0.2))
    image = np.where((rows > 0.6)[..., None], water, sky)
    glow = np.exp(-(((rows - 0.55) / 0.06) ** 2) - ((columns - 0.5) / 0.05) ** 2)
    path = np.exp(-(((columns - 0.5) / 0.08) ** 2)) * (rows > 0.6) * (np.sin(60 * rows) > 0) * 0.6
    light = np.maximum(glow, path)[..., None]
    return np.asarray((image * (1 - light) + light * (1.0, 0.9, 0.6) + noise).clip(0, 1))


def _coordinates(height: int, width: int) -> tuple[Array, Array]:
    rows, columns = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    return rows, columns


def _mix(share: Array, first: Sequence[float], second: Sequence[float]) -> Array:
    weight = share.clip(0, 1)[..., None]
    return np.asarray((1 - weight) * np.array(first) + weight * np.array(second))


def points(out: Path, quick: bool = False) -> Numbers:
    """Point matching: a disc flows down the gradient of `gossamer.ot.loss` onto a spiral.

    Args:
        out: folder of points.png.
        quick: fewer points and steps.

    Returns:
        Points, steps, seconds, the first and the last loss.
    """
    count, steps = (40, 3) if quick else (400, 40)
    generator = torch.Generator().manual_seed(0)
    angle, radius, along, noise = torch.rand(4, count, generator=generator, dtype=torch.float64)
    disc = (
        0.5
        * radius.sqrt()[:, None]
        * torch.stack([(6.283 * angle).cos(), (6.283 * angle).sin()], 1)
    )
    turn = 3 + 9 * along.sqrt()
    arm = (turn / 12 + 0.04 * (noise - 0.5))[:, None]
    spiral = arm * torch.stack([turn.cos(), turn.sin()], 1)
    x = disc.clone().requires_grad_()
    shown, losses = {0: disc}, []
    start = time.perf_counter()
    for step in range(1, steps + 1):
        value = ot.loss(x, spiral, reg=2e-3, tol=1e-6)
        (gradient,) = torch.autograd.grad(value, x)
        losses.append(value.item())
        with torch.no_grad():
            # The gradient of a point is its weight times twice its way: a fifth of it per step.
            x -= 0.1 * count * gradient
        if step in (steps // 12, steps // 4, steps):
            shown[step] = x.detach().clone()
    seconds = time.perf_counter() - start
    plt = pyplot()
    figure, axes = plt.subplots(1, len(shown) + 1, figsize=(14, 3.2), layout="constrained")
    for axis, (step, cloud) in zip(axes, shown.items(), strict=False):
        axis.scatter(*spiral.T.numpy(), s=5, color="#bbbbbb")
        axis.scatter(*cloud.T.numpy(), s=5, color="#b3202c")
        axis.set(xticks=[], yticks=[], aspect="equal", title=f"step {step}")
    axes[-1].plot(losses, color="#b3202c")
    axes[-1].set(yscale="log", xlabel="step", title="loss")
    figure.savefig(out / "points.png", dpi=130)
    plt.close(figure)
    last = float(ot.loss(x.detach(), spiral, reg=2e-3, tol=1e-6))
    return {
        "points": count, "steps": steps, "seconds": seconds, "first": losses[0], "last": last,
    }  # fmt: skip


def plans(out: Path, quick: bool = False) -> Numbers:
    """Plans as reg falls: points sorted along a line, and a random assignment.

    Args:
        out: folder of plans.png.
        quick: fewer points.

    Returns:
        For each problem and reg: entries per row above 1e-5 of the root of its row's and column's
        mass, and the transport cost.
    """
    n = 30 if quick else 200
    regs = (1e-1, 1e-2, 1e-3, 2e-4)
    plt = pyplot()
    figure, axes = plt.subplots(2, len(regs), figsize=(12, 6.2), layout="constrained")
    found: Numbers = {"n": n}
    for row, family in zip(axes, (POINTS, ASSIGNMENT), strict=True):
        for axis, reg in zip(row, regs, strict=True):
            case = Case(family, n, reg)
            problem = build(case, seed=0)
            cost = problem.cost
            if family == POINTS:
                x, y = clouds(case, seed=0)
                cost = cost[np.ix_(x[:, 0].argsort(), y[:, 0].argsort())]
            result = ot.solve(cost, problem.a, problem.b, reg, tol=1e-6)
            entries = result.sparse_plan().values().numel() / n
            shown = np.log10(np.maximum(result.plan * n, 1e-12))
            image = axis.imshow(shown, vmin=-8, vmax=0, cmap="magma", interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_title(f"{family}, reg {reg:g}: {entries:.3g} a row", fontsize=9)
            found[case.pattern] = {"entries": entries, "cost": float(result.value_linear)}
    figure.colorbar(image, ax=axes, shrink=0.8, label="log10 of n P")
    figure.savefig(out / "plans.png", dpi=130)
    plt.close(figure)
    return found


USES: dict[str, Callable[[Path, bool], Numbers]] = {
    "digits": digits,
    "colours": colours,
    "points": points,
    "plans": plans,
}
