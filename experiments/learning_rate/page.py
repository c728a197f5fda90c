"""Table, sentences and picture of the exponents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

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
    plan, versions = header["plan"], header["versions"]
    seeds = 1 + max((row["seed"] for row in rows), default=0)
    lines = [
        f"{header['cpu']}, one thread per training; "
        + ", ".join(f"{who} {number}" for who, number in versions.items()),
        f"GPT of width {plan['width']}, depth {plan['depth']}, byte level, "
        f"{plan['steps']} steps of {plan['batch'] * plan['context']} tokens "
        f"{'of the source of Python' if plan['data'] is None else ''}; random masks that never "
        "move; the variance of initial values is the dense one's over the density",
        "validation loss in nats per byte, the mean of as many seeds as in brackets where not all "
        f"{seeds} are there; bold: the lowest of its density",
        "rate: the peak learning rate of everything else; sparse weights learn at rate * "
        "density^-exponent",
    ]
    return Page([_table(rows, seeds)], lines, "\n".join(sentences(rows)))


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


def _table(rows: Sequence[Row], seeds: int) -> Grid:
    found = means(rows)
    rates = sorted({rate for _, _, rate in found})
    exponents = sorted({e for _, e, _ in found})
    columns = [(exponent, rate) for exponent in exponents for rate in rates]
    lines = []
    for sparsity in sorted({s for s, _, _ in found}):
        own = {key[1:]: losses for key, losses in found.items() if key[0] == sparsity}
        lowest = min(map(fmean, own.values()))
        texts = []
        for column in columns:
            losses = own.get(column)
            text = "–"
            if losses:
                mean = fmean(losses)
                text = "diverged" if mean == DIVERGED else f"{mean:.4f}"
                text = f"**{text}**" if mean == lowest else text
                text += "" if len(losses) == seeds else f" ({len(losses)})"
            texts.append(text)
        lines.append([Cell(f"{100 - sparsity} %" if sparsity else "dense"), *map(Cell, texts)])
    headings = ["density", *[f"e = {e:g}, rate {rate:g}" for e, rate in columns]]
    return Grid("Validation loss by exponent e and rate", headings, lines)
