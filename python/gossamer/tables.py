"""Tables as plain text, without any other package."""

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
        title: text of the first line.
        headings: one text per column.
        rows: one text per column in each row.
        total: the last row, below a rule; None leaves it out.
        left: number of leading columns that are aligned left; the others are aligned right.
        notes: lines after the table.

    Returns:
        The lines of the table, without a final newline.

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
