"""The picture of essential sparsity: the value by sparsity, patterns as points, layers thin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gossamer.agg import COLOURS, Figure, FigureCanvasAgg

if TYPE_CHECKING:
    from gossamer.pruning.essential import Essential


def plot(found: Essential, path: str | Path) -> None:
    """Draw the curves, the dense value with its tolerance, and the knee.

    Args:
        found: what was measured.
        path: of the PNG file to write.

    Raises:
        OSError: the file cannot be written.
    """
    figure = Figure(figsize=(7.5, 4.8), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for points in found.layers.values():
        x, y = [100 * p.sparsity for p in points], [p.value for p in points]
        axes.plot(x, y, color="#bbbbbb", lw=0.8)
    x, y = [100 * p.sparsity for p in found.curve], [p.value for p in found.curve]
    axes.plot(x, y, "o-", color=COLOURS[1], ms=3, label="unstructured, all layers")
    for i, (text, point) in enumerate(found.patterns.items()):
        colour = COLOURS[2 + i % (len(COLOURS) - 2)]
        axes.plot(100 * point.sparsity, point.value, "s", color=colour, label=text)
    limit = found.dense + found.tolerance * abs(found.dense)
    axes.axhspan(found.dense, limit, color=COLOURS[0], alpha=0.12, lw=0)
    axes.axhline(found.dense, color=COLOURS[0], lw=1, label="dense, with its tolerance")
    if found.knee:
        axes.axvline(100 * found.knee, color=COLOURS[3], ls="--", lw=1)
        axes.annotate(
            f" knee at {100 * found.knee:.3g} %", (100 * found.knee, 0.95), fontsize=8,
            xycoords=("data", "axes fraction"), color=COLOURS[3],
        )  # fmt: skip
    if found.layers:
        axes.plot([], [], color="#bbbbbb", lw=0.8, label="one layer alone")
    axes.set(xlabel="Sparsity (%), cut once", ylabel="Value (less is better)")
    axes.set_title("Essential sparsity", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    canvas.print_png(str(path))  # type: ignore[no-untyped-call]
