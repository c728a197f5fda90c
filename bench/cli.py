"""The front door of the bench: `python -m bench [TOPIC …]`, from the root of a checkout."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.harness.front import new_app
from bench.harness.run import INTERRUPTED, Options

TOPICS = ("layers", "activations", "transport", "prox", "masks", "codes", "recipes")
# Groups of the layers' jobs; the other topics are one group.
GROUPS = ("calls", "state", "decoding", "train", "layers", "verbs", "bfloat16")

app = new_app("Measure Gossamer beside its rivals.")


@app.command()
def bench(
    topics: Annotated[
        list[str] | None, typer.Argument(help=f"{', '.join(TOPICS)}; default: all.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of results; default: bench/results, or runs/bench-quick."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small part, in about a minute: does it work?")
    ] = False,
    threads: Annotated[
        str | None, typer.Option(help="Numbers of threads, with commas; default: 1,2.")
    ] = None,
    isa: Annotated[str | None, typer.Option(help="Force an instruction set, such as avx2.")] = None,
    only: Annotated[
        str | None, typer.Option(help=f"Parts of layers, with commas: {', '.join(GROUPS)}.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Keep what the folder holds, measure what is missing."),
    ] = False,
) -> None:
    """Measure each topic beside its rivals: print tables, write JSON, Markdown and pictures.

    Every result is first compared with the dense formula; a wrong one is never timed.
    """
    options = Options(
        out=out,
        quick=quick,
        threads=() if threads is None else _counts(threads),
        isa=isa,
        only=() if only is None else _chosen(only.split(","), GROUPS),
        resume=resume,
    )
    chosen = _chosen(topics or (["layers"] if only else TOPICS), TOPICS)
    status = 0
    for name in chosen:
        status = max(status, runner(name)(options, Console()))
        if status == INTERRUPTED:
            break
    if status:
        raise typer.Exit(status)


def runner(topic: str) -> Callable[[Options, Console], int]:
    """What measures a topic; it is imported now.

    Args:
        topic: one of `TOPICS`.

    Returns:
        A function of the options and the console that gives the exit status.
    """
    run: Callable[[Options, Console], int] = import_module(f"bench.{topic}").run
    return run


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"--threads {text}: write numbers, as 1,2") from None
    if min(counts) < 1:
        raise typer.BadParameter(f"--threads {text}: a number of threads is at least 1")
    return tuple(dict.fromkeys(counts))


def _chosen(names: "list[str] | tuple[str, ...]", known: tuple[str, ...]) -> tuple[str, ...]:
    chosen = tuple(name.strip() for name in names)
    for name in chosen:
        if name not in known:
            raise typer.BadParameter(f"{name}: choose among {', '.join(known)}")
    return chosen
