"""`gossamer bench`: options, the loop over the jobs, and where results go."""

import argparse
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import threadpoolctl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gossamer import backend, timing
from gossamer.bench import (
    compare,
    machine,
    ot_compare,
    ot_report,
    prox_compare,
    prox_report,
    upkeep,
)
from gossamer.bench.bars import FORWARD
from gossamer.bench.compare import QUICK, Job, Plan
from gossamer.bench.plot import plot, points
from gossamer.bench.report import markdown, show
from gossamer.bench.results import Results
from gossamer.bench.rivals import UnavailableError, WrongResultError, load_sparseprop
from gossamer.errors import CheckpointError, ShapeError

WRONG, INTERRUPTED = 1, 130


class Part(NamedTuple):
    """Jobs whose records stand in one file.

    Args:
        groups: that ``--only`` may name.
        builders: of the jobs.
        publish: shows results and writes what stands beside the JSON; gives the files.
        suffix: of the file's name.
        rivals: distributions whose versions matter.
    """

    groups: tuple[str, ...]
    builders: tuple[Callable[[Plan], Iterator[Job]], ...]
    publish: Callable[[Results, Console], list[Path]]
    suffix: str
    rivals: tuple[str, ...]


def _publish(results: Results, console: Console) -> list[Path]:
    show(results, console)
    results.path.with_suffix(".md").write_text(markdown(results), encoding="utf-8")
    written = [results.path, results.path.with_suffix(".md")]
    if points(results.records, FORWARD):
        plot(results, results.path.with_suffix(".png"))
        written.append(results.path.with_suffix(".png"))
    return written


PARTS = (
    Part(
        ("calls", "state", "decoding", "train", "layers", "verbs", "bfloat16"),
        (
            upkeep.call_jobs,
            upkeep.state_jobs,
            compare.decoding_jobs,
            upkeep.train_jobs,
            compare.case_jobs,
            compare.half_jobs,
        ),
        _publish,
        "",
        ("sparseprop",),
    ),
    Part(
        (ot_compare.GROUP,),
        (ot_compare.transport_jobs,),
        ot_report.publish,
        "-transport",
        ot_report.DISTRIBUTIONS,
    ),
    Part(
        (prox_compare.GROUP,),
        (prox_compare.prox_jobs,),
        prox_report.publish,
        "-prox",
        prox_report.DISTRIBUTIONS,
    ),
)
GROUPS = tuple(group for part in PARTS for group in part.groups)


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Measure, print the tables, write JSON, Markdown and a picture.

    Args:
        arguments: of the command line; None takes those of the process.
        console: where to print; standard output by default.

    Returns:
        0; 1 if somebody computed a wrong result; 130 if interrupted, with all that was measured
        so far written.

    Raises:
        GossamerError: an option does not fit this machine, or the results to resume do not.
    """
    console = console or Console()
    options = _parser().parse_args(arguments)
    plan = QUICK if options.quick else Plan()
    cores = machine.available_cores()
    threads = options.threads or tuple(n for n in plan.threads if n <= cores)
    if max(threads) > cores:
        raise ShapeError(
            f"--threads {max(threads)} was given on a machine with {cores} cores; more threads "
            f"than cores measure the scheduler: choose at most {cores}"
        )
    before = backend.isa()
    if options.isa:
        backend.use_isa(options.isa)
    status = 0
    try:
        for part in PARTS:
            if status != INTERRUPTED and set(part.groups) & set(options.only):
                found = _bench(part, replace(plan, threads=threads), options, console)
                status = max(status, found)
    finally:
        if options.isa:
            backend.use_isa(before)
    return status


def _bench(part: Part, plan: Plan, options: argparse.Namespace, console: Console) -> int:
    results = _results(part, options.out or _default_out(options.quick), options)
    stopped = _measure(part, plan, options.only, results, console)
    written = part.publish(results, console)
    console.print("   ".join(map(str, written)), highlight=False)
    if stopped:
        console.print("stopped; --resume measures what is missing", highlight=False)
        return INTERRUPTED
    return WRONG if results.errors else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gossamer bench",
        description="Measure kernels, layers and the train step beside their rivals.",
    )
    parser.add_argument(
        "--out", type=Path, help="folder of results; default: bench/results, or runs/bench-quick"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a small part, in under a minute: does it work?"
    )
    parser.add_argument(
        "--threads", type=_counts, metavar="N,N", help="numbers of threads; default: 1,2"
    )
    parser.add_argument("--isa", help="force an instruction set, such as avx2")
    parser.add_argument(
        "--only",
        type=_groups,
        default=GROUPS,
        metavar="PART,PART",
        help=f"parts to measure: {', '.join(GROUPS)}",
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep what the folder holds, measure what is missing"
    )
    return parser


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(part) for part in text.split(","))
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a number of threads is at least 1")
    return tuple(dict.fromkeys(counts))


def _groups(text: str) -> tuple[str, ...]:
    chosen = tuple(part.strip() for part in text.split(","))
    for name in chosen:
        if name not in GROUPS:
            raise argparse.ArgumentTypeError(f"{name}: choose among {', '.join(GROUPS)}")
    return chosen


def _default_out(quick: bool) -> Path:
    return Path("runs", "bench-quick") if quick else Path("bench", "results")


def _results(part: Part, out: Path, options: argparse.Namespace) -> Results:
    facts = machine.facts(part.rivals)
    settings = {"quick": options.quick}
    slug = re.sub(r"[^a-z0-9]+", "-", f"{facts['cpu']} {facts['isa']}".lower()).strip("-")
    path = out / f"{slug}{part.suffix}.json"
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
    part: Part, plan: Plan, groups: Sequence[str], results: Results, console: Console
) -> bool:
    """Run the jobs whose records are missing; whether it was interrupted."""
    planned = [job for build in part.builders for job in build(plan)]
    wanted = [job for job in planned if job.group in groups]
    todo = [job for job in wanted if not results.keys.issuperset(job.keys)]
    # Now, so that the OpenMP pool it may bring is there when the number of threads is set.
    with suppress(UnavailableError):
        load_sparseprop()
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
