"""What a training says while it works: output that fails never ends the work."""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.text import Text


class Output:
    """A console that falls silent when it cannot be written.

    Standard output may be a full disk, a closed pipe, or a terminal that knows few characters.

    Args:
        console: where to write; None is standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.error: str | None = None  # why it cannot be written

    def say(self, what: str | RenderableType) -> None:
        """Print a line of plain text, or a table.

        Args:
            what: text, of which nothing is markup; or what rich can print.
        """
        if self.error is not None:
            return
        shown = Text(what.encode("utf-8", "replace").decode()) if isinstance(what, str) else what
        try:
            self.console.print(shown, soft_wrap=isinstance(what, str))
        # rich turns a broken pipe into SystemExit.
        except (OSError, ValueError, SystemExit) as error:
            self.error = getattr(error, "strerror", None) or str(error)
