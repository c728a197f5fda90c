"""The picture of a training: loss over steps and over seconds, one colour per run."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gossamer.agg import COLOURS, Axes, Figure, FigureCanvasAgg
from gossamer.arguments import check
from gossamer.train.metrics import Row

PICTURE = "loss.png"  # file name in the folder of a training
SHOWN = 0.95  # share of the train losses in the picture; the highest would flatten the rest


def plot(rows: Sequence[Row], path: str | Path, title: str = "") -> None:
    """Draw validation and train loss over steps and over seconds.

    Args:
        rows: rows of metrics, of any number of runs.
        path: the PNG file to write.
        title: title of the picture, plain text: a $ starts no formula.

    Raises:
        OSError: the file cannot be written.
    """
    check(plot, locals())
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(row["run"], []).append(row)
    masks = {
        name: seen for name, own in runs.items() if (seen := [row for row in own if "masks" in row])
    }
    live = {name: own for name, own in runs.items() if "live" in own[0]}
    heights = [5.0, *([3.5] if masks else []), *([2.5] if live else [])]
    figure = Figure(figsize=(12, sum(heights)), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    left, right = (figure.add_subplot(grid[0, i]) for i in range(2))
    right.sharey(left)
    _panel(left, runs, "step", "Step", "Each step: which learns more from a batch")
    _panel(right, runs, "seconds", "Seconds of training", "Each second: which learns faster")
    if masks:
        _mask_panels([figure.add_subplot(grid[1, i]) for i in range(2)], runs, masks)
    if live:
        _live_panel(figure.add_subplot(grid[-1, :]), runs, live)
    left.set_ylabel("Cross entropy (nats a token)")
    left.set_ylim(*_limits(rows))
    right.legend(title="validation (line with dots), train (thin)", frameon=False)
    if title:
        plain = title.encode("utf-8", "replace").decode()  # a file's name may be no text
        figure.suptitle(plain, fontsize=13, fontweight="bold", parse_math=False)
    canvas.print_png(str(path))  # type: ignore[no-untyped-call]


def _live_panel(axes: Axes, runs: Mapping[str, list[Row]], live: Mapping[str, list[Row]]) -> None:
    """Draw the share of live activations of each block; later blocks are drawn lighter."""
    colours = dict(zip(runs, _colours(runs), strict=True))
    for name, rows in live.items():
        depth = len(rows[0]["live"])
        for block in range(depth):
            axes.plot(
                [row["seconds"] for row in rows],
                [100 * row["live"][block] for row in rows],
                color=colours[name], lw=1.2, alpha=1 - 0.7 * block / depth,
                label=name if block == 0 else None,
            )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set_xlabel("Seconds of training")
    axes.set_ylabel("Percent")
    axes.set_title("Live activations per block, the first one darkest", fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def _mask_panels(
    below: Sequence[Axes], runs: Mapping[str, list[Row]], masks: Mapping[str, list[Row]]
) -> None:
    """Draw the panels on the masks of recipes, for the numbers that the rows have."""
    colours = dict(zip(runs, _colours(runs), strict=True))
    for axes, title, lines in zip(
        below,
        ("Masks: density (line), cosine of the input gradient (dotted)", "Masks: flips"),
        ((("density", "-"), ("input_cosine", ":")), (("flip_rate", "-"),)),
        strict=True,
    ):
        for name, rows in masks.items():
            for key, style in lines:
                seen = [row for row in rows if key in row["masks"]]
                axes.plot(
                    [row["step"] for row in seen], [row["masks"][key] for row in seen], style,
                    color=colours[name], lw=1.5, marker="o", ms=3,
                )  # fmt: skip
        axes.set_xlabel("Step")
        axes.set_title(title, fontsize=11)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    below[0].set_ylabel("Share")
    below[1].set_ylabel("Share of the entries since the last evaluation")


def _panel(axes: Axes, runs: Mapping[str, list[Row]], key: str, label: str, title: str) -> None:
    for colour, (name, rows) in zip(_colours(runs), runs.items(), strict=True):
        horizontal = [row[key] for row in rows]
        axes.plot(
            horizontal, _smooth([row["loss"] for row in rows]), color=colour, lw=0.9, alpha=0.45
        )
        evaluated = [row for row in rows if row["val_loss"] is not None]
        axes.plot(
            [row[key] for row in evaluated],
            [row["val_loss"] for row in evaluated],
            color=colour, lw=2, marker="o", ms=4, label=name,
        )  # fmt: skip
    axes.set_xlabel(label)
    axes.set_title(title, fontsize=11)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _colours(runs: Mapping[str, list[Row]]) -> list[str]:
    others = list(COLOURS[1:])
    return [COLOURS[0] if name == "dense" else others[i % 6] for i, name in enumerate(runs, -1)]


def _smooth(values: Sequence[float]) -> list[float]:
    """Return the exponential mean, without a bias towards zero in the first values."""
    keep = 1 - 1 / max(1.0, min(20.0, len(values) / 20))
    smoothed, total, weight = [], 0.0, 0.0
    for value in values:
        if not math.isfinite(value):  # a gap, which must not swallow the rest of the line
            smoothed.append(math.nan)
            continue
        total, weight = keep * total + value, keep * weight + 1
        smoothed.append(total / weight)
    return smoothed


def _limits(rows: Sequence[Row]) -> tuple[float, float]:
    losses = sorted(_finite(row["loss"] for row in rows))
    losses = losses[: max(1, round(SHOWN * len(losses)))]
    losses += _finite(row["val_loss"] for row in rows)
    if not losses:
        return 0.0, 1.0
    low, high = min(losses), max(losses)
    margin = 0.05 * (high - low) or 0.1
    return low - margin, high + margin


def _finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]
