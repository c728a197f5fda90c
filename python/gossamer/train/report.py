"""The terminal output of a training: progress, and the final table."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType

from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from gossamer.train.output import Output
from gossamer.train.penalty import Kept


@dataclass(frozen=True)
class Summary:
    """The numbers of one run.

    Args:
        run: name of the run, as `RunSpec` reads it.
        step_seconds: median time per step, in seconds.
        tokens_per_second: tokens per second at the median time.
        val_loss: final validation loss, in nats; None if it was not measured.
        state_bytes: bytes of weights, structure, gradients and optimizer moments.
        density: parameters over the dense model's parameters.
        speedup: dense step time over this run's, in the same training; None without a dense run.
        busiest: share of the busiest expert in the validation tokens, over an even share; None
            without experts.
        kept: counts of the kept penalised weights; None without a penalty.
        live_share: running share of live activations in training; None where all are computed.
        steps: number of finished steps.
        seconds: time of all steps, in seconds.
    """

    run: str
    step_seconds: float
    tokens_per_second: float
    val_loss: float | None
    state_bytes: int
    density: float
    speedup: float | None
    busiest: float | None = None
    kept: Kept | None = None
    live_share: float | None = None
    steps: int = 0
    seconds: float = 0.0


def summary_table(summaries: Sequence[Summary]) -> Table:
    """Lay out the numbers of several runs; step times are medians.

    Args:
        summaries: one summary per run.

    Returns:
        A table for rich.
    """
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("run", style="bold", no_wrap=True)
    for heading in (
        "step (ms)", "tokens/s", "val. loss", "state (MB)", "of dense", "density", "speed-up",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    routed = any(s.busiest is not None for s in summaries)
    if routed:
        table.add_column("busiest", justify="right")
    penalised = any(s.kept is not None for s in summaries)
    if penalised:
        table.add_column("groups kept", justify="right")
    live = any(s.live_share is not None for s in summaries)
    if live:
        table.add_column("live", justify="right")
    timed = len({s.steps for s in summaries}) > 1
    if timed:
        table.add_column("steps", justify="right")
        table.add_column("seconds", justify="right")
    dense_bytes = next((s.state_bytes for s in summaries if s.run == "dense"), None)
    for s in summaries:
        table.add_row(
            Text(s.run),
            f"{s.step_seconds * 1e3:.1f}",
            f"{s.tokens_per_second:,.0f}",
            "–" if s.val_loss is None else f"{s.val_loss:.4f}",
            f"{s.state_bytes / 1e6:.1f}",
            f"{s.state_bytes / dense_bytes:.2f}×" if dense_bytes else "–",
            f"{s.density:.1%}",
            "–" if s.speedup is None else f"{s.speedup:.2f}×",
            *(["–" if s.busiest is None else f"{s.busiest:.2f}×"] if routed else []),
            *([_groups(s.kept)] if penalised else []),
            *(["–" if s.live_share is None else f"{s.live_share:.1%}"] if live else []),
            *([f"{s.steps:,}", f"{s.seconds:.0f}"] if timed else []),
        )
    return table


def _groups(kept: Kept | None) -> str:
    return "–" if kept is None else f"{kept.kept_groups:,}/{kept.groups:,}"


class Reporter(AbstractContextManager["Reporter"]):
    """Show the progress of a training: a bar on a terminal, occasional lines elsewhere.

    Args:
        output: where it is shown.
        steps: number of steps of the training.
        first: number of steps finished before.
    """

    def __init__(self, output: Output, steps: int, first: int = 0) -> None:
        self.output, self.steps = output, steps
        self._progress = Progress(
            TextColumn("[bold]step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.description}", markup=False),
            console=output.console,
            disable=not output.console.is_terminal,
        )
        self._task = self._progress.add_task("", total=steps, completed=first)

    def step(self, step: int, losses: Mapping[str, float]) -> None:
        """Show a finished step and the train loss of each run."""
        text = "  ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
        self._progress.update(self._task, completed=step, description=text)

    def evaluated(self, step: int, val_losses: Mapping[str, float]) -> None:
        """Print the validation loss of each run."""
        text = "   ".join(f"{name} {loss:.4f}" for name, loss in val_losses.items())
        self.output.say(f"step {step}/{self.steps}   validation loss: {text}")

    def __enter__(self) -> "Reporter":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
