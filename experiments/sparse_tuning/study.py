"""What a pruned model regains: full sparse tuning, SPP, and LoRA that is masked at the end.

A small GPT is pruned once by magnitude or Wanda and trained on for equally many steps. Each method
has the rate that is best on text to choose by; losses are those of other text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from rich.console import Console

from bench.harness.rows import Row, Work, carry_out, check_counts, header_of, made_on
from bench.harness.tables import Cell, Grid, Page
from experiments.sparse_tuning.training import FULL, RATES, Plan, Tuning, corpus_of, measure

SCHEMA = 1
NAME = "sparse-tuning"
PATTERNS = ("2:4", "75%")
SCORES = ("magnitude", "wanda")


def study(
    out: Path,
    plan: Plan | None = None,
    *,
    patterns: Sequence[str] = PATTERNS,
    scores: Sequence[str] = SCORES,
    seeds: int = 2,
    jobs: int = 1,
    overwrite: bool = False,
    console: Console | None = None,
) -> int:
    """Train everything that is missing; write the rows and the table.

    Args:
        out: folder of the results; what it holds of the same plan is kept.
        plan: what is trained.
        patterns: of the prunings.
        scores: of the prunings.
        seeds: dense models, from seed 0.
        jobs: trainings at the same time, each on one thread.
        overwrite: drop what the folder holds.
        console: where to print.

    Returns:
        0; 130 if interrupted, with all that was trained so far written.

    Raises:
        CheckpointError: the folder holds rows of other options, another text or version.
        ArgumentError: a number of seeds or jobs below 1.
    """
    plan, console = plan or Plan(), console or Console()
    check_counts(NAME, seeds=seeds, jobs=jobs)
    path = out / f"{NAME}.jsonl"
    grid = [
        Tuning(pattern, score, method, lr, seed)
        for seed in range(seeds)
        for pattern in patterns
        for score in scores
        for method, rates in RATES.items()
        for lr in rates
    ]
    header = header_of(SCHEMA, plan.row, text=corpus_of(plan).fingerprint)
    work = Work(partial(measure, plan), grid, jobs)
    return carry_out(
        path,
        header,
        [work],
        _key,
        _words,
        page,
        overwrite=overwrite,
        console=console,
    )


def page(rows: Sequence[Row], header: Row) -> Page:
    """Lay out the rows, each method with its best rate."""
    plan = header["plan"]
    rows = [row for row in rows if "error" not in row]
    lines = [
        made_on(header, "one thread"),
        f"GPT of width {plan['width']}, depth {plan['depth']}, byte level, trained densely for "
        f"{plan['steps']} steps of {plan['batch'] * plan['context']} tokens, pruned once, trained "
        f"on for {plan['tuning']} steps; the mean of {len({row['seed'] for row in rows})} seed(s)",
        "validation loss in nats per byte, of the sparse model that is left; the rate is the best "
        "of those tried on other text, for each line by itself",
        f"full: everything trains, kept entries, norms and embeddings; SPP: rank {plan['rank']}, "
        f"nothing else trains; LoRA: dense products of rank {plan['lora_rank']}, of which the "
        "kept entries are added at the end",
        "regained: of what full tuning regains of the loss that the pruning cost",
    ]
    table, summary = [], []
    for pattern, score in dict.fromkeys((row["pattern"], row["score"]) for row in rows):
        own = [row for row in rows if (row["pattern"], row["score"]) == (pattern, score)]
        found = {method: best(own, method) for method in RATES}
        full = found[FULL]
        for method, some in found.items():
            if not some or not full:
                continue
            after = fmean(row["val_loss"] for row in some)
            before = fmean(row["pruned"] for row in some)
            gained = (before - after) / (before - fmean(row["val_loss"] for row in full))
            table.append([
                Cell(pattern), Cell(score), Cell(method), Cell(f"{some[0]['lr']:g}"),
                Cell(f"{some[0]['trained']:,}"), Cell(f"{fmean(r['dense'] for r in some):.4f}"),
                Cell(f"{before:.4f}"), Cell(f"{after:.4f}"), Cell(f"{gained:.0%}"),
            ])  # fmt: skip
            if method != FULL:
                summary.append(f"{pattern}, {score}: {method} regains {gained:.0%}")
    headings = [
        "pattern", "score", "method", "rate", "trained", "dense", "pruned", "trained on", "regained"
    ]  # fmt: skip
    return Page([Grid("Tuning of a pruned model", headings, table)], lines, "\n".join(summary))


def best(rows: Sequence[Row], method: str) -> list[Row]:
    """Rows of a method with the rate of lowest mean loss on the text to choose by.

    Example:
        >>> rows = [{"method": "a", "lr": lr, "choice": abs(lr - 2)} for lr in (1, 2, 2)]
        >>> len(best(rows, "a"))
        2
    """
    by: dict[float, list[Row]] = {}
    for row in rows:
        if row["method"] == method:
            by.setdefault(row["lr"], []).append(row)
    return min(by.values(), key=lambda some: fmean(row["choice"] for row in some), default=[])


def _key(row: Row) -> tuple[str, str, str, float, int]:
    return row["pattern"], row["score"], row["method"], row["lr"], row["seed"]


def _words(row: Row) -> str:
    who = f"{row['pattern']} {row['score']} {row['method']} {row['lr']:g} seed {row['seed']}"
    return f"{who}: {row.get('error') or format(row['val_loss'], '.4f')}"
