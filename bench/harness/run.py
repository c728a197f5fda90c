"""Runs the jobs of a topic, keeps their records in one file, and publishes what it holds."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import threadpoolctl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import gossamer
from bench.harness import machine
from bench.harness.contest import WrongResultError
from bench.harness.plan import Job, Plan
from bench.harness.results import Results
from bench.harness.tables import Page, Pictures, publish
from gossamer import ArgumentError, CheckpointError, timing

WRONG, INTERRUPTED = 1, 130


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Args:
        out: folder of results; None for ``bench/results``, or ``runs/bench-quick`` if quick.
        quick: as little as shows that everything works.
        threads: numbers of threads; empty for those of the plan that the machine has.
        isa: instruction set to force; None for the best.
        only: groups of jobs to run; empty for all.
        resume: keep what the folder holds, measure what is missing.
    """

    out: Path | None = None
    quick: bool = False
    threads: tuple[int, ...] = ()
    isa: str | None = None
    only: tuple[str, ...] = ()
    resume: bool = False

    @property
    def folder(self) -> Path:
        """Where results go."""
        usual = Path("runs", "bench-quick") if self.quick else Path("bench", "results")
        return self.out or usual


@dataclass(frozen=True)
class Topic:
    """Jobs whose records stand in one file.

    Args:
        name: of the topic.
        groups: of its jobs.
        builders: of the jobs.
        full: the whole plan.
        quick: the plan that shows that everything works.
        page: tables and lines of the results.
        pictures: draws beside the results' file.
        suffix: of the file's name.
        rivals: distributions whose versions matter.
        warm_up: called before the first job, for libraries that bring an OpenMP pool.
    """

    name: str
    groups: tuple[str, ...]
    builders: tuple[Callable[[Plan[Any]], Iterator[Job]], ...]
    full: Plan[Any]
    quick: Plan[Any]
    page: Callable[[Results], Page]
    pictures: Pictures
    suffix: str
    rivals: tuple[str, ...]
    warm_up: Callable[[], object] = field(default=lambda: None)


def run_topic(topic: Topic, options: Options, console: Console) -> int:
    """Measure, print the tables, write JSON, Markdown and pictures.

    Args:
        topic: what to measure.
        options: of the command line.
        console: where to print.

    Returns:
        0; 1 if an entrant computed a wrong result; 130 if interrupted, with all that was measured
        so far written.

    Raises:
        GossamerError: an option does not fit this machine, or the results to resume do not.
    """
    plan = topic.quick if options.quick else topic.full
    plan = replace(plan, threads=usable_threads(options.threads, plan.threads))
    with forced_isa(options.isa):
        results = _results(topic, options)
        stopped = _measure(topic, plan, options.only or topic.groups, results, console)
        markdown = publish(topic.page(results), results.path, console)
        written = [results.path, markdown, *topic.pictures(results)]
    console.print("   ".join(map(str, written)), highlight=False)
    if stopped:
        console.print("stopped; --resume measures what is missing", highlight=False)
        return INTERRUPTED
    return WRONG if results.errors else 0


def usable_threads(wanted: Sequence[int], planned: Sequence[int]) -> tuple[int, ...]:
    """Numbers of threads that this machine can run.

    Args:
        wanted: by the user; empty for what is planned.
        planned: those beyond the machine's cores are left out.

    Returns:
        Numbers of threads.

    Raises:
        ArgumentError: more threads are wanted than the machine has cores.
    """
    cores = machine.available_cores()
    threads = tuple(wanted) or tuple(n for n in planned if n <= cores)
    if max(threads) > cores:
        raise ArgumentError(
            f"--threads {max(threads)} was given on a machine with {cores} cores; more threads "
            f"than cores measure the scheduler: choose at most {cores}"
        )
    return threads


@contextmanager
def forced_isa(name: str | None) -> Iterator[None]:
    """Force an instruction set for a while.

    Args:
        name: of the instruction set; None leaves it as it is.
    """
    before = gossamer.isa()
    if name:
        gossamer.use_isa(name)
    try:
        yield
    finally:
        if name:
            gossamer.use_isa(before)


def _results(topic: Topic, options: Options) -> Results:
    facts = machine.facts(topic.rivals)
    settings = {"quick": options.quick}
    slug = re.sub(r"[^a-z0-9]+", "-", f"{facts['cpu']} {facts['isa']}".lower()).strip("-")
    path = options.folder / f"{slug}{topic.suffix}.json"
    if not (options.resume and path.exists()):
        return Results(path, facts, settings)
    earlier = Results.load(path)
    theirs, ours = earlier.machine | earlier.settings, facts | settings
    differing = [name for name, value in ours.items() if theirs.get(name) != value]
    if differing:
        raise CheckpointError(
            f"{path} was measured with another {', '.join(differing)}; measure anew without "
            "--resume, or in another --out"
        )
    return earlier


def _measure(
    topic: Topic, plan: Plan[Any], groups: Sequence[str], results: Results, console: Console
) -> bool:
    """Run the jobs whose records are missing; whether it was interrupted."""
    planned = [job for build in topic.builders for job in build(plan)]
    wanted = [job for job in planned if job.group in groups]
    todo = [job for job in wanted if not results.keys.issuperset(job.keys)]
    # Now, so that the OpenMP pool it may bring is there when the number of threads is set.
    topic.warm_up()
    start = time.monotonic()
    progress = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
        disable=not console.is_terminal,
    )
    try:
        with progress:
            task = progress.add_task("", total=len(wanted), completed=len(wanted) - len(todo))
            for job in todo:
                progress.update(task, description=job.title)
                _run(job, results)
                progress.advance(task)
    except KeyboardInterrupt:
        return True
    finally:
        results.complete = all(results.keys.issuperset(job.keys) for job in planned)
        results.save()
        spent = time.monotonic() - start
        console.print(f"{len(todo)} measurements took {spent:.0f} s", highlight=False)
    return False


def _run(job: Job, results: Results) -> None:
    commit = machine.commit()
    if commit and commit not in results.commits:
        results.commits.append(commit)
    errors: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(timing.threads(job.threads))
        # torch's call governs the OpenMP pool that it loaded; a rival may have brought another.
        stack.enter_context(threadpoolctl.threadpool_limits(job.threads, user_api="openmp"))
        try:
            records = job.run(errors)
        except WrongResultError as error:
            records = []
            errors.append(str(error))
    results.errors += [error for error in errors if error not in results.errors]
    results.add(records)
