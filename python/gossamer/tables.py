"""Tables as plain text, for `print`: they need no other package."""

from collections.abc import Sequence

__all__ = ["text_table"]


def text_table(
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    total: Sequence[str] | None = None,
    *,
    left: int = 1,
    notes: Sequence[str] = (),
) -> str:
    """Lay out a table in columns.

    Args:
        title: first line.
        headings: of the columns.
        rows: as many texts per row as there are headings.
        total: the last row, under a line; None for none.
        left: columns that are aligned to the left; the others are aligned to the right.
        notes: lines below the table.

    Returns:
        Lines without a newline at the end.

    Example:
        >>> rows = [("a", "8"), ("bc", "16")]
        >>> print(text_table("sizes", ("layer", "bytes"), rows, ("sum", "24")))
        sizes
        layer  bytes
        -----  -----
        a          8
        bc        16
        -----  -----
        sum       24
    """
    shown = [headings, *rows, *([] if total is None else [total])]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]

    def line(texts: Sequence[str]) -> str:
        cells = (
            text.ljust(width) if i < left else text.rjust(width)
            for i, (text, width) in enumerate(zip(texts, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    rule = line(["-" * width for width in widths])
    end = [] if total is None else [rule, line(total)]
    return "\n".join([title, line(headings), rule, *map(line, rows), *end, *notes])
