"""The text forms of patterns."""

import re
from decimal import Decimal
from typing import TypeAlias

from gossamer.errors import DTypeError, PatternError
from gossamer.patterns.entries import Block, Nonzeros, Unstructured
from gossamer.patterns.groups import NM, GroupedNM

_FORMS = (
    '"2:4" (N:M), "2:4:v4" (N:M, 4 rows share their columns), "2:4:g8" (n:m:g), '
    '"90%" (unstructured), "90%:v4" (unstructured, 4 rows share their columns), "block 16x16 75%", '
    '"nonzeros" (what is not zero in a dense weight)'
)
_NM_TEXT = re.compile(r"(-?\d{1,9})\s*:\s*(-?\d{1,9})(?:\s*:\s*([vg])(\d{1,9}))?", re.ASCII)
_PERCENT = r"(-?(?:\d{1,9}(?:\.\d*)?|\.\d+))\s*%"
_UNSTRUCTURED_TEXT = re.compile(_PERCENT + r"(?:\s*:\s*v(\d{1,9}))?", re.ASCII)
_NONZEROS_TEXT = re.compile(r"nonzeros(?:\s*:\s*v(\d{1,9}))?", re.ASCII)
_BLOCK_TEXT = re.compile(r"block\s*(\d{1,9})\s*x\s*(\d{1,9})\s+" + _PERCENT, re.ASCII)


Pattern: TypeAlias = NM | Unstructured | Block | GroupedNM | Nonzeros


def parse_pattern(p: str | Pattern) -> Pattern:
    """Return the pattern that a text describes; a pattern is returned unchanged.

    Args:
        p: "2:4", "2:4:v4", "2:4:g8", "97.5%", "90%:v4", "block 16x16 75%", "nonzeros", or
            a pattern; any case.

    Raises:
        PatternError: The text has none of these forms, or a number in it is out of range.
        DTypeError: `p` is neither a text nor a pattern.

    Example:
        >>> parse_pattern("2:4:v4")
        NM(n=2, m=4, vector=4)
    """
    if isinstance(p, Pattern):
        return p
    if not isinstance(p, str):
        raise DTypeError(
            f"parse_pattern got {p!r} of type {type(p).__name__}; a pattern must be a text or a "
            f"pattern object: write one of {_FORMS}"
        )
    text = p.strip().lower()
    try:
        if found := _NM_TEXT.fullmatch(text):
            kind = GroupedNM if found[3] == "g" else NM
            return kind(int(found[1]), int(found[2]), int(found[4] or 1))
        if found := _UNSTRUCTURED_TEXT.fullmatch(text):
            return Unstructured(float(Decimal(found[1]) / 100), int(found[2] or 1))
        if found := _NONZEROS_TEXT.fullmatch(text):
            return Nonzeros(int(found[1] or 1))
        if found := _BLOCK_TEXT.fullmatch(text):
            return Block(int(found[1]), int(found[2]), float(Decimal(found[3]) / 100))
    except PatternError as error:
        raise PatternError(f"parse_pattern got {p!r:.80}: {error!s:.400}") from None
    raise PatternError(
        f"parse_pattern got {p!r:.80}; the text of a pattern must have one of the known forms: "
        f"write one of {_FORMS}"
    )
