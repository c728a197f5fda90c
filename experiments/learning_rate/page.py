"""Table, sentences and picture of the exponents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.harness.rows import made_on
from bench.harness.tables import Cell, Grid, Page, pyplot

Row = Mapping[str, Any]

DIVERGED = float("inf")


def page(rows: Sequence[Row], header: Row) -> Page:
    """Lay out the rows.

    Args:
        rows: of all trainings.
        header: of the file of rows.

    Returns:
        The page.
    """
    plan = header["plan"]
    seeds = 1 + max((row["seed"] for row in rows), default=0)
    lines = [
        made_on(header, "one thread per training"),
        f"GPT of width {plan['width']}, depth {plan['depth']}, byte level, "
        f"{plan['steps']} steps of {plan['batch'] * plan['context']} tokens "
        f"{'of the source of Python' if plan['data'] is None else ''}; random masks that never "
        "move; the variance of initial values is the dense one's over the density",
        f"validation loss in nats per byte, {_seeds(seeds)}; bold: the lowest of its row",
        "rate: the peak learning rate of everything else; sparse weights learn at rate * "
        "density^-exponent",
    ]
    tables = [_by_density(rows, seeds), _by_variance(rows, seeds)]
    return Page([table for table in tables if table.rows], lines, "\n".join(sentences(rows)))


def means(rows: Iterable[Row]) -> dict[tuple[int, float, float], list[float]]:
    """Losses of all seeds by sparsity, exponent and rate; infinite where a training diverged."""
    found: dict[tuple[int, float, float], list[float]] = {}
    for row in rows:
        if row["init"] == 1.0 and "error" not in row:
            key = row["sparsity"], row["exponent"], row["lr"]
            found.setdefault(key, []).append(row.get("val_loss", DIVERGED))
    return found


def sentences(rows: Sequence[Row]) -> list[str]:
    """What the best rate of the dense network gives at each density, by exponent.

    Example:
        >>> one = {"init": 1.0, "seed": 0, "lr": 1e-3}
        >>> rows = [{**one, "sparsity": 0, "exponent": 0.0, "val_loss": 2.0}]
        >>> rows += [{**one, "sparsity": 90, "exponent": 1.0, "val_loss": 2.1}]
        >>> sentences(rows)[1]
        '90 % dropped: exponent 1 has 2.1000 at the rate of dense, and 2.1000 at its best, 0.001'
    """
    found = means(rows)
    dense = {rate: fmean(losses) for (s, _, rate), losses in found.items() if s == 0}
    if not dense:
        return ["Nothing was trained"]
    best = min(dense, key=dense.__getitem__)
    told = [f"Dense is best at the rate {best:g} ({dense[best]:.4f})"]
    for sparsity in sorted({s for s, _, _ in found} - {0}):
        parts = []
        for exponent in sorted({e for s, e, _ in found if s == sparsity}):
            own = {
                rate: fmean(losses)
                for (s, e, rate), losses in found.items()
                if (s, e) == (sparsity, exponent)
            }
            top = min(own, key=own.__getitem__)
            there = f"{own[best]:.4f}" if best in own else "nothing"
            parts.append(
                f"exponent {exponent:g} has {there} at the rate of dense, and {own[top]:.4f} at "
                f"its best, {top:g}"
            )
        told.append(f"{sparsity} % dropped: {'; '.join(parts)}")
    return told


def plot(rows: Sequence[Row], path: Path) -> bool:
    """Draw loss against rate, a panel per exponent and a line per density.

    Args:
        rows: of all trainings.
        path: of the PNG.

    Returns:
        Whether there was anything to draw.
    """
    found = means(rows)
    exponents = sorted({e for s, e, _ in found if s})
    if not exponents:
        return False
    plt = pyplot()
    sparsities = sorted({s for s, _, _ in found})
    colours = plt.get_cmap("viridis")(
        [i / max(len(sparsities) - 1, 1) for i in range(len(sparsities))]
    )
    figure, axes = plt.subplots(
        1, len(exponents), figsize=(3.4 * len(exponents) + 1, 3.6), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, exponent in zip(axes[0], exponents, strict=True):
        for sparsity, colour in zip(sparsities, colours, strict=True):
            points = sorted(
                (rate, fmean(losses))
                for (s, e, rate), losses in found.items()
                if s == sparsity and (e == exponent or not s) and DIVERGED not in losses
            )
            if points:
                style: dict[str, Any] = {"color": colour, "label": f"{100 - sparsity} %"}
                if not sparsity:
                    style = {"color": "k", "ls": "--", "label": "dense"}
                axis.plot(*zip(*points, strict=True), marker="o", ms=4, **style)
        axis.set(xscale="log", title=f"exponent {exponent:g}", xlabel="rate")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("validation loss (nats per byte)")
    axes[0][-1].legend(title="density", fontsize=8)
    figure.suptitle("sparse weights learn at rate * density^-exponent", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def _seeds(count: int) -> str:
    if count == 1:
        return "one seed"
    return f"the mean of {count} seeds, or of as many as in brackets"


def _by_density(rows: Sequence[Row], seeds: int) -> Grid:
    found = means(rows)
    columns = sorted({(exponent, rate) for _, exponent, rate in found})
    lines = []
    for sparsity in sorted({s for s, _, _ in found}):
        own = {key[1:]: losses for key, losses in found.items() if key[0] == sparsity}
        name = f"{100 - sparsity} %" if sparsity else "dense"
        lines.append([Cell(name), *_cells([own.get(column) for column in columns], seeds)])
    headings = ["density", *[f"e = {e:g}, rate {rate:g}" for e, rate in columns]]
    return Grid("Validation loss by exponent e and rate", headings, lines)


def _by_variance(rows: Sequence[Row], seeds: int) -> Grid:
    """Initial values of other variances; they were trained at one density and exponent."""
    other = [row for row in rows if row["init"] != 1.0]
    kinds = {(row["sparsity"], row["exponent"]) for row in other}
    beside = [row for row in rows if (row["sparsity"], row["exponent"]) in kinds]
    rates = sorted({row["lr"] for row in beside})
    lines = []
    for init in sorted({row["init"] for row in beside}):
        at: list[list[float] | None] = [
            [r.get("val_loss", DIVERGED) for r in beside if (r["init"], r["lr"]) == (init, rate)]
            for rate in rates
        ]
        lines.append([Cell(f"{init:g}"), *_cells(at, seeds)])
    where = ", ".join(f"{100 - sparsity} %, e = {e:g}" for sparsity, e in sorted(kinds))
    title = f"At {where}: the variance of initial values is the dense one's * density^-i"
    return Grid(title, ["i", *[f"rate {rate:g}" for rate in rates]], lines)


def _cells(found: Sequence[list[float] | None], seeds: int) -> list[Cell]:
    averages = [fmean(losses) if losses else None for losses in found]
    lowest = min((a for a in averages if a is not None), default=None)
    cells = []
    for losses, average in zip(found, averages, strict=True):
        text = "–"
        if losses and average is not None:
            text = "diverged" if average == DIVERGED else f"{average:.4f}"
            text = f"**{text}**" if average == lowest else text
            text += "" if len(losses) == seeds else f" ({len(losses)})"
        cells.append(Cell(text))
    return cells
