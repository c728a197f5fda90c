"""The picture of a profile: a group of bars per shape of layer, a bar per pattern."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gossamer.agg import COLOURS, Figure, FigureCanvasAgg
from gossamer.profiling.report import DENSE

if TYPE_CHECKING:
    from gossamer.profiling.report import Profile


def plot(profile: Profile, path: str | Path) -> None:
    """Draw milliseconds per step of each group of layers, dense and under the patterns.

    Args:
        profile: what was measured.
        path: of the PNG file to write.

    Raises:
        OSError: the file cannot be written.
    """
    names = (DENSE, *profile.patterns)
    layers = profile.layers
    height = 1.4 + len(layers) * (0.3 + 0.22 * len(names))
    figure = Figure(figsize=(9, height), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.85 / len(names)
    for i, name in enumerate(names):
        at = [k + (i - (len(names) - 1) / 2) * width for k in range(len(layers))]
        times = [1e3 * layer.calls * layer.seconds.get(name, float("nan")) for layer in layers]
        axes.barh(at, times, width, color=COLOURS[i % len(COLOURS)], label=name)
        for y, x, layer in zip(at, times, layers, strict=True):
            gain = layer.gain(name)
            if name != DENSE:
                words = " stays dense" if gain is None else f" {gain:.1f}x"
                axes.text(0 if gain is None else x, y, words, va="center", fontsize=7)
    labels = [
        f"{layer.calls} x {layer.kind} {layer.out_features}x{layer.in_features}\n{layer.rows} rows"
        for layer in layers
    ]
    axes.set_yticks(range(len(layers)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    what = "forward and backward" if profile.backward else "forward"
    axes.set_xlabel(f"Milliseconds per step, {what}, all calls together")
    axes.set_title("Layers, dense and sparse; times faster than dense", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    canvas.print_png(str(path))  # type: ignore[no-untyped-call]
