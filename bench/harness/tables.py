"""Tables and pages of results: on the terminal, as Markdown, and pictures beside them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.harness.bars import Verdict
from bench.harness.results import Results, write_text

MET, MISSED = "✓", "✗"


@dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Args:
        text: what it shows.
        met: whether it meets its bar; None if it has none.
    """

    text: str
    met: bool | None = None


@dataclass(frozen=True)
class Grid:
    """A table, before it is drawn on a terminal or written as Markdown.

    Args:
        title: what it shows.
        headings: of its columns.
        rows: cells, as many per row as there are headings.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def markdown(self) -> list[str]:
        """Lines of Markdown, without the title."""
        rule = ["---", *(["---:"] * (len(self.headings) - 1))]
        rows = [_line([_marked(cell) for cell in row]) for row in self.rows]
        return [_line(self.headings), _line(rule), *rows]


@dataclass(frozen=True)
class Page:
    """What a reader gets of a run.

    Args:
        tables: of everything that was measured.
        lines: on what and with what it was measured, and what it does not show.
        summary: one line, and one more for each bar that is missed.
    """

    tables: Sequence[Grid]
    lines: Sequence[str]
    summary: str

    def show(self, console: Console) -> None:
        """Print the tables, then the lines, then the summary in bold."""
        for grid in self.tables:
            table = Table(title=grid.title, title_justify="left")
            table.add_column(grid.headings[0])
            for heading in grid.headings[1:]:
                table.add_column(heading, justify="right")
            for row in grid.rows:
                table.add_row(*map(_coloured, row))
            console.print(table)
        for line in self.lines:
            console.print(escape(line), highlight=False)
        console.print(f"[bold]{escape(self.summary)}[/]", highlight=False)

    def markdown(self) -> str:
        """Markdown for a README: the lines, the tables with marked bars, then the summary."""
        parts = [*(f"- {line}" for line in self.lines), ""]
        for grid in self.tables:
            parts += [f"**{grid.title}**", "", *grid.markdown(), ""]
        first, *rest = self.summary.splitlines()
        parts += [f"{first}.", "", *(f"- {line}" for line in rest)]
        return "\n".join(parts).rstrip() + "\n"


# Draws pictures beside the results' file and gives their paths.
Pictures = Callable[[Results], list[Path]]


def publish(page: Page, path: Path, console: Console) -> Path:
    """Print a page, and write it as Markdown beside the file of its results.

    Args:
        page: of the results.
        path: of their file.
        console: where to print.

    Returns:
        The Markdown file.
    """
    page.show(console)
    written = path.with_suffix(".md")
    write_text(written, page.markdown())
    return written


def verdict_cell(verdict: Verdict) -> Cell:
    """The value of a verdict; a question mark stands for an undecided one."""
    return Cell(verdict.text + (" ?" if verdict.met is None else ""), verdict.met)


def tally(judged: Iterable[Verdict], words: Callable[[Verdict], str]) -> str:
    """Count bars, and name those that are not met.

    Args:
        judged: records beside their bars.
        words: say which bar it is, and what was measured.

    Returns:
        One line, and one more for each bar that is missed or undecided.
    """
    everything = list(judged)
    left = [verdict for verdict in everything if not verdict.met]
    undecided = sum(verdict.met is None for verdict in left)
    lines = [
        f"{len(everything) - len(left)} of {len(everything)} bars met ({MET}), "
        f"{len(left) - undecided} missed ({MISSED}), {undecided} undecided (?)"
    ]
    lines += [f"{'undecided' if v.met is None else 'missed'}: {words(v)}" for v in left]
    return "\n".join(lines)


def machine_line(results: Results) -> str:
    """The processor, its cores and caches, and the system."""
    machine = results.machine
    caches = ", ".join(f"{level} {size}" for level, size in machine["caches"].items())
    return f"{machine['cpu']}, {machine['cores']} cores ({caches}), {machine['system']}"


def versions_line(results: Results) -> str:
    """Versions of what took part, and the commits that were measured."""
    versions = ", ".join(f"{who} {number}" for who, number in results.machine["versions"].items())
    return f"{versions}; commit {', '.join(results.commits) or 'unknown'}"


def shortcomings(results: Results) -> list[str]:
    """Why the run says less than a whole one; nothing if it was whole."""
    lines = []
    if results.settings["quick"]:
        lines.append("A quick run: it shows that everything works, its numbers mean little.")
    if not results.complete:
        lines.append("Not the whole plan was measured.")
    return lines


def pyplot() -> Any:
    """Matplotlib that draws into files."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def _coloured(cell: Cell) -> str:
    if cell.met is None:
        return escape(cell.text)
    return f"[green]{cell.text} {MET}[/]" if cell.met else f"[bold red]{cell.text} {MISSED}[/]"


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _marked(cell: Cell) -> str:
    if cell.met is None:
        return cell.text
    return f"{cell.text} {MET if cell.met else MISSED}"
