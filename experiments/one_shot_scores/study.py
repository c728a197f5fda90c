"""Scores for cuts at once: a trained GPT without training after."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from rich.console import Console

from bench.harness.rows import Row, Work, carry_out, check_counts, header_of, made_on
from bench.harness.tables import Cell, Grid, Page
from experiments.one_shot_scores.cuts import FIELDS, PLAN, SCORES, Cut, corpus_of, measure
from gossamer.train import TrainConfig

SCHEMA = 1
NAME = "one-shot-scores"
PATTERNS = ("50%", "60%", "70%", "2:4", "2:4:v4")


def study(
    out: Path,
    plan: TrainConfig = PLAN,
    *,
    patterns: Sequence[str] = PATTERNS,
    seeds: int = 2,
    overwrite: bool = False,
    console: Console | None = None,
) -> int:
    """Cut by every score and pattern that is missing; write the rows and the table.

    Args:
        out: folder of the results; what it holds of the same plan is kept.
        plan: what is trained.
        patterns: of the cuts.
        seeds: dense models, from seed 0.
        overwrite: drop what the folder holds.
        console: where to print; standard output by default.

    Returns:
        0; 130 if interrupted, with all that was done so far written.

    Raises:
        CheckpointError: the folder holds rows of other options, another text or version.
        ArgumentError: a number of seeds below 1.
    """
    console = console or Console()
    check_counts(NAME, seeds=seeds)
    shared = {name: getattr(plan, name) for name in FIELDS}
    path = out / f"{NAME}.jsonl"
    header = header_of(SCHEMA, shared, text=corpus_of(plan).fingerprint)
    cuts = [Cut(s, pattern, seed) for seed in range(seeds) for s in SCORES for pattern in patterns]
    return carry_out(
        path,
        header,
        [Work(partial(measure, plan), cuts)],
        _key,
        _words,
        page,
        overwrite=overwrite,
        console=console,
    )


def page(rows: Sequence[Row], header: Row) -> Page:
    """Lay out the rows: a line per score, a column per pattern."""
    plan = header["plan"]
    seeds = len({row["seed"] for row in rows})
    dense = {row["seed"]: row["dense_loss"] for row in rows}
    lines = [
        made_on(header, "one thread"),
        f"GPT of width {plan['width']}, depth {plan['depth']}, byte level, trained densely for "
        f"{plan['steps']} steps of {plan['batch'] * plan['context']} tokens, cut once, not trained "
        "after; scores from 128 windows of the text that was trained on",
        f"validation loss in nats per byte, the mean of {seeds} dense models, whose own is "
        f"{fmean(dense.values()) if dense else 0:.4f}; in brackets what was lost, of what "
        "magnitude loses",
        "scores rank the entries of a layer, unless they say by row; drawn: at random, with the "
        "scores as odds",
    ]
    patterns = list(dict.fromkeys(row["pattern"] for row in rows))
    losses = {
        (row["score"], row["pattern"]): fmean(
            r["loss"] for r in rows if (r["score"], r["pattern"]) == (row["score"], row["pattern"])
        )
        for row in rows
    }
    base = fmean(dense.values()) if dense else 0.0
    table = []
    for score in dict.fromkeys(row["score"] for row in rows):
        cells = []
        for pattern in patterns:
            loss, most = (losses.get((who, pattern)) for who in (score, "magnitude"))
            part = "" if loss is None or most is None else f" ({_ratio(loss - base, most - base)})"
            cells.append(Cell("–" if loss is None else f"{loss:.4f}{part}"))
        table.append([Cell(score), *cells])
    return Page([Grid("Loss after the cut", ["score", *patterns], table)], lines, _summary(losses))


def _summary(losses: dict[tuple[str, str], float]) -> str:
    found = []
    for pattern in dict.fromkeys(pattern for _, pattern in losses):
        own = {score: loss for (score, p), loss in losses.items() if p == pattern}
        best = min(own, key=lambda score: own[score])
        found.append(f"{pattern}: best is {best} ({own[best]:.4f})")
    return "\n".join(["Who loses least", *found])


def _ratio(lost: float, most: float) -> str:
    return f"{lost / most:.2f}×" if most > 0 else "–"


def _key(row: Row) -> tuple[str, str, int]:
    return row["score"], row["pattern"], row["seed"]


def _words(row: Row) -> str:
    return (
        f"{row['score']} {row['pattern']} seed {row['seed']}: {row['dense_loss']:.4f} -> "
        f"{row['loss']:.4f}"
    )
