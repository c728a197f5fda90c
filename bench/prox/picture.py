"""The picture of the proximal part: WGSEF against its rivals, and the bandwidth of the others."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.harness.record import GOSSAMER, Record
from bench.harness.results import Results
from bench.harness.tables import pyplot
from bench.prox.bars import (
    EAGER,
    ELEMENTS,
    ENTRIES,
    GAINS,
    MODOPT,
    NUMPY,
    NUMPY_EQUAL,
    PYPROXIMAL,
    SCALE,
)

COLOURS = {
    GOSSAMER: "#2a6f97", NUMPY: "#b56576", NUMPY_EQUAL: "#d17b0f", MODOPT: "#6d597a",
    PYPROXIMAL: "#588157", EAGER: "#b56576",
}  # fmt: skip
ENOUGH = 0.6


def pictures(results: Results) -> list[Path]:
    """Draw beside the results' file, if there is anything to draw."""
    path = results.path.with_suffix(".png")
    return [path] if plot(results, path) else []


def lines(records: Iterable[Record]) -> dict[str, dict[int, float]]:
    """Seconds of WGSEF with one thread.

    Args:
        records: of one run.

    Returns:
        Entrant -> groups -> seconds. Rivals that know no groups are shown with single entries.
    """
    found: dict[str, dict[int, float]] = {}
    for record in (r for r in records if r.threads == 1):
        own = record.topic == GAINS
        if own or record.topic == ENTRIES:
            for name, times in record.measured.items():
                if own or name in (MODOPT, PYPROXIMAL):
                    found.setdefault(name, {})[int(record.shape)] = times.median
    return found


def shares(records: Iterable[Record]) -> dict[str, dict[str, float]]:
    """Share of the scale's bandwidth, one thread, on the largest float32 tensor.

    Args:
        records: of one run.

    Returns:
        Operator -> Gossamer or eager torch -> share.
    """
    chosen = [r for r in records if (r.topic, r.dtype, r.threads) == (ELEMENTS, "float32", 1)]
    largest = max((int(r.shape) for r in chosen), default=0)
    return {
        r.pattern: {
            name: r.measured[SCALE].median / r.measured[name].median
            for name in (GOSSAMER, EAGER)
            if name in r.measured
        }
        for r in chosen
        if int(r.shape) == largest
    }


def plot(results: Results, path: Path) -> bool:
    """Draw WGSEF's seconds against groups, and each operator's share of the bandwidth.

    Args:
        results: of one run.
        path: of the PNG.

    Returns:
        Whether there was anything to draw.
    """
    growth, bandwidths = lines(results.records), shares(results.records)
    if not growth or not bandwidths:
        return False
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    for name, line in growth.items():
        at = dict(sorted(line.items()))
        width = 2.2 if name == GOSSAMER else 1.2
        left.plot(
            list(at), [s * 1e3 for s in at.values()], marker="o", ms=4, lw=width,
            color=COLOURS[name], label=name,
        )  # fmt: skip
    left.set(xscale="log", yscale="log", xlabel="groups", ylabel="milliseconds", title="WGSEF")
    left.grid(alpha=0.3)
    left.legend(frameon=False, fontsize=8)
    _bars(right, bandwidths)
    machine = results.machine
    figure.suptitle(f"{machine['cpu']}, {machine['isa']}, one thread", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def _bars(axis: Any, bandwidths: dict[str, dict[str, float]]) -> None:
    names = list(bandwidths)[::-1]
    for offset, who in ((0.2, GOSSAMER), (-0.2, EAGER)):
        values = [bandwidths[name].get(who, 0.0) for name in names]
        places = [i + offset for i in range(len(names))]
        axis.barh(places, values, height=0.38, color=COLOURS[who], label=who)
    axis.axvline(ENOUGH, color="k", ls="--", lw=1, label="bar of l1 and l0")
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel=f"share of the bandwidth of {SCALE}", title="operators of single entries")
    axis.grid(alpha=0.3, axis="x")
    axis.legend(frameon=False, fontsize=8)
