"""What runs here: the text of `gossamer info`."""

from gossamer.backend import info
from gossamer.tables import text_table

__all__ = ["about"]


def about() -> str:
    """The version, the instruction sets, the threads and which kernel serves what.

    Returns:
        Lines, without a newline at the end.
    """
    facts = info()
    serving = facts.pop("serving")
    lines = [f"{name:<12}{_text(value)}" for name, value in facts.items()]
    dtypes = sorted({str(dtype) for _, _, dtype in serving})
    rows = []
    for verb, layout in sorted({key[:2] for key in serving}):
        servers = (serving.get((verb, layout, dtype), "–") for dtype in dtypes)
        rows.append([str(verb), str(layout), *map(str, servers)])
    table = text_table("which kernel serves what", ["verb", "layout", *dtypes], rows, left=9)
    return "\n".join([*lines, "", table])


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
