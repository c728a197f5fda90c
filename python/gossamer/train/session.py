"""Trains one or several runs in one process, step by step in turn, and compares them.

All runs use the same batches and start from the same dense weights. In each round every run takes
one step, in an order that changes from round to round; runs with fewer steps pause in some rounds,
evenly spread. Each run has a clock of its own steps, so other load on the machine affects all runs
alike.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from gossamer.arguments import check
from gossamer.errors import CheckpointError, DataError, GossamerError
from gossamer.io.files import write_atomically
from gossamer.timing import rotation, threads
from gossamer.train import ranks
from gossamer.train.checkpoint import CHECKPOINT, save_checkpoint
from gossamer.train.config import TrainConfig
from gossamer.train.data import Windows, load_corpus, spaced_windows
from gossamer.train.folder import held, sweep, written_by_trainings
from gossamer.train.metrics import (
    METRICS,
    MetricsFile,
    NoMetrics,
    Row,
    busiest,
    read_metrics,
    rows_until,
)
from gossamer.train.output import Output
from gossamer.train.plan import planned
from gossamer.train.plot import PICTURE, plot
from gossamer.train.report import Reporter, Summary, summary_table
from gossamer.train.resume import restore_training, training_state
from gossamer.train.run import Run
from gossamer.train.size import check_memory, check_threads
from gossamer.train.spec import DENSE
from gossamer.train.stopping import stop_on_signals

VALIDATION_TOKENS = 16_384


@dataclass(frozen=True)
class Result:
    """Outcome of a training.

    Args:
        summaries: one summary per run; empty before the first step.
        step: number of finished steps, those of the run with the most.
        steps: the same when the training is complete.
        interrupted: whether a signal ended the training early; it can then be resumed.
        out: folder of checkpoint, metrics and picture.
        output_error: why the output could not be written; None if it could.
    """

    summaries: list[Summary]
    step: int
    steps: int
    interrupted: bool
    out: Path
    output_error: str | None = None


def train(
    config: TrainConfig,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> Result:
    """Train the runs of a configuration side by side.

    After SIGINT or SIGTERM, the steps in progress finish, a checkpoint is written, and the call
    returns.

    Args:
        config: configuration; to resume, use the result of `resumed_config`.
        out: folder for checkpoint, metrics and picture; created if missing.
        resume: whether to continue from the checkpoint in `out`; with the same number of threads,
            the outcome is bit-equal to that of an uninterrupted training.
        overwrite: whether to replace the training in `out`.
        console: console for the output; None is standard output.

    Returns:
        The outcome.

    Raises:
        DataError: there is no usable text.
        CheckpointError: `out` holds another training, or its checkpoint cannot be resumed.
        GossamerError: a pattern or size does not fit, `out` cannot be written, or a loss is not
            finite.
    """
    check(train, locals())
    with ranks.connected():
        return _train(config, Path(out), resume, overwrite, console)


def _train(
    config: TrainConfig, out: Path, resume: bool, overwrite: bool, console: Console | None
) -> Result:
    output = Output(console if ranks.is_first() else Console(quiet=True))
    check_threads(config.threads)
    ranks.check_batch(config.batch)

    def check_free() -> None:
        if not (resume or overwrite) and (out / CHECKPOINT).exists():
            raise CheckpointError(
                f"{out} holds the checkpoint of another training; continue it with --resume, "
                "replace it with --overwrite, or choose another --out"
            )

    with ExitStack() as stack:
        ranks.from_first(lambda: stack.enter_context(held(out)))
        stack.enter_context(threads(config.threads))
        stop = stack.enter_context(stop_on_signals())
        ranks.from_first(check_free)
        session = Session(config, out)
        if resume:
            session.resume()
        with session.open_metrics() as metrics:
            output.say(session.description)
            with Reporter(output, session.config.rounds, session.done) as reporter:
                session.run(stop, metrics, reporter)
        # The work is done and saved: nothing below may lose it.
        summaries = _present(session, output)
    steps = session.config.rounds
    return Result(summaries, session.done, steps, session.done < steps, out, output.error)


def _present(session: Session, output: Output) -> list[Summary]:
    """Draw the picture and print the table; what fails is said in a line."""
    out = session.out
    if not ranks.is_first():
        return []
    try:
        rows = read_metrics(out / METRICS)
        summaries = session.summaries(rows)
    except (GossamerError, KeyError, TypeError, ValueError) as error:
        output.say(f"warning: there is no table and no picture: {error}")
        return []
    if not rows:
        return []
    files = [out / METRICS, out / CHECKPOINT]
    try:
        write_atomically(out / PICTURE, lambda temporary: plot(rows, temporary, session.title))
        files.insert(1, out / PICTURE)
    except Exception as error:  # whatever matplotlib makes of fonts, settings and disks
        output.say(f"warning: the picture {out / PICTURE} was not written: {error}")
    output.say(summary_table(summaries))
    output.say("   ".join(map(str, files)))
    return summaries


class Session:
    """The runs of one training, with their text and folder.

    Args:
        config: configuration of the training.
        out: folder for checkpoint and metrics.

    Raises:
        DataError: there is no usable text.
        GossamerError: a pattern or size does not fit.
    """

    def __init__(self, config: TrainConfig, out: Path) -> None:
        self.out = out
        own = written_by_trainings(config.data, out)
        self.corpus = load_corpus(config.data, config.level, config.context, own)
        fingerprint = self.corpus.fingerprint
        if ranks.any_rank(ranks.from_first(lambda: fingerprint) != fingerprint):
            raise DataError(
                f"the processes read different texts from {self.corpus.name}; give all machines "
                "the same --data"
            )
        if config.equal_seconds and config.run_steps is None:
            measured = planned(config, self.corpus)
            config = ranks.from_first(lambda: measured)
        self.config = config
        check_memory(config, self.corpus.vocabulary)
        self.runs = [Run(name, config, self.corpus.vocabulary) for name in config.runs]
        self.done = self.saved = 0  # finished rounds, and those in the checkpoint
        self._rows: list[Row] = []  # of the finished steps of a training that continues

    @property
    def title(self) -> str:
        """Title of the picture."""
        return f"GPT, width {self.config.width}, depth {self.config.depth}, on {self.corpus.name}"

    @property
    def description(self) -> str:
        """One line on the text and the size of a step."""
        corpus, level = self.corpus, self.config.level
        return (
            f"{corpus.name}: {len(corpus.train):,} {level}s to train on, "
            f"{len(corpus.validation):,} to validate on; {self.config.tokens_per_step:,} per step"
            + self._plan
        )

    @property
    def _plan(self) -> str:
        if self.config.run_steps is None:
            return ""
        steps = zip(self.config.runs, self.config.run_steps, strict=True)
        return "; steps: " + ", ".join(f"{name} {count}" for name, count in steps)

    def resume(self) -> None:
        """Continue from the checkpoint in the folder.

        Raises:
            CheckpointError: there is no checkpoint, or it belongs to another training.
        """
        path = self.out / CHECKPOINT
        self.done, unwritten = restore_training(path, self.config, self.corpus, self.runs)
        self.saved = self.done
        if self.done:
            turns = self.config.turns(self.done)
            self._rows = ranks.from_first(lambda: rows_until(self.out / METRICS, turns, unwritten))

    def open_metrics(self) -> MetricsFile:
        """Open the metrics file, and delete the files of an earlier training in the folder.

        Raises:
            GossamerError: the folder cannot be written.
        """
        if not ranks.is_first():
            return NoMetrics()
        try:
            sweep(self.out)
            if not self.done:
                (self.out / CHECKPOINT).unlink(missing_ok=True)
            return MetricsFile(self.out / METRICS, self._rows)
        except OSError as error:
            raise GossamerError(
                f"--out {self.out} cannot be written: {error.strerror}; choose another folder"
            ) from error

    def run(self, stop: threading.Event, metrics: MetricsFile, reporter: Reporter) -> None:
        """Take the remaining steps; write metrics and checkpoints.

        Args:
            stop: event that ends the training after the step in progress.
            metrics: file for the metrics.
            reporter: display of the progress.

        Raises:
            GossamerError: a loss is not finite, or a file cannot be written; then a checkpoint
                holds the steps so far, unless it cannot be written either.
        """
        config = self.config
        windows = Windows(self.corpus.train, config.context, config.batch, config.seed)
        count = VALIDATION_TOKENS // config.context
        held_out = spaced_windows(self.corpus.validation, config.context, count)
        losses: dict[str, float] = {}
        while self.done < config.rounds and not ranks.any_rank(stop.is_set()):
            step = self.done + 1
            due = [run for run in self.runs if run.name in config.due(self.done)]
            lrs = {run.name: run.lr for run in due}
            evaluated = {run.name for run in due if self._is_evaluated(run)}
            losses |= self._take_turns(due, windows, evaluated)
            reporter.step(step, losses)
            val_losses = {run.name: run.evaluate(*held_out) for run in due if run.name in evaluated}
            if val_losses:
                reporter.evaluated(step, val_losses)
            self.done = step
            with self._rescued(metrics):
                metrics.append([_row(run, losses, val_losses, lrs) for run in due])
                if evaluated:
                    metrics.sync()
            if config.checkpoint_every and step % config.checkpoint_every == 0:
                self._save(metrics)
        if self.done > self.saved or not self.done:
            self._save(metrics)

    @contextmanager
    def _rescued(self, metrics: MetricsFile) -> Iterator[None]:
        """Save the training when its metrics cannot be written."""
        try:
            yield
        except OSError as error:
            what = f"metrics {metrics.path} cannot be written: {error.strerror}"
            try:
                self._save_state(metrics.unsafe)
            except GossamerError as second:
                last = f"step {self.saved}" if self.saved else "none"
                raise GossamerError(f"{what}; {second}; the last checkpoint: {last}") from error
            raise GossamerError(
                f"{what}; a checkpoint holds all {self.done} steps: free space, then continue with "
                "--resume"
            ) from error

    def _is_evaluated(self, run: Run) -> bool:
        step = len(run.step_seconds) + 1
        return step % self.config.eval_every == 0 or step == run.steps

    def _take_turns(
        self, due: list[Run], windows: Windows, watched: Collection[str]
    ) -> dict[str, float]:
        """Take one step of each run; return the losses in the order of the configuration."""
        by_name = {run.name: run for run in due}
        batches = {step: windows.batch(step) for step in {len(run.step_seconds) for run in due}}
        losses = {}
        for name in rotation(tuple(by_name), self.done):
            run = by_name[name]
            losses[name] = _take(run, batches[len(run.step_seconds)], name in watched)
        return {run.name: losses[run.name] for run in due}

    def _save(self, metrics: MetricsFile) -> None:
        with self._rescued(metrics):
            metrics.sync()  # rows first: a checkpoint must not be ahead of its metrics
        self._save_state()

    def _save_state(self, unwritten: Sequence[Row] = ()) -> None:
        if ranks.is_first():
            state = training_state(self.config, self.corpus, self.runs, self.done, unwritten)
            save_checkpoint(self.out / CHECKPOINT, state)
        self.saved = self.done

    def summaries(self, rows: list[Row]) -> list[Summary]:
        """Summarise each run.

        Args:
            rows: all metrics of the training.

        Returns:
            One summary per run; none before the first step.
        """
        if not rows:
            return []
        medians = {run.name: statistics.median(run.step_seconds) for run in self.runs}
        evaluated = [row for row in rows if row["val_loss"] is not None]
        val_losses = {row["run"]: row["val_loss"] for row in evaluated}
        loads = {row["run"]: row["val_expert_load"] for row in evaluated if "expert_load" in row}
        return [
            Summary(
                run=run.name,
                step_seconds=medians[run.name],
                tokens_per_second=self.config.tokens_per_step / medians[run.name],
                val_loss=val_losses.get(run.name),
                state_bytes=run.state_bytes,
                density=run.density,
                speedup=medians[DENSE] / medians[run.name] if DENSE in medians else None,
                busiest=busiest(loads[run.name]) if run.name in loads else None,
                kept=run.kept,
                live_share=None if run.activations is None else run.activations.live_share,
                steps=len(run.step_seconds),
                seconds=run.seconds,
            )
            for run in self.runs
        ]


def _take(run: Run, batch: tuple[Tensor, Tensor], watched: bool) -> float:
    """Take one step; if watched, compare the gradients of a recipe's layers with exact ones."""
    if run.masks is None or not watched:
        return run.step(*batch)
    with run.masks.watch():
        return run.step(*batch)


def _row(
    run: Run,
    losses: Mapping[str, float],
    val_losses: Mapping[str, float],
    lrs: Mapping[str, float],
) -> Row:
    row: dict[str, Any] = {
        "run": run.name,
        "step": len(run.step_seconds),
        "loss": losses[run.name],
        "val_loss": val_losses.get(run.name),
        "seconds": run.seconds,
        "tokens_per_second": run.config.tokens_per_step / run.step_seconds[-1],
        "lr": lrs[run.name],
    }
    if run.expert_load:
        row["expert_load"] = run.expert_load
        row["val_expert_load"] = run.val_expert_load if run.name in val_losses else None
    if run.activations is not None:
        row["live"] = list(run.activations.live_shares.values())
        row["strength"] = run.activations.strength_now
    if run.name in val_losses and (kept := run.kept) is not None:
        row |= asdict(kept)
    if run.name in val_losses and run.masks is not None:
        row["masks"] = run.masks.measure()
    return row
