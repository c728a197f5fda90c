"""The front door of the bench: `python -m bench [TOPIC …]`, from the root of a checkout."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.harness.front import new_app
from bench.harness.run import INTERRUPTED, Options

TOPICS = (
    "layers",
    "convolutions",
    "weights",
    "models",
    "activations",
    "transport",
    "prox",
    "masks",
    "codes",
    "recipes",
)
# Groups of jobs; a topic that is not listed is one group.
GROUPS = {
    "layers": ("calls", "state", "decoding", "train", "layers", "verbs", "bfloat16"),
    "convolutions": ("convolutions", "resnet"),
    "masks": ("select", "tiles", "making", "changing"),
}
_PARTS = tuple(group for groups in GROUPS.values() for group in groups)
_PARTS_HELP = "; ".join(f"{topic}: {', '.join(groups)}" for topic, groups in GROUPS.items())

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
        str | None, typer.Option(help=f"Parts of topics, with commas. {_PARTS_HELP}.")
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
        only=() if only is None else _chosen(only.split(","), _PARTS),
        resume=resume,
    )
    chosen = _chosen(topics or _topics_of(options.only), TOPICS)
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


def _topics_of(groups: tuple[str, ...]) -> tuple[str, ...]:
    """The topics of groups; all topics for none."""
    found = tuple(topic for topic, own in GROUPS.items() if set(own) & set(groups))
    return found if groups else TOPICS


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
