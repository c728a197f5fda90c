"""The protocol that every pattern answers, whoever wrote it.

A pattern is a value object: a frozen dataclass of numbers and texts without torch. How its mask is
chosen from scores is registered beside it: see `gossamer.patterns.registry`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self

from gossamer.errors import PatternError

PLUGIN = 255
"""The code of a pattern that is saved by its name and fields; those of the package have smaller."""


class _OfShape:
    """Refuses a share that depends on the weight; a field or property of the name replaces it."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __get__(self, pattern: Pattern | None, owner: type) -> NoReturn:
        if pattern is None:  # dataclasses look for a default here
            raise AttributeError(self.what)
        pattern.refuse(f"{self.what} of its own", "choose a pattern such as 90%")


# --8<-- [start:protocol]
class Pattern(ABC):
    """Base of all patterns: which entries of a weight [out_features, in_features] may be kept.

    Subclasses are frozen dataclasses. `__str__`, `check_shape` and `count` are required; the rest
    has defaults. `gossamer.patterns.register_pattern` makes a class known to texts and files, and
    `register_sparsifier` says how its mask is chosen.

    Attributes:
        sparsity: dropped share of the entries, in [0, 1]; refused by default, for patterns whose
            share depends on the shape. `density` is 1 - sparsity.
        tile: rows and columns of the tiles that are kept or dropped as one.
        panel: rows of a panel in storage, 1, 4 or 8, which divides the tile's rows.
        group: (n, m) if every row keeps exactly n of every m columns: the layout then needs no row
            pointers. (0, 0) is any other mask.
        moves: whether SET and RigL may exchange single slots, as far as the selection allows.
        adjustable: whether each layer may have another `sparsity`, by `at_sparsity`.
    """

    if TYPE_CHECKING:

        @property
        def sparsity(self) -> float:
            """Dropped share of the entries, in [0, 1]."""

    else:
        sparsity = _OfShape("sparsity")

    adjustable: ClassVar[bool] = False
    code: ClassVar[int] = PLUGIN

    @property
    def density(self) -> float:
        """Kept share of the entries, 1 - sparsity."""
        return 1.0 - self.sparsity

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of the tiles that are kept or dropped as one."""
        return 1, 1

    @property
    def panel(self) -> int:
        """Rows of a panel in storage."""
        return 1

    @property
    def moves(self) -> bool:
        """Whether SET and RigL may exchange single slots."""
        return True

    @property
    def group(self) -> tuple[int, int]:
        """(n, m) if every row keeps exactly n of every m columns, else (0, 0)."""
        return 0, 0

    @abstractmethod
    def __str__(self) -> str:
        """Return the text that `parse` reads."""

    @abstractmethod
    def check_shape(self, rows: int, cols: int, who: str = "weight") -> None:
        """Raise PatternError unless a weight of this shape can have the pattern."""

    @abstractmethod
    def count(self, rows: int, cols: int) -> int:
        """Return the exact number of kept entries of a weight."""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the pattern that a text in lower case describes; None if it is none of these."""
        return None

    def at_sparsity(self, sparsity: float) -> Pattern:
        """Return the pattern of the same kind with another sparsity."""
        self.refuse("other sparsity", "choose a pattern such as 90%")

    # --8<-- [end:protocol]

    def refuse(self, what: str, advice: str) -> NoReturn:
        """Raise PatternError: the pattern has no such thing."""
        raise PatternError(f"pattern {self} has no {what}: {advice}")

    # ---- the descriptor in a state dict --------------------------------------------------------

    @property
    def numbers(self) -> tuple[int, ...]:
        """The integers that a state dict keeps of the pattern: its panel, and its own ones."""
        plain = {"name": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]
        return self.panel, *self.group, *_words(plain)

    @classmethod
    def _of_numbers(cls, numbers: tuple[int, ...]) -> Pattern:
        """Return the pattern of `numbers` of this class; only the package's own classes have it."""
        raise NotImplementedError


def _words(plain: dict[str, Any]) -> tuple[int, ...]:
    """Return the length of a JSON text and its bytes, 8 in each number."""
    text = json.dumps(plain).encode()
    padded = text.ljust(-(-len(text) // 8) * 8)
    words = (int.from_bytes(padded[i : i + 8], "little") for i in range(0, len(padded), 8))
    # As signed: they are stored as int64.
    return len(text), *(word - (word >> 63 << 64) for word in words)


def plain_of_numbers(numbers: tuple[int, ...]) -> dict[str, Any]:
    """Return name and fields of a pattern that is saved by its text.

    Raises:
        PatternError: the numbers hold no such text.
    """
    try:
        size, words = numbers[3], numbers[4:]
        text = b"".join((word % 2**64).to_bytes(8, "little") for word in words)[:size]
        plain = json.loads(text)
        if not isinstance(plain, dict) or not isinstance(plain.get("name"), str):
            raise ValueError(plain)
        if _words(plain) != (size, *words):
            raise ValueError(words)
    except (ValueError, IndexError, OverflowError, RecursionError):
        raise PatternError("the descriptor holds no pattern: it is damaged") from None
    return plain
