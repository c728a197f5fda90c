"""Patterns that keep n of every m columns: `NM` and `GroupedNM`."""

import math
import re
from dataclasses import dataclass, replace
from typing import ClassVar

from gossamer.errors import PatternError
from gossamer.patterns.checks import (
    MAX_CHUNK,
    MAX_M,
    Vectored,
    as_integer,
    check_rows,
    check_sizes,
    check_vector,
    misfit,
    unit_interval,
    vector_for,
    vector_text,
)
from gossamer.patterns.entries import Unstructured
from gossamer.patterns.protocol import Pattern
from gossamer.patterns.registry import register_pattern

_TEXT = re.compile(r"(-?\d{1,9})\s*:\s*(-?\d{1,9})(?:\s*:\s*([vg])(\d{1,9}))?", re.ASCII)


class _OfGroups(Pattern):
    """Base of the patterns that keep n of every m columns."""

    n: int
    m: int

    @property
    def density(self) -> float:
        """Kept share of the entries, n / m."""
        return self.n / self.m

    @property
    def sparsity(self) -> float:
        """Dropped share of the entries, (m - n) / m."""
        return (self.m - self.n) / self.m

    @property
    def group(self) -> tuple[int, int]:
        """N and m."""
        return self.n, self.m

    def at_sparsity(self, sparsity: float) -> "Pattern":
        """Return the pattern with the least n whose sparsity is at most this."""
        sparsity = unit_interval(sparsity, f"{self}.at_sparsity")
        # Rounded first: 2.0000000001 of 4 are 2.
        return replace(self, n=math.ceil(round(self.m * (1.0 - sparsity), 9)))  # type: ignore[type-var]


@register_pattern
@dataclass(frozen=True)
class NM(_OfGroups, Vectored):
    """Keep exactly n of every m consecutive columns of a row.

    Args:
        n: Entries kept per group, 1 <= n <= m.
        m: Columns per group, at most 64.
        vector: Rows that share one choice of columns: 1, 4, 8, 16, 32, 64 or 128.

    Raises:
        PatternError, DTypeError: A number is out of range, or not an integer.

    Reference:
        Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks" (2:4).

    Example:
        >>> pattern = NM(2, 4, vector=4)
        >>> str(pattern), pattern.density, pattern.count(8, 16)
        ('2:4:v4', 0.5, 64)
    """

    n: int
    m: int
    vector: int = 1
    code: ClassVar[int] = 0

    def __post_init__(self) -> None:
        for field in ("n", "m", "vector"):
            object.__setattr__(self, field, as_integer(getattr(self, field), f"NM got {field}"))
        if not 1 <= self.n <= self.m <= MAX_M:
            raise PatternError(
                f"NM got n={self.n}, m={self.m}; 1 <= n <= m <= {MAX_M} must hold: "
                "write the entries kept first and the group second, for example NM(2, 4)"
            )
        check_vector(self.vector, "NM")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}{vector_text(self.vector)}"

    @classmethod
    def parse(cls, text: str) -> "NM | None":
        """Read "2:4" and "2:4:v4"."""
        found = _TEXT.fullmatch(text)
        if found is None or found[3] == "g":
            return None
        return cls(int(found[1]), int(found[2]), int(found[4] or 1))

    def check_shape(self, rows: int, cols: int, who: str = "weight") -> None:
        """Raise PatternError unless cols % m == 0 and rows % vector == 0.

        Example:
            >>> NM(2, 8).check_shape(8, 100)
            Traceback (most recent call last):
            gossamer.errors.PatternError: weight got in_features=100 with pattern 2:8; in_features \
must be a multiple of 8: choose 1:4, pad to 104, or exclude the layer (exclude=...)
        """
        rows, cols = check_sizes(rows, cols, who)
        if cols % self.m:
            raise misfit(who, "in_features", cols, self.m, self, self._narrower(rows, cols))
        check_rows(rows, self, NM(self.n, self.m, vector_for(rows, self.vector)), who)

    def count(self, rows: int, cols: int) -> int:
        """Exact number of kept entries of a `[rows, cols]` weight: rows * cols * n / m."""
        self.check_shape(rows, cols)
        return rows * (cols // self.m) * self.n

    @property
    def numbers(self) -> tuple[int, ...]:
        """vector, n and m."""
        return self.vector, self.n, self.m, 0

    @classmethod
    def _of_numbers(cls, numbers: tuple[int, ...]) -> "NM":
        """Return the pattern of its `numbers`."""
        return cls(numbers[1], numbers[2], numbers[0])

    def _narrower(self, rows: int, cols: int) -> "NM | Unstructured":
        """Return a pattern of this density that fits `cols`: smaller groups, else unstructured."""
        vector = vector_for(rows, self.vector)
        for m in range(self.m - 1, 0, -1):
            if cols % m == 0 and self.n * m % self.m == 0:
                return NM(self.n * m // self.m, m, vector)
        return Unstructured(round(self.sparsity, 4), vector)


@register_pattern
@dataclass(frozen=True)
class GroupedNM(_OfGroups):
    """N:M with equally frequent choices of columns: each of the C(m, n) occurs g times per chunk.

    A chunk has C(m, n) g consecutive rows; in a shorter one the counts of choices differ by <= 1.

    Args:
        n: Entries kept per group, 1 <= n <= m.
        m: Columns per group, at most 64.
        g: Rows per chunk with each choice; C(m, n) g <= 32768.

    Raises:
        PatternError, DTypeError: A number is out of range, or not an integer.

    Reference:
        Ivanov et al. 2023, "STen: Productive and Efficient Sparsity in PyTorch" (n:m:g).

    Example:
        >>> pattern = GroupedNM(2, 4, 8)
        >>> str(pattern), pattern.chunk, pattern.count(100, 16)
        ('2:4:g8', 48, 800)
    """

    n: int
    m: int
    g: int
    code: ClassVar[int] = 3
    vector = 1
    moves = False  # the exchange of single entries breaks the balance of choices

    def __post_init__(self) -> None:
        NM(self.n, self.m)
        for name in ("n", "m", "g"):
            object.__setattr__(self, name, as_integer(getattr(self, name), f"GroupedNM got {name}"))
        if self.g < 1 or self.chunk > MAX_CHUNK:
            raise PatternError(
                f"{self.n}:{self.m} got g={self.g}; 1 <= g and C(m, n) g <= {MAX_CHUNK} must hold"
            )

    def __str__(self) -> str:
        return f"{self.n}:{self.m}:g{self.g}"

    @classmethod
    def parse(cls, text: str) -> "GroupedNM | None":
        """Read "2:4:g8"."""
        found = _TEXT.fullmatch(text)
        if found is None or found[3] != "g":
            return None
        return cls(int(found[1]), int(found[2]), int(found[4]))

    @property
    def chunk(self) -> int:
        """Rows per chunk, C(m, n) g."""
        return math.comb(self.m, self.n) * self.g

    def check_shape(self, rows: int, cols: int, who: str = "weight") -> None:
        """Raise PatternError unless cols % m == 0."""
        NM(self.n, self.m).check_shape(rows, cols, who)

    def count(self, rows: int, cols: int) -> int:
        """Exact number of kept entries: rows * cols * n / m."""
        return NM(self.n, self.m).count(rows, cols)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The rows of a panel, n, m and g."""
        return 1, self.n, self.m, self.g

    @classmethod
    def _of_numbers(cls, numbers: tuple[int, ...]) -> "GroupedNM":
        """Return the pattern of its `numbers`."""
        return cls(*numbers[1:4])
