"""How a command line starts: one line for each error that Gossamer raises on purpose."""

import sys

import typer
from rich.console import Console
from rich.markup import escape

from gossamer import GossamerError


def new_app(words: str) -> typer.Typer:
    """An empty command line.

    Args:
        words: what it is for.

    Returns:
        The application; a call without arguments of one with several commands shows its help.
    """
    return typer.Typer(help=words, pretty_exceptions_enable=False, add_completion=False)


def start(app: typer.Typer, name: str) -> None:
    """Run a command line.

    Args:
        app: what to run.
        name: shown in its help.
    """
    try:
        app(prog_name=name)
    except GossamerError as error:
        Console(stderr=True).print(
            f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        sys.exit(1)
