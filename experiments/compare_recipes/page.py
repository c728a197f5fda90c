"""Table, sentences and picture of the recipes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from bench.harness.tables import Cell, Grid, Page, pyplot
from experiments.compare_recipes.training import DENSE

Row = Mapping[str, Any]
Ranking = dict[str, list[Row]]

GROUPS_COLOUR, ANYWHERE_COLOUR = "#2a6f97", "#b56576"


def page(rows: Sequence[Row], header: Row) -> Page:
    """Lay out the rows.

    Args:
        rows: of all trainings; of one training the last row counts.
        header: of the file of rows.

    Returns:
        The page.
    """
    tables = [_table(sparsity, rows) for sparsity in _sparsities(rows)]
    return Page(tables, describe(rows, header), "\n".join(sentences(rows)))


def ranking(rows: Iterable[Row], sparsity: int, scale_lr: float = 0.0) -> Ranking:
    """Trainings of one sparsity by recipe, dense among them, those of lowest loss first.

    Args:
        rows: of all trainings.
        sparsity: in percent.
        scale_lr: exponent of the density in the learning rate of their sparse layers.

    Returns:
        Recipe -> one row per seed; recipes without any finished training are left out.
    """
    found: Ranking = {}
    for row in rows:
        wanted = row["sparsity"] in (0, sparsity) and row.get("scale_lr", 0.0) == scale_lr
        if wanted and "val_loss" in row:
            found.setdefault(row["recipe"], []).append(row)
    return dict(sorted(found.items(), key=lambda item: loss_of(item[1])[0]))


def loss_of(rows: Sequence[Row]) -> tuple[float, float]:
    """Mean over the seeds, and sample standard deviation (0 of one seed).

    Example:
        >>> loss_of([{"val_loss": 2.0}, {"val_loss": 4.0}])
        (3.0, 1.4142135623730951)
    """
    values = [float(row["val_loss"]) for row in rows]
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def describe(rows: Sequence[Row], header: Row) -> list[str]:
    """Say how the numbers came about, and who failed."""
    plan, versions = header["plan"], header["versions"]
    seeds = 1 + max((row["seed"] for row in rows), default=0)
    lines = [
        f"{header['cpu']}, one thread per training; "
        + ", ".join(f"{who} {number}" for who, number in versions.items()),
        f"GPT of width {plan['width']}, depth {plan['depth']}, byte level, "
        f"{plan['steps']} steps of {plan['batch'] * plan['context']} tokens "
        f"{'of the source of Python' if plan['data'] is None else ''}; every recipe sees the same "
        f"batches from the same dense weights; mean ± standard deviation over {seeds} seeds",
        "validation loss: in nats a byte, of what the recipe leaves in the end; step: of its own "
        "beside a dense one, in turn, on one thread, over a whole schedule; state: parameters, "
        "gradients, moments, structure and the recipe's own tensors, at the last step",
        "scale_lr e: the same, with a learning rate of the sparse layers of lr * density^-e",
        "flips: share of the mask that is another ten steps later, on average; density: entries of "
        "the linear layers that are not 0 in the finished model",
    ]
    failed: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if "error" in row:
            part = "timing" if "timing" in row else f"seed {row['seed']}"
            who = f"{row['recipe']} at {row['sparsity']} %"
            if row.get("scale_lr"):
                who += f", scale_lr {row['scale_lr']:g}"
            failed.setdefault((who, row["error"]), []).append(part)
    return lines + [
        f"FAILED: {who}, {', '.join(parts)}: {why}" for (who, why), parts in failed.items()
    ]


def sentences(rows: Sequence[Row]) -> list[str]:
    """Who wins and who loses at each sparsity.

    Example:
        >>> sentences([{"recipe": "a", "sparsity": 50, "seed": 0, "val_loss": 2.0}])[1]
        '50 %: best is a (2.0000); last is a (+0.0000)'
    """
    found = ["Who is within one standard deviation of the best is not told apart from it"]
    for sparsity in _sparsities(rows):
        losses = {who: loss_of(own) for who, own in ranking(rows, sparsity).items()}
        dense = losses.pop(DENSE, None)
        if not losses:
            continue
        best, (top, deviation) = next(iter(losses.items()))
        level = [
            f"{who} ({mean - top:+.4f})"
            for who, (mean, own) in losses.items()
            if who != best and mean - top <= max(deviation, own)
        ]
        last = list(losses)[-1]
        line = f"{sparsity} %: best is {best} ({top:.4f})"
        if dense is not None:
            line += f", dense has {dense[0]:.4f}"
        if level:
            line += f"; within one standard deviation: {', '.join(level)}"
        found.append(line + f"; last is {last} ({losses[last][0] - top:+.4f})")
    return found


def plot(rows: Sequence[Row], path: Path) -> bool:
    """Draw each recipe's validation loss, a panel per sparsity.

    Args:
        rows: of all trainings.
        path: of the PNG.

    Returns:
        Whether there was anything to draw.
    """
    panels = {s: c for s in _sparsities(rows) if set(c := ranking(rows, s)) - {DENSE}}
    if not panels:
        return False
    plt = pyplot()
    most = max(len(found) for found in panels.values())
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels) + 1, 0.26 * most + 1.8), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, (sparsity, found) in zip(axes[0], panels.items(), strict=True):
        dense = found.pop(DENSE, None)
        if dense is not None:
            axis.axvline(loss_of(dense)[0], color="k", ls="--", lw=1)
        for at, (_, own) in enumerate(found.items()):
            mean, deviation = loss_of(own)
            colour = GROUPS_COLOUR if ":" in own[0]["pattern"] else ANYWHERE_COLOUR
            axis.errorbar(mean, -at, xerr=deviation, fmt="o", ms=4, color=colour, capsize=2)
        axis.set_yticks([-at for at in range(len(found))], list(found), fontsize=8)
        axis.set(title=f"{sparsity} % dropped", xlabel="validation loss (nats a byte)")
        axis.grid(alpha=0.3)
    figure.suptitle(
        "mean and standard deviation over the seeds; blue: N:M, red: anywhere; dashed: dense",
        fontsize=9,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def _sparsities(rows: Iterable[Row]) -> list[int]:
    return sorted({row["sparsity"] for row in rows} - {0})


def _table(sparsity: int, rows: Sequence[Row]) -> Grid:
    found = ranking(rows, sparsity)
    at = {
        (row["recipe"], row["sparsity"]): row["step_seconds"] / row["dense_seconds"]
        for row in rows
        if "step_seconds" in row
    }
    dense = found.get(DENSE)
    dense_bytes = dense[0]["state_bytes"] if dense else None
    exponents = sorted({row["scale_lr"] for row in rows if row.get("scale_lr")})
    scaled = [ranking(rows, sparsity, exponent) for exponent in exponents]
    lines = []
    for recipe, own in found.items():
        mean, state = loss_of(own)[0], fmean(row["state_bytes"] for row in own)
        step = 1.0 if recipe == DENSE else at.get((recipe, sparsity))
        texts = [
            recipe,
            own[0]["pattern"],
            _mean_and_deviation(own),
            *[_mean_and_deviation(other.get(recipe)) for other in scaled],
            "–" if dense is None else f"{mean - loss_of(dense)[0]:+.4f}",
            "–" if step is None else f"{step:.2f}×",
            f"{state / 1e6:.2f} MB" + (f" ({state / dense_bytes:.2f}×)" if dense_bytes else ""),
            f"{fmean(row['flips'] for row in own):.2%}",
            f"{fmean(row['density'] for row in own):.1%}",
        ]
        lines.append([Cell(text) for text in texts])
    failed = {
        r["recipe"]
        for r in rows
        if r["sparsity"] == sparsity and "error" in r and not r.get("scale_lr")
    }
    lines += [
        [Cell(recipe), Cell("failed"), *[Cell("–")] * (6 + len(exponents))]
        for recipe in sorted(failed - set(found))
    ]
    headings = [
        "recipe", "pattern", "validation loss", *[f"scale_lr {e:g}" for e in exponents],
        "to dense", "step, of dense", "training state", "flips", "density",
    ]  # fmt: skip
    return Grid(f"{sparsity} % dropped", headings, lines)


def _mean_and_deviation(rows: Sequence[Row] | None) -> str:
    if not rows:
        return "–"
    mean, deviation = loss_of(rows)
    return f"{mean:.4f} ± {deviation:.4f}"
