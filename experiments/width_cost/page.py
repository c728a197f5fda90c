"""Table, sentences and picture of what wide patterns cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.harness.rows import made_on
from bench.harness.tables import Cell, Grid, Page, pyplot
from gossamer import Block, parse_pattern

Row = Mapping[str, Any]
Kind = tuple[str, int]  # recipe, sparsity in percent
Tile = tuple[bool, int]  # whether a block, and its rows

COLOURS = {"static": "#2a6f97", "srste": "#b56576"}
NAMES = {"static": "static", "srste": "SR-STE"}


def page(rows: Sequence[Row], header: Row) -> Page:
    """Lay out the rows.

    Args:
        rows: of all trainings.
        header: of the file of rows.

    Returns:
        The page.
    """
    plan = header["plan"]
    text = " of the source of Python" if plan["data"] is None else ""
    rates = {kind: chosen[0]["lr"] for kind, chosen in by_kind(rows).items()}
    lines = [
        made_on(header, "one thread per training"),
        f"residual network of {plan['depth']} blocks of two {plan['width']} x {plan['width']} "
        f"matrices that predicts a byte from the last eight, {plan['steps']} steps of "
        f"{plan['batch'] * plan['context']} bytes{text}; every pattern sees the same batches from "
        "the same dense weights",
        "validation loss in nats per byte, one number per seed; static: random masks; SR-STE: "
        "masks that follow a dense weight",
        "dead: share of the input columns that no row of a matrix keeps; moved: share of the kept "
        "entries that the first mask had not",
        "peak learning rates, chosen at V = 4 on seed 0 and multiplied by density^-"
        f"{plan['scale_lr']:g} in the sparse layers: "
        + ", ".join(f"{who} {s} % {rate:g}" for (who, s), rate in sorted(rates.items())),
    ]
    tables = [_table(sparsity, rows) for sparsity in sorted({s for _, s in by_kind(rows)} - {0})]
    return Page(tables, lines, "\n".join(sentences(rows)))


def kind_of(row: Row) -> Kind:
    """The recipe and the sparsity of a row."""
    if row["pattern"] == "dense":
        return "dense", 0
    return row["recipe"], round(100 * parse_pattern(row["pattern"]).sparsity)


def tile_of(row: Row) -> Tile:
    """Whether a row's pattern is a block, and how many rows share their columns.

    Example:
        >>> tile_of({"pattern": "2:4:v16"}), tile_of({"pattern": "block 32x32 50%"})
        ((False, 16), (True, 32))
    """
    pattern = parse_pattern(row["pattern"])
    return isinstance(pattern, Block), pattern.tile[0]


def by_kind(rows: Iterable[Row]) -> dict[Kind, list[Row]]:
    """Finished rows by recipe and sparsity, at the learning rate that was chosen for them.

    It is that of most patterns: the others were trained at one pattern only.
    """
    found: dict[Kind, list[Row]] = {}
    for row in rows:
        if "val_loss" in row:
            found.setdefault(kind_of(row), []).append(row)
    chosen = {}
    for kind, own in found.items():
        first = [row for row in own if row["seed"] == 0]
        patterns: dict[float, set[str]] = {}
        for row in first:
            patterns.setdefault(row["lr"], set()).add(row["pattern"])
        best = min(first, key=lambda row: (-len(patterns[row["lr"]]), row["val_loss"]))
        chosen[kind] = [row for row in own if row["lr"] == best["lr"]]
    return chosen


def costs(rows: Iterable[Row]) -> dict[Kind, dict[Tile, list[float]]]:
    """By recipe and sparsity, and by tile: losses above V = 1, of the seeds that have both."""
    found: dict[Kind, dict[Tile, list[float]]] = {}
    for kind, own in by_kind(rows).items():
        if kind[1]:
            base = {row["seed"]: row["val_loss"] for row in own if tile_of(row) == (False, 1)}
            for row in own:
                if row["seed"] in base:
                    above = row["val_loss"] - base[row["seed"]]
                    found.setdefault(kind, {}).setdefault(tile_of(row), []).append(above)
    return found


def sentences(rows: Sequence[Row]) -> list[str]:
    """What each width costs over V = 1.

    Example:
        >>> one = {"recipe": "static", "lr": 1e-3, "seed": 0}
        >>> rows = [{**one, "pattern": "1:4", "val_loss": 2.0}]
        >>> sentences([*rows, {**one, "pattern": "1:4:v32", "val_loss": 2.1}])[1]
        'static 75 %: V = 32 +0.1000'
    """
    told = ["Validation loss above that of V = 1 under the same recipe, mean of the seeds"]
    for (recipe, sparsity), tiles in sorted(costs(rows).items()):
        parts = [
            f"{'block' if block else 'V ='} {size} {fmean(above):+.4f}"
            for (block, size), above in sorted(tiles.items())
            if (block, size) != (False, 1)
        ]
        if parts:
            told.append(f"{NAMES[recipe]} {sparsity} %: {', '.join(parts)}")
    return told


def plot(rows: Sequence[Row], path: Path) -> bool:
    """Draw the loss above that of V = 1 against the rows of a tile, a panel per sparsity.

    Args:
        rows: of all trainings.
        path: of the PNG.

    Returns:
        Whether there was anything to draw.
    """
    found = costs(rows)
    sparsities = sorted({s for _, s in found})
    if not sparsities:
        return False
    plt = pyplot()
    figure, axes = plt.subplots(
        1, len(sparsities), figsize=(4.6 * len(sparsities), 3.6), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, sparsity in zip(axes[0], sparsities, strict=True):
        for recipe, colour in COLOURS.items():
            tiles = found.get((recipe, sparsity), {})
            for block, style in ((False, "o-"), (True, "s--")):
                own = sorted((size, above) for (b, size), above in tiles.items() if b == block)
                if not own:
                    continue
                means = [fmean(above) for _, above in own]
                label = f"{NAMES[recipe]}, {'blocks' if block else 'shared columns'}"
                axis.plot([s for s, _ in own], means, style, color=colour, label=label, ms=4)
                for size, above in own:
                    axis.plot([size] * len(above), above, ".", color=colour, ms=3, alpha=0.5)
        axis.axhline(0.0, color="k", lw=0.8)
        axis.set_xscale("log", base=2)
        axis.set_xticks([1, 4, 8, 16, 32, 64, 128], ["1", "4", "8", "16", "32", "64", "128"])
        axis.set(title=f"{sparsity} % dropped", xlabel="rows of a tile")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("validation loss above V = 1\n(nats per byte)")
    axes[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def _table(sparsity: int, rows: Sequence[Row]) -> Grid:
    chosen = by_kind(rows)
    tiles = sorted({tile_of(r) for kind, own in chosen.items() if kind[1] == sparsity for r in own})
    dense = chosen.get(("dense", 0), [])
    lines = [[Cell("dense"), *[Cell(_losses(dense))] * 2, *[Cell("–")] * 3]]
    for tile in tiles:
        cells = [Cell(f"block {tile[1]}" if tile[0] else f"V = {tile[1]}")]
        own = {
            who: [r for r in chosen.get((who, sparsity), []) if tile_of(r) == tile] for who in NAMES
        }
        cells += [Cell(_losses(own[who])) for who in NAMES]
        cells += [Cell(_share(own[who], "dead_columns")) for who in NAMES]
        lines.append([*cells, Cell(_share(own["srste"], "moved"))])
    headings = ["tile", *NAMES.values(), "dead, static", "dead, SR-STE", "moved, SR-STE"]
    return Grid(f"{sparsity} % dropped", headings, lines)


def _losses(rows: Sequence[Row]) -> str:
    return " / ".join(f"{r['val_loss']:.4f}" for r in sorted(rows, key=lambda r: r["seed"])) or "–"


def _share(rows: Sequence[Row], name: str) -> str:
    return f"{fmean(row[name] for row in rows):.0%}" if rows else "–"
