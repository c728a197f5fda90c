"""A picture of speed-up against density, with the ideal and the region where dense wins."""

from collections.abc import Iterable
from pathlib import Path
from statistics import geometric_mean

from bench.harness.machine import wider_than_mkl
from bench.harness.record import Record
from bench.harness.results import Results
from bench.harness.tables import pyplot
from bench.layers.bars import BOTH, FORWARD
from bench.layers.cases import NN_LINEAR, SHAPES
from gossamer import NM, parse_pattern

FAMILIES = {
    "N:M, 4 rows share columns": "#2a6f97",
    "N:M, every row its own": "#b56576",
    "unstructured": "#d17b0f",
}


def family(pattern: str) -> str:
    """Which line a pattern belongs to.

    Args:
        pattern: its text.

    Returns:
        A key of ``FAMILIES``.

    Example:
        >>> family("1:8:v4"), family("90%")
        ('N:M, 4 rows share columns', 'unstructured')
    """
    shared, single, unstructured = FAMILIES
    parsed = parse_pattern(pattern)
    if not isinstance(parsed, NM):
        return unstructured
    return shared if parsed.vector > 1 else single


def points(records: Iterable[Record], topic: str) -> dict[str, dict[float, list[float]]]:
    """Speed-ups over nn.Linear, by family and density.

    Args:
        records: of one run.
        topic: forward, or forward + backward.

    Returns:
        Family -> density -> one ratio for each shape and number of threads.
    """
    shapes = set(map(str, SHAPES))
    found: dict[str, dict[float, list[float]]] = {}
    for r in records:
        if r.topic == topic and r.dtype == "float32" and r.shape in shapes:
            line = found.setdefault(family(r.pattern), {})
            line.setdefault(round(r.density, 4), []).append(r.ratios[NN_LINEAR].median)
    return found


def pictures(results: Results) -> list[Path]:
    """Draw beside the results' file, if a layer was measured."""
    if not points(results.records, FORWARD):
        return []
    path = results.path.with_suffix(".png")
    plot(results, path)
    return [path]


def plot(results: Results, path: Path) -> None:
    """Draw forward, and forward + backward.

    A line is the geometric mean over shapes and numbers of threads, its band their range.

    Args:
        results: with at least one layer measured.
        path: of the PNG.
    """
    plt = pyplot()
    from matplotlib.ticker import NullFormatter, NullLocator

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.8), sharey=True, layout="constrained")
    ideal = [0.6, 0.015]
    for panel, topic in zip(panels, (FORWARD, BOTH), strict=True):
        panel.axhspan(0.5, 1, color="#999999", alpha=0.25, lw=0)
        panel.text(0.017, 0.7, "dense wins", ha="right", va="center", color="#555555")
        panel.plot(ideal, [1 / d for d in ideal], "k--", lw=1, label="1/density")
        for name, line in points(results.records, topic).items():
            densities = sorted(line)
            middle = [geometric_mean(line[d]) for d in densities]
            colour = FAMILIES[name]
            # A family of one density would hide behind another line's dot.
            marker = {"marker": "o", "ms": 4} if len(line) > 1 else {"marker": "D", "ms": 7}
            panel.plot(densities, middle, color=colour, label=name, **marker)
            low, high = ([f(line[d]) for d in densities] for f in (min, max))
            panel.fill_between(densities, low, high, color=colour, alpha=0.2, lw=0)
        panel.set(
            xscale="log", yscale="log", xlim=ideal, ylim=(0.5, 100), title=topic, xlabel="density"
        )
        ticks = [0.5, 0.25, 0.1, 0.05, 0.02]
        panel.set_xticks(ticks, [f"{d:.0%}" for d in ticks])
        speeds = [0.5, 1, 2, 5, 10, 20, 50]
        panel.set_yticks(speeds, [f"{speed:g}×" for speed in speeds])
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_minor_locator(NullLocator())
            axis.set_minor_formatter(NullFormatter())
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"times faster than {NN_LINEAR}")
    panels[0].legend(loc="upper left", frameon=False)
    machine = results.machine
    title = f"{machine['cpu']}, {machine['isa']}, float32; band: all shapes and thread counts"
    if wider_than_mkl(machine):
        title += "; MKL's code is 256 bits wide here"
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
