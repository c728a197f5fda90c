"""The sampling pattern that a recipe gives to its layers."""

from __future__ import annotations

from typing import Any

from gossamer.nn.layers.base import plain_groups
from gossamer.patterns import NM


def parse_sample(sample: Any, who: str) -> NM | None:
    """The sampling pattern of a recipe, or None for no sampling.

    Raises:
        PatternError: not None and not a plain n:m.
    """
    return None if sample is None else plain_groups(sample, f"{who}, mvue,")


__all__ = ["parse_sample"]
