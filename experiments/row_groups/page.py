"""Table, sentences and picture of the grouped rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.harness.rows import made_on
from bench.harness.tables import Cell, Grid, Page, pyplot

Row = Mapping[str, Any]
MEASURES = {
    "kept": "share of the magnitude that is kept",
    "pruned_loss": "loss right after the pruning",
    "val_loss": "loss after training on",
}


def page(rows: Sequence[Row], header: Row) -> Page:
    """Lay out the rows.

    Args:
        rows: of all prunings.
        header: of the file of rows.

    Returns:
        The page.
    """
    plan = header["plan"]
    rows = [row for row in rows if "error" not in row]
    seeds = len({row["seed"] for row in rows})
    dense = [row["dense_loss"] for row in rows]
    lines = [
        made_on(header, "one thread"),
        f"GPT of width {plan['width']}, depth {plan['depth']}, byte level, trained densely for "
        f"{plan['steps']} steps of {plan['batch'] * plan['context']} tokens "
        f"{'of the source of Python' if plan['data'] is None else ''} "
        f"(loss {fmean(dense) if dense else 0:.4f}), pruned by magnitude, trained on for "
        f"{plan['tuning']} steps",
        f"validation loss in nats per byte, the mean of {seeds} dense models",
        "grouped: hidden neurons in both layers of a network, the other layers with gathered "
        "outputs; the lists of V rows are chosen after the grouping",
    ]
    tables = [_table(rows, name, what) for name, what in MEASURES.items()]
    return Page([table for table in tables if table.rows], lines, "\n".join(sentences(rows)))


def means(rows: Iterable[Row], name: str) -> dict[tuple[str, int, bool], float]:
    """Means over seeds by pattern, vector and whether rows were grouped."""
    found: dict[tuple[str, int, bool], list[float]] = {}
    for row in rows:
        if "error" not in row:
            found.setdefault((row["pattern"], row["vector"], row["grouped"]), []).append(row[name])
    return {key: fmean(values) for key, values in found.items()}


def sentences(rows: Sequence[Row]) -> list[str]:
    """What grouping gains at each vector.

    Example:
        >>> one = {"pattern": "2:4", "vector": 8, "seed": 0, "pruned_loss": 3.0}
        >>> rows = [{**one, "grouped": False, "kept": 0.6, "val_loss": 2.5}]
        >>> rows += [{**one, "grouped": True, "kept": 0.7, "val_loss": 2.4}]
        >>> sentences(rows)[0]
        '2:4, V = 8: kept 0.600 -> 0.700, loss after training on 2.5000 -> 2.4000'
    """
    kept, loss = means(rows, "kept"), means(rows, "val_loss")
    return [
        f"{pattern}, V = {vector}: kept {kept[pattern, vector, False]:.3f} -> {kept[key]:.3f}, "
        f"loss after training on {loss[pattern, vector, False]:.4f} -> {loss[key]:.4f}"
        for key in sorted(kept)
        for pattern, vector, grouped in [key]
        if grouped and (pattern, vector, False) in kept
    ]


def plot(rows: Sequence[Row], path: Path) -> bool:
    """Draw each measure against V, with and without grouping.

    Args:
        rows: of all prunings.
        path: of the PNG.

    Returns:
        Whether there was anything to draw.
    """
    if not any("error" not in row for row in rows):
        return False
    plt = pyplot()
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(11, 3.4), layout="constrained")
    for axis, (name, what) in zip(axes, MEASURES.items(), strict=True):
        found = means(rows, name)
        for i, pattern in enumerate(sorted({key[0] for key in found})):
            for grouped in (False, True):
                points = sorted(
                    (vector, value)
                    for (p, vector, g), value in found.items()
                    if p == pattern and (g == grouped or vector == 1)
                )
                style = "-" if grouped else ":"
                label = f"{pattern} {'grouped' if grouped else 'as it is'}"
                axis.plot(*zip(*points, strict=True), style, marker="o", color=f"C{i}", label=label)
        axis.set(xscale="log", xlabel="V", title=what)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def _table(rows: Sequence[Row], name: str, what: str) -> Grid:
    found = means(rows, name)
    vectors = sorted({vector for _, vector, _ in found})
    lines = []
    for pattern in sorted({key[0] for key in found}):
        for grouped in (False, True):
            own = [found.get((pattern, vector, grouped)) for vector in vectors]
            if any(value is not None for value in own):
                label = f"{pattern}, {'grouped' if grouped else 'as it is'}"
                lines.append([Cell(label), *(Cell("–" if v is None else f"{v:.4f}") for v in own)])
    return Grid(what.capitalize(), ["pattern", *(f"V = {vector}" for vector in vectors)], lines)
