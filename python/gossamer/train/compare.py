"""Train several models in one process, step by step in turn, and measure them against each other.

All runs see the same batches and start from the same dense weights. In each round every run takes
one step, in an order that changes from round to round, and each has a clock that counts its own
steps alone: whatever else the machine does falls on all of them alike.
"""

import signal
import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from gossamer.errors import CheckpointError, GossamerError
from gossamer.timing import rotation, threads
from gossamer.train.checkpoint import (
    load_checkpoint,
    restore,
    save_checkpoint,
    write_atomically,
)
from gossamer.train.data import Corpus, Windows, load_corpus, spread
from gossamer.train.loop import DENSE, Run, TrainConfig
from gossamer.train.metrics import MetricsFile, busiest, read_metrics
from gossamer.train.plot import plot
from gossamer.train.recipes import follow_groups
from gossamer.train.report import Reporter, Summary, summary_table

CHECKPOINT, METRICS, PICTURE = "checkpoint.safetensors", "metrics.jsonl", "loss.png"
VALIDATION_TOKENS = 16_384
# A resumed run may differ in these: they do not change what is computed.
FREE_ON_RESUME = ("threads", "checkpoint_every")


@dataclass(frozen=True)
class Result:
    """Outcome of a training.

    Args:
        summaries: one a run; empty before the first step.
        step: steps done.
        interrupted: a signal ended it early; its checkpoint resumes.
        out: folder of checkpoint, metrics and picture.
    """

    summaries: list[Summary]
    step: int
    interrupted: bool
    out: Path


def train(
    config: TrainConfig,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> Result:
    """Train the runs of a config side by side.

    SIGINT and SIGTERM finish the steps in progress, write a checkpoint and return.

    Args:
        config: what to train. To resume, ``resumed_config`` gives the one in the checkpoint.
        out: folder for checkpoint, metrics and picture; created if missing.
        resume: continue from the checkpoint in ``out``; the outcome is bit-equal to that of a
            training that was never interrupted, for the same number of threads.
        overwrite: replace the training that ``out`` holds.
        console: where to print; standard output by default.

    Returns:
        The outcome.

    Raises:
        DataError: there is no usable text.
        CheckpointError: ``out`` holds another training, or its checkpoint cannot be resumed.
        GossamerError: a pattern or size does not fit, ``out`` cannot be written, or a loss is not
            finite.
    """
    console = console or Console()
    out = Path(out)
    if not (resume or overwrite) and (out / CHECKPOINT).exists():
        raise CheckpointError(
            f"{out} holds the checkpoint of another training; continue it with --resume, replace "
            "it with --overwrite, or choose another --out"
        )
    corpus = load_corpus(config.data, config.level, config.context)  # type: ignore[arg-type]
    with threads(config.threads), _stop_on_signals() as stop:
        runs = [Run(name, config, corpus.vocabulary) for name in config.runs]
        first = _resume(out / CHECKPOINT, config, corpus, runs) if resume else 0
        try:
            out.mkdir(parents=True, exist_ok=True)
            if not resume:
                (out / CHECKPOINT).unlink(missing_ok=True)
            metrics = MetricsFile(out / METRICS, keep_until=first)
        except OSError as error:
            raise GossamerError(
                f"--out {out} cannot be written: {error.strerror}; choose another folder"
            ) from error
        console.print(
            f"{corpus.name}: {len(corpus.train):,} {config.level}s to train on, "
            f"{len(corpus.validation):,} to validate on; {config.tokens_per_step:,} a step",
            highlight=False,
            soft_wrap=True,
        )
        with metrics, Reporter(console, config.steps, first) as reporter:
            step = _loop(config, corpus, runs, first, stop, metrics, reporter, out)
    rows = read_metrics(out / METRICS)
    summaries = _summarise(config, runs, rows)
    if rows:
        title = f"GPT, width {config.width}, depth {config.depth}, on {corpus.name}"
        write_atomically(out / PICTURE, lambda temporary: plot(rows, temporary, title))
        console.print(summary_table(summaries))
        console.print(
            f"{out / METRICS}   {out / PICTURE}   {out / CHECKPOINT}",
            highlight=False,
            soft_wrap=True,
        )
    return Result(summaries, step, step < config.steps, out)


def resumed_config(out: str | Path, **wanted: Any) -> TrainConfig:
    """Read the config of a training that is to be resumed.

    Args:
        out: its folder.
        wanted: options asked for; those that change how it runs are taken over, those that
            change what it computes must be as they were.

    Returns:
        The config.

    Raises:
        CheckpointError: there is no valid checkpoint, or a wanted option differs from its own.
    """
    path = Path(out) / CHECKPOINT
    stored = _stored(path, load_checkpoint(path))
    asked = replace(stored, **wanted)
    for name in wanted:
        then, now = getattr(stored, name), getattr(asked, name)
        if name not in FREE_ON_RESUME and then != now:
            raise CheckpointError(
                f"{path} was trained with {name}={then!r}, asked is {now!r}; "
                "leave the option out to resume, or start anew with another --out"
            )
    return asked


def _stored(path: Path, state: dict[str, Any]) -> TrainConfig:
    names = {field.name for field in fields(TrainConfig)}
    # An older version knew fewer options; what it did is what their defaults do.
    if not isinstance(state.get("config"), dict) or not set(state["config"]) <= names:
        raise CheckpointError(
            f"{path} has no training options that this version knows; resume with the version "
            "that wrote it"
        )
    return TrainConfig(**state["config"])


def _loop(
    config: TrainConfig,
    corpus: Corpus,
    runs: list[Run],
    first: int,
    stop: threading.Event,
    metrics: MetricsFile,
    reporter: Reporter,
    out: Path,
) -> int:
    windows = Windows(corpus.train, config.context, config.batch, config.seed)
    held_out = spread(corpus.validation, config.context, VALIDATION_TOKENS // config.context)
    by_name = {run.name: run for run in runs}
    saved = first
    for step in range(first + 1, config.steps + 1):
        if stop.is_set():
            break
        batch = windows.batch(step - 1)
        lrs = {run.name: run.lr for run in runs}
        evaluated = step % config.eval_every == 0 or step == config.steps
        turns = rotation(config.runs, step - 1)
        losses = {name: _take(by_name[name], batch, evaluated) for name in turns}
        losses = {name: losses[name] for name in config.runs}
        reporter.step(step, losses)
        val_losses: dict[str, float] = {}
        if evaluated:
            val_losses = {run.name: run.evaluate(*held_out) for run in runs}
            reporter.evaluated(step, val_losses)
        for run in runs:
            metrics.append(_row(run, step, losses, val_losses, lrs))
        if config.checkpoint_every and step % config.checkpoint_every == 0:
            _save(out / CHECKPOINT, config, corpus, runs, step, metrics)
            saved = step
    else:
        step = config.steps + 1
    done = step - 1
    if done > saved or not done:
        _save(out / CHECKPOINT, config, corpus, runs, done, metrics)
    return done


def _take(run: Run, batch: tuple[Tensor, Tensor], watched: bool) -> float:
    """One step; a watched one also compares the gradients of a recipe's layers with exact ones."""
    if run.masks is None or not watched:
        return run.step(*batch)
    with run.masks.watch():
        return run.step(*batch)


def _row(
    run: Run,
    step: int,
    losses: dict[str, float],
    val_losses: dict[str, float],
    lrs: dict[str, float],
) -> dict[str, Any]:
    row = {
        "run": run.name,
        "step": step,
        "loss": losses[run.name],
        "val_loss": val_losses.get(run.name),
        "seconds": run.seconds,
        "tokens_per_second": run.config.tokens_per_step / run.step_seconds[-1],
        "lr": lrs[run.name],
    }
    if run.expert_load:
        row["expert_load"] = run.expert_load
        row["val_expert_load"] = run.val_expert_load if run.name in val_losses else None
    if run.name in val_losses and (kept := run.kept) is not None:
        row |= asdict(kept)
    if run.name in val_losses and run.masks is not None:
        row["masks"] = run.masks.measure()
    return row


def _save(
    path: Path,
    config: TrainConfig,
    corpus: Corpus,
    runs: list[Run],
    step: int,
    metrics: MetricsFile,
) -> None:
    # Rows first: a checkpoint must never be ahead of its metrics.
    metrics.sync()
    state = {
        "config": asdict(config),
        "corpus": corpus.fingerprint,
        "step": step,
        "rng": torch.get_rng_state(),
        "runs": {run.name: run.state() for run in runs},
    }
    save_checkpoint(path, state)


def _resume(path: Path, config: TrainConfig, corpus: Corpus, runs: list[Run]) -> int:
    state = load_checkpoint(path)
    stored = _stored(path, state)
    same = {name: getattr(config, name) for name in FREE_ON_RESUME}
    if replace(stored, **same) != config:
        raise CheckpointError(
            f"{path} was trained with other options ({stored}); resume with those, or start anew "
            "with another --out"
        )
    if state["corpus"] != corpus.fingerprint:
        raise CheckpointError(
            f"{path} was trained on another text than {corpus.name} is now; "
            "restore the text, or start anew with another --out"
        )
    _restore_runs(runs, state["runs"], path)
    for run in runs:
        seconds: Tensor = state["runs"][run.name]["step_seconds"]
        run.step_seconds, run.seconds = seconds.tolist(), float(seconds.sum())
    torch.set_rng_state(state["rng"])
    return int(state["step"])


def _restore_runs(runs: list[Run], saved: dict[str, Any], path: Path) -> None:
    """Load what runs saved, recipes first: they may give a model new layers and groups.

    The runs were made for this; when one part does not fit, nobody trains them any further.
    """
    for run in runs:
        if set(saved.get(run.name, {})) != {*run.parts, "step_seconds"}:
            raise CheckpointError(
                f"{path} holds {sorted(saved.get(run.name, {}))} of the run {run.name}, needed are "
                f"{sorted(run.parts)}; resume with the options of the run that wrote it"
            )
    led = [run for run in runs if run.recipe is not None]
    for run in led:
        restore({run.name: run.recipe}, {run.name: saved[run.name]["recipe"]}, path)
    targets, states = {}, {}
    for run in runs:
        follow_groups(run.scheduler)
        for part, target in run.parts.items():
            if part not in ("recipe", "masks"):
                targets[f"{run.name} {part}"] = target
                states[f"{run.name} {part}"] = saved[run.name][part]
    for run in led:
        targets[f"{run.name} masks"] = run.masks
        states[f"{run.name} masks"] = saved[run.name]["masks"]
    restore(targets, states, path, moving={f"{run.name} model" for run in led})


def _summarise(config: TrainConfig, runs: list[Run], rows: list[dict[str, Any]]) -> list[Summary]:
    if not rows:
        return []
    medians = {run.name: statistics.median(run.step_seconds) for run in runs}
    evaluated = [row for row in rows if row["val_loss"] is not None]
    val_losses = {row["run"]: row["val_loss"] for row in evaluated}
    loads = {row["run"]: row["val_expert_load"] for row in evaluated if "expert_load" in row}
    return [
        Summary(
            run=run.name,
            step_seconds=medians[run.name],
            tokens_per_second=config.tokens_per_step / medians[run.name],
            val_loss=val_losses.get(run.name),
            state_bytes=run.state_bytes,
            density=run.density,
            speedup=medians[DENSE] / medians[run.name] if DENSE in medians else None,
            busiest=busiest(loads[run.name]) if run.name in loads else None,
            kept=run.kept,
        )
        for run in runs
    ]


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into an event; a second one ends the process as usual."""
    stop = threading.Event()
    before: dict[signal.Signals, Any] = {}

    def restore_handlers() -> None:
        while before:
            signal.signal(*before.popitem())

    def request(number: int, frame: FrameType | None) -> None:
        stop.set()
        restore_handlers()

    # Python lets only the main thread handle signals.
    if threading.current_thread() is threading.main_thread():
        for name in (signal.SIGINT, signal.SIGTERM):
            before[name] = signal.signal(name, request)
    try:
        yield stop
    finally:
        restore_handlers()
