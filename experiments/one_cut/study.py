"""What one cut without training costs models of AdamW and of CrAM+: a small GPT, twelve cuts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from torch import nn

from bench.harness.rows import Row, Work, carry_out, check_counts, header_of, made_on
from bench.harness.tables import Cell, Grid, Page
from experiments.one_cut.training import ADAMW, CUTS, FIELDS, PATTERNS, PLAN, Training, measure
from gossamer import parse_pattern, timing
from gossamer.optim.sharpness import CrAM
from gossamer.train import TrainConfig

SCHEMA = 1
NAME = "one-cut"
# The bar: CrAM+ loses less than this at 70 %, and AdamW at least so many times as much.
BAR, AT, TIMES = 0.02, "70%", 5
TIME = Training("time", -1)
TIMED = ("2:4:v4", "1:4:v4", "2:4")


def study(
    out: Path,
    plan: TrainConfig = PLAN,
    *,
    patterns: Mapping[str, Sequence[str]] = PATTERNS,
    seeds: int = 2,
    jobs: int = 1,
    times: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> int:
    """Train everything that is missing; write the rows and the tables.

    Args:
        out: folder of the results; what it holds of the same plan is kept.
        plan: what all trainings share.
        patterns: what each method draws its pruned passes from; its keys are trained.
        seeds: trainings of each, from seed 0.
        jobs: trainings at the same time, each on one thread.
        times: also measure the time of a step; nothing else should run.
        overwrite: drop what the folder holds.
        console: where to print; standard output by default.

    Returns:
        0; 130 if interrupted, with all that was trained so far written.

    Raises:
        CheckpointError: the folder holds rows of other options.
        ArgumentError: a number of seeds or jobs below 1.
    """
    console = console or Console()
    check_counts(NAME, seeds=seeds, jobs=jobs)
    path = out / f"{NAME}.jsonl"
    header = header_of(SCHEMA, {name: getattr(plan, name) for name in FIELDS})
    grid = [Training(method, seed) for seed in range(seeds) for method in patterns]
    works = [Work(partial(measure, plan), grid, jobs)]
    if times:
        works.append(Work(time_steps, [TIME]))
    return carry_out(
        path,
        header,
        works,
        _key,
        _words,
        page,
        overwrite=overwrite,
        console=console,
    )


def time_steps(training: Training, width: int = 768, rounds: int = 15) -> Row:
    """Time steps of AdamW with CrAM, each with one pattern, beside plain ones, in turn.

    Args:
        training: only names the row.
        width: of a network of two layers, width to 4 width and back, on batches of 512.
        rounds: measured steps of each.

    Returns:
        `step`: medians in seconds by pattern, "" for AdamW alone.
    """
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
    x = torch.randn(512, width)

    def stepper(patterns: Sequence[str]) -> Callable[[], object]:
        model = copy.deepcopy(network)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        CrAM(patterns).attach(model, optimizer)

        def closure() -> float:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return float(loss.item())

        return partial(optimizer.step, closure)

    calls = {pattern: stepper([pattern] if pattern else []) for pattern in ("", *TIMED)}
    with timing.threads(1):
        found = timing.interleaved(calls, rounds)
    return training.row | {"step": {name: one.median for name, one in found.items()}}


def page(rows: Sequence[Row], header: Row) -> Page:
    """Lay out the rows: what each cut adds to the loss of the model that is cut."""
    plan = header["plan"]
    timed = [row for row in rows if "step" in row]
    rows = [row for row in rows if "step" not in row]
    seeds = sorted({row["seed"] for row in rows})
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [
        made_on(header, "one thread per training"),
        f"GPT of width {plan['width']}, depth {plan['depth']}, byte level, {plan['steps']} steps "
        f"of {plan['batch'] * plan['context']} tokens of the source of Python, learning rate "
        f"{plan['lr']:g}; mean over {len(seeds)} seeds",
        "dense: the validation loss in nats per byte of the model as it was trained; all else: "
        "what `sparsify` by magnitude, without training after it, adds to that of the same model",
        "a pass of CrAM+ is pruned to a pattern that is drawn from " + "; ".join(
            f"{', '.join(PATTERNS[m])} ({m})" for m in methods if PATTERNS[m]
        ) + "; a step has two passes, so that a rival has twice the steps",
    ]  # fmt: skip
    grids = []
    for title, cuts in (("Each row by itself", CUTS[:6]), ("Four rows together", CUTS[6:])):
        table = []
        for method in methods:
            own = [row for row in rows if row["method"] == method]
            cells = [Cell(method), Cell(f"{fmean(row['dense'] for row in own):.4f}")]
            cells += [Cell(f"{lost(own, cut):+.4f}") for cut in cuts]
            table.append(cells)
        grids.append(Grid(title, ["trained by", "dense", *cuts], table))
    return Page(grids, lines, "\n".join([f"{len(rows)} trainings", *verdict(rows), *_steps(timed)]))


def lost(rows: Sequence[Row], cut: str) -> float:
    """Return what a cut adds to the loss in nats, on average."""
    return fmean(row["cut"][cut] - row["dense"] for row in rows)


def verdict(rows: Sequence[Row]) -> list[str]:
    """Say whether CrAM+ meets its bar, in a line for each kind of draws."""
    by = {who: [row for row in rows if row["method"] == who] for who in PATTERNS}
    said = []
    for who, vector in (("CrAM+ %", ""), ("CrAM+ %, v4", ":v4")):
        if by[who] and by[ADAMW]:
            own, plain = (lost(by[name], AT + vector) for name in (who, ADAMW))
            met = own < BAR and plain >= TIMES * own
            said.append(
                f"{AT}{vector}: {who} loses {own:.4f} nats, {ADAMW} {plain:.4f}; the bar (less "
                f"than {BAR}, and {TIMES} times less than {ADAMW}) is {'met' if met else 'missed'}"
            )
    return said


def _steps(timed: Sequence[Row]) -> list[str]:
    """Compare the time of a step with 1.1 (1 + density) plain ones."""
    said = []
    for row in timed:
        plain = row["step"][""]
        for pattern in TIMED:
            ratio, bar = row["step"][pattern] / plain, 1.1 * (1 + parse_pattern(pattern).density)
            said.append(
                f"a step of CrAM+ at {pattern} (two layers 768×3072, 512 rows, in turn) takes "
                f"{ratio:.2f} of a plain one's {1e3 * plain:.0f} ms; the bar of {bar:.2f} is "
                f"{'met' if ratio <= bar else 'missed'}"
            )
    return said


def _key(row: Row) -> tuple[str, int]:
    return row["method"], row["seed"]


def _words(row: Row) -> str:
    if "step" in row:
        return f"times of a step: {row['step']}"
    cost = row["cut"][AT] - row["dense"]
    return f"{row['method']} seed {row['seed']}: {row['dense']:.4f}, {AT} {cost:+.4f}"
