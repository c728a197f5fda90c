"""The text forms of patterns."""

from gossamer.errors import DTypeError, PatternError
from gossamer.patterns.entries import Nonzeros
from gossamer.patterns.protocol import PLUGIN, Pattern
from gossamer.patterns.registry import check_registered, pattern_kinds

_FORMS = (
    '"2:4" (N:M), "2:4:v4" (N:M, 4 rows share their columns), "2:4:g8" (n:m:g), '
    '"90%" (unstructured), "90%:v4" (unstructured, 4 rows share their columns), "block 16x16 75%", '
    '"butterfly 3/16" (3 of 16 blocks of a grid), "nonzeros" (what is not zero in a dense weight)'
)


def parse_pattern(p: str | Pattern) -> Pattern:
    """Return the pattern that a text describes; a pattern is returned unchanged.

    Args:
        p: "2:4", "2:4:v4", "2:4:g8", "97.5%", "90%:v4", "block 16x16 75%", "butterfly 3/16",
            "nonzeros", the text of a registered pattern, or a pattern; any case.

    Raises:
        PatternError: The text has none of these forms, a number in it is out of range, or the
            pattern's class is not registered.
        DTypeError: `p` is neither a text nor a pattern.

    Example:
        >>> parse_pattern("2:4:v4")
        NM(n=2, m=4, vector=4)
    """
    if isinstance(p, Pattern):
        check_registered(p)
        return p
    if not isinstance(p, str):
        raise DTypeError(
            f"parse_pattern got {p!r} of type {type(p).__name__}; a pattern must be a text or a "
            f"pattern object: write one of {_FORMS}"
        )
    text = p.strip().lower()
    for kind in pattern_kinds():
        try:
            found = kind.parse(text)
        except Exception as error:  # of a class that others wrote, too
            raise PatternError(f"parse_pattern got {p!r:.80}: {error!s:.400}") from None
        if found is not None:
            return found
    raise PatternError(
        f"parse_pattern got {p!r:.80}; the text of a pattern must have one of the known forms: "
        f"write one of {_FORMS}{_others()}; import the module of a pattern of your own first"
    )


def _others() -> str:
    """Return which patterns from outside the package are known."""
    kinds = [kind for kind in pattern_kinds() if kind.code == PLUGIN and kind is not Nonzeros]
    return f", or one of {', '.join(kind.__name__ for kind in kinds)}" if kinds else ""
