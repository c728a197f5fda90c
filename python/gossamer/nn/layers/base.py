"""What all layer classes share."""

from __future__ import annotations

from gossamer.errors import PatternError
from gossamer.patterns import NM, Pattern, parse_pattern


def plain_groups(pattern: str | Pattern, who: str) -> NM:
    """The pattern, when it is N:M entry by entry.

    Raises:
        PatternError: it is another one.
    """
    pattern = parse_pattern(pattern)
    if not isinstance(pattern, NM) or pattern.vector != 1:
        raise PatternError(
            f"{who} got pattern {pattern}; its groups are n of m single entries: choose 2:4, 1:4 "
            "or another n:m without :v4 or :v8"
        )
    return pattern


__all__ = ["plain_groups"]
