"""The picture of the experiment: what was learned, and how few neurons or weights it takes."""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from experiments.sparsest_relu.fit import Fit
from experiments.sparsest_relu.points import Points

__all__ = ["label", "plot_fits"]

# Okabe & Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
MARGIN = 0.15  # of the points' range, on both sides of the learned function
PLACES = 1000
TICKS = (1, 2, 3, 4, 6, 10, 20, 40, 100, 200, 400, 1000, 2000, 4000)


def label(fit: Fit) -> str:
    """How a run is called: its method, and p where it has a penalty."""
    method = fit.config.method
    return method if method.startswith("adam") else f"{method}, p = {fit.config.p:g}"


def plot_fits(problems: Sequence[tuple[Points, Sequence[Fit]]], path: str | Path) -> None:
    """Draw a row for each data set: the first run's network, and all runs against epochs.

    Args:
        problems: points, and one run a method, the first of which is shown in detail.
        path: the PNG to write.

    Raises:
        OSError: the file cannot be written.
    """
    figure = Figure(figsize=(12, 4.6 * len(problems)), dpi=130, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for (points, fits), (left, right) in zip(
        problems, figure.subplots(len(problems), 2, squeeze=False), strict=True
    ):
        if points.univariate:
            _function(left, points, fits)
        else:
            _weights(left, fits[0])
        _counts(right, points, fits)
    canvas.print_png(str(path))  # type: ignore[no-untyped-call]


def _function(axes: Axes, points: Points, fits: Sequence[Fit]) -> None:
    low, high = float(points.x.min()), float(points.x.max())
    edge = MARGIN * (high - low)
    x = torch.linspace(low - edge, high + edge, PLACES)[:, None]
    for colour, fit in reversed(list(zip(COLOURS, fits, strict=False))):
        front = fit is fits[0]
        axes.plot(
            x[:, 0], fit.model(x), color=colour, lw=2.2 if front else 0.8, label=label(fit),
            alpha=1.0 if front else 0.7,
        )  # fmt: skip
    knots = torch.tensor([k for k, _ in fits[0].model.kinks() if low - edge < k < high + edge])
    axes.plot(
        knots, fits[0].model(knots[:, None]), "D", color=COLOURS[0], ms=8, mfc="none", mew=1.6,
        label="its knots",
    )  # fmt: skip
    axes.plot(points.x[:, 0], points.y, "o", color="#222222", ms=6, label="data")
    axes.set_title(f"{points.name}: {label(fits[0])}, {_size(fits[0])}", fontsize=11)
    axes.set_xlabel("x")
    axes.set_ylabel("f(x)")
    axes.legend(frameon=False, fontsize=8)
    _clean(axes)


def _weights(axes: Axes, fit: Fit) -> None:
    alive = fit.model.alive()
    rows = alive[alive.any(1)]
    products = fit.model.products()[alive.any(1)]
    neuron, at = torch.nonzero(rows, as_tuple=True)
    size = products[rows].abs()
    axes.scatter(
        at, neuron, s=30 + 170 * size / size.max() if len(size) else 30,
        c=[COLOURS[0] if value > 0 else COLOURS[1] for value in products[rows].tolist()],
    )  # fmt: skip
    axes.set_xlim(-1, alive.shape[1])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)))
    name = fit.model.points.name
    axes.set_title(f"{name}: {label(fit)}, {_size(fit)}", fontsize=11)
    axes.set_xlabel("input (the last is the bias); area: |v w|, orange positive, blue negative")
    axes.set_ylabel("neuron")
    _clean(axes)


def _counts(axes: Axes, points: Points, fits: Sequence[Fit]) -> None:
    for colour, fit in zip(COLOURS, fits, strict=False):
        epochs = [max(row.epoch, 1) for row in fit.rows]
        counts = [row.neurons if points.univariate else row.nonzeros for row in fit.rows]
        axes.plot(epochs, counts, color=colour, lw=1.8, label=f"{label(fit)}: {counts[-1]}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in TICKS if low <= tick <= high])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(left=50)
    axes.set_xlabel("epochs (all points)")
    axes.set_ylabel("neurons" if points.univariate else "non-zero v w")
    axes.set_title("what remains, against epochs", fontsize=11)
    axes.legend(frameon=False, fontsize=8)
    _clean(axes)


def _size(fit: Fit) -> str:
    last = fit.last
    more = "" if fit.model.univariate else f", {last.nonzeros} non-zeros"
    return f"{last.neurons} neurons{more}, MSE {last.mse:.1g}"


def _clean(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
