"""Table, sentences and picture of the recipes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from bench.harness.rows import made_on
from bench.harness.tables import Cell, Grid, Page, pyplot
from experiments.compare_recipes.training import DENSE, Stage

Row = Mapping[str, Any]
Ranking = dict[str, list[Row]]

LONGER = "equal parts"
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


def ranking(rows: Iterable[Row], sparsity: int) -> Ranking:
    """Trainings of one sparsity by recipe, dense among them, those of lowest loss first.

    Args:
        rows: of all trainings.
        sparsity: in percent.

    Returns:
        Recipe -> one row per seed; recipes without any finished training are left out.
    """
    found: Ranking = {}
    for row in rows:
        if row["sparsity"] in (0, sparsity) and "val_loss" in row:
            found.setdefault(_name(row), []).append(row)
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
    plan = header["plan"]
    seeds = 1 + max((row["seed"] for row in rows), default=0)
    lines = [
        made_on(header, "one thread per training"),
        f"GPT of width {plan['width']}, depth {plan['depth']}, byte level, "
        f"{plan['steps']} steps of {plan['batch'] * plan['context']} tokens "
        f"{'of the source of Python' if plan['data'] is None else ''}; every recipe sees the same "
        f"batches from the same dense weights; mean ± standard deviation over {seeds} seeds",
        "rate: the peak learning rate, of those offered the one of lowest loss in a short training "
        "with seed 0, for each recipe and density by itself",
        "validation loss: in nats a byte, of what the recipe leaves in the end; time: of the whole "
        "training beside dense, steps timed in turn on one thread over a whole schedule; state: "
        "parameters, gradients, moments, structure and the recipe's own tensors, at the last step",
        "flips: share of the mask that is another ten steps later, on average; density: entries of "
        "the linear layers that are not 0 in the finished model",
        f"{LONGER}: as many steps for each part between two times at which weights are set back",
    ]
    failed: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if "error" in row:
            part = "timing" if row["stage"] == Stage.TIME else f"seed {row['seed']}"
            who = f"{_name(row)} at {row['sparsity']} %"
            failed.setdefault((who, row["error"]), []).append(part)
    return lines + [
        f"FAILED: {who}, {', '.join(parts)}: {why}" for (who, why), parts in failed.items()
    ]


def sentences(rows: Sequence[Row]) -> list[str]:
    """Who wins and who loses at each sparsity.

    Example:
        >>> row = {"recipe": "a", "sparsity": 50, "seed": 0, "stage": "train", "val_loss": 2.0}
        >>> sentences([row])[1]
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
    """Draw each recipe's validation loss, by itself and against time and state.

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
    tall = 0.26 * max(len(found) for found in panels.values()) + 1.2
    figure, axes = plt.subplots(
        3, len(panels), figsize=(5.2 * len(panels) + 1, tall + 8), squeeze=False,
        layout="constrained", height_ratios=[tall, 4, 4],
    )  # fmt: skip
    for (top, *others), (sparsity, found) in zip(axes.T, panels.items(), strict=True):
        _draw_losses(top, found)
        top.set_title(f"{sparsity} % dropped")
        times = {name: time for name in found if (time := time_of(name, sparsity, rows))}
        _draw_against(others[0], found, times, "time of the training, of dense")
        _draw_against(others[1], found, _states(found), "training state, of dense")
    figure.suptitle(
        "above: mean and standard deviation over the seeds; blue: N:M, red: anywhere; black: dense",
        fontsize=9,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def _draw_losses(axis: Any, found: Ranking) -> None:
    for at, (_, own) in enumerate(found.items()):
        mean, deviation = loss_of(own)
        axis.errorbar(mean, -at, xerr=deviation, fmt="o", ms=4, color=_colour(own), capsize=2)
    axis.set_yticks([-at for at in range(len(found))], list(found), fontsize=8)
    axis.set_xlabel("validation loss (nats a byte)")
    axis.grid(alpha=0.3)


def _draw_against(axis: Any, found: Ranking, costs: Mapping[str, float], label: str) -> None:
    """A point a recipe; those that no other beats in loss and cost are named."""
    least = float("inf")
    for name, cost in sorted(costs.items(), key=lambda one: (one[1], loss_of(found[one[0]])[0])):
        loss = loss_of(found[name])[0]
        axis.plot(cost, loss, "o", ms=5, color=_colour(found[name]))
        if loss < least or name == DENSE:
            axis.annotate(
                name, (cost, loss), xytext=(3, -9), textcoords="offset points", fontsize=7
            )
        least = min(least, loss)
    axis.set(xlabel=label, ylabel="validation loss (nats a byte)")
    axis.grid(alpha=0.3)


def _colour(rows: Sequence[Row]) -> str:
    pattern = rows[0]["pattern"]
    if pattern == DENSE:
        return "black"
    return GROUPS_COLOUR if ":" in pattern else ANYWHERE_COLOUR


def _name(row: Row) -> str:
    return f"{row['recipe']}, {LONGER}" if row["stage"] == Stage.PARTS else str(row["recipe"])


def time_of(name: str, sparsity: int, rows: Sequence[Row]) -> float | None:
    """The time of a recipe's whole training, as a multiple of dense's; None if it is unknown."""
    if name == DENSE:
        return 1.0
    recipe = name.removesuffix(f", {LONGER}")
    own = [row for row in rows if (row["recipe"], row["sparsity"]) == (recipe, sparsity)]
    step = [row["step_seconds"] / row["dense_seconds"] for row in own if "step_seconds" in row]
    steps = {row["stage"]: row["steps"] for row in own}
    if not step or Stage.TRAIN not in steps:
        return None
    stage = Stage.TRAIN if recipe == name else Stage.PARTS
    return float(step[-1] * steps[stage] / steps[Stage.TRAIN])


def _states(found: Ranking) -> dict[str, float]:
    """Bytes of training state of each recipe, as a multiple of dense's if that was trained."""
    state = {name: fmean(row["state_bytes"] for row in own) for name, own in found.items()}
    return {name: size / state[DENSE] for name, size in state.items()} if DENSE in state else {}


def _sparsities(rows: Iterable[Row]) -> list[int]:
    return sorted({row["sparsity"] for row in rows} - {0})


def _table(sparsity: int, rows: Sequence[Row]) -> Grid:
    found = ranking(rows, sparsity)
    dense, states = found.get(DENSE), _states(found)
    lines = []
    for name, own in found.items():
        (mean, deviation), time = loss_of(own), time_of(name, sparsity, rows)
        state = fmean(row["state_bytes"] for row in own)
        texts = [
            name,
            own[0]["pattern"],
            f"{own[0]['lr']:g}",
            f"{mean:.4f} ± {deviation:.4f}",
            "–" if dense is None else f"{mean - loss_of(dense)[0]:+.4f}",
            "–" if time is None else f"{time:.2f}×",
            f"{state / 1e6:.2f} MB" + (f" ({states[name]:.2f}×)" if states else ""),
            f"{fmean(row['flips'] for row in own):.2%}",
            f"{fmean(row['density'] for row in own):.1%}",
        ]
        lines.append([Cell(text) for text in texts])
    failed = {_name(r) for r in rows if r["sparsity"] == sparsity and "error" in r} - set(found)
    lines += [[Cell(name), Cell("failed"), *[Cell("–")] * 7] for name in sorted(failed)]
    headings = [
        "recipe", "pattern", "rate", "validation loss", "to dense", "time, of dense",
        "training state", "flips", "density",
    ]  # fmt: skip
    return Grid(f"{sparsity} % dropped", headings, lines)
