"""Patterns of entries and tiles anywhere in the weight: `Unstructured`, `Nonzeros` and `Block`."""

import math
import re
import struct
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import ClassVar, NoReturn

from gossamer.arguments import is_number
from gossamer.errors import DTypeError, PatternError
from gossamer.patterns.checks import (
    PERCENT,
    Vectored,
    as_integer,
    check_rows,
    check_sizes,
    check_vector,
    kept_slots,
    misfit,
    panel_for,
    percent,
    unit_interval,
    vector_for,
    vector_text,
)
from gossamer.patterns.protocol import Pattern
from gossamer.patterns.registry import register_pattern

_UNSTRUCTURED_TEXT = re.compile(PERCENT + r"(?:\s*:\s*v(\d{1,9}))?", re.ASCII)
_NONZEROS_TEXT = re.compile(
    r"nonzeros(?:\s*:\s*v(\d{1,9}))?(?:\s*<=\s*" + PERCENT + r")?", re.ASCII
)
_BLOCK_TEXT = re.compile(r"block\s*(\d{1,9})\s*x\s*(\d{1,9})\s+" + PERCENT, re.ASCII)


# --8<-- [start:pattern]
@register_pattern
@dataclass(frozen=True)
class Unstructured(Vectored):
    """Keep the best entries of the whole weight.

    Args:
        sparsity: Dropped share of the entries, in [0, 1].
        vector: Rows that share one list of columns: 1, 4, 8, 16, 32, 64 or 128.

    Raises:
        PatternError, DTypeError: A number is out of range, or has another type.

    Example:
        >>> pattern = Unstructured(0.975)
        >>> str(pattern), pattern.count(10, 100)
        ('97.5%', 25)
    """

    sparsity: float
    vector: int = 1
    adjustable: ClassVar[bool] = True
    code: ClassVar[int] = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", unit_interval(self.sparsity, "Unstructured"))
        object.__setattr__(self, "vector", as_integer(self.vector, "Unstructured got vector"))
        check_vector(self.vector, "Unstructured")

    def __str__(self) -> str:
        return f"{percent(self.sparsity)}{vector_text(self.vector)}"

    @classmethod
    def parse(cls, text: str) -> "Unstructured | None":
        """Read "90%" and "90%:v4"."""
        found = _UNSTRUCTURED_TEXT.fullmatch(text)
        return cls(float(Decimal(found[1]) / 100), int(found[2] or 1)) if found else None

    @classmethod
    def keeping(cls, kept: int, total: int, vector: int = 1) -> "Unstructured":
        """Return the pattern that keeps exactly so many of all entries.

        Args:
            kept: Kept entries, a multiple of `vector`.
            total: Entries of the weight.
            vector: Rows that share one list of columns.

        Example:
            >>> Unstructured.keeping(3, 7).count(1, 7)
            3
        """
        kept, total = (as_integer(n, "Unstructured.keeping got a number") for n in (kept, total))
        return cls(1 - kept / total if total else 0.0, vector)

    def at_sparsity(self, sparsity: float) -> "Unstructured":
        """Return the pattern with another sparsity."""
        return replace(self, sparsity=sparsity)

    def check_shape(self, rows: int, cols: int, who: str = "weight") -> None:
        """Raise PatternError unless rows % vector == 0."""
        rows, cols = check_sizes(rows, cols, who)
        check_rows(rows, self, Unstructured(self.sparsity, vector_for(rows, self.vector)), who)

    def count(self, rows: int, cols: int) -> int:
        """Exact number of kept entries: V * round(rows * cols / V * density), halves to even.

        At least one column of V rows is kept, unless the density is 0.
        """
        self.check_shape(rows, cols)
        return self.vector * kept_slots(rows * cols // self.vector, self.density)

    # --8<-- [end:pattern]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The vector, and the bits of the sparsity."""
        return self.vector, 0, 0, _bits(self.sparsity)

    @classmethod
    def _of_numbers(cls, numbers: tuple[int, ...]) -> "Unstructured":
        """Return the pattern of its `numbers`."""
        return cls(_float(numbers[3]), numbers[0])


@register_pattern
@dataclass(frozen=True)
class Nonzeros(Vectored):
    """Keep the entries of a dense weight that are not zero: a model that was pruned elsewhere.

    `SparseWeight.from_dense`, `SparseLinear.from_dense`, `sparsify` and `magnitude_mask` take it.
    The weight's own pattern is then `Unstructured` with exactly these entries. Where there is no
    dense weight, it has no number of entries, and PatternError is raised.

    Args:
        vector: Rows that share one list of columns: 1, 4, 8, 16, 32, 64 or 128. A column of these
            rows is kept if one of its entries is not zero.
        densest: The largest density with which `sparsify` makes a layer sparse, in (0, 1]; others
            stay dense, with a warning. A layer without zeros stays dense in any case.

    Raises:
        PatternError, DTypeError: a number is out of range, or vector is not an integer.

    Example:
        >>> str(Nonzeros(vector=4))
        'nonzeros:v4'
        >>> str(Nonzeros(densest=0.4))
        'nonzeros<=40%'
    """

    vector: int = 1
    densest: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "vector", as_integer(self.vector, "Nonzeros got vector"))
        check_vector(self.vector, "Nonzeros")
        if not is_number(self.densest):
            raise DTypeError(f"Nonzeros got densest={self.densest!r}; a number is needed: give 0.4")
        if not 0.0 < self.densest <= 1.0:
            raise PatternError(
                f"Nonzeros got densest={self.densest}; a density in (0, 1] is needed: give 0.4"
            )
        object.__setattr__(self, "densest", float(self.densest))

    def __str__(self) -> str:
        bound = f"<={percent(self.densest)}" if self.densest < 1.0 else ""
        return f"nonzeros{vector_text(self.vector)}{bound}"

    @classmethod
    def parse(cls, text: str) -> "Nonzeros | None":
        """Read "nonzeros", "nonzeros:v4" and "nonzeros:v4<=40%"."""
        found = _NONZEROS_TEXT.fullmatch(text)
        if not found:
            return None
        return cls(int(found[1] or 1), float(Decimal(found[2]) / 100) if found[2] else 1.0)

    @property
    def density(self) -> float:
        """Not known without a weight: raises PatternError."""
        self._refuse("density")

    @property
    def sparsity(self) -> float:
        """Not known without a weight: raises PatternError."""
        self._refuse("sparsity")

    def check_shape(self, rows: int, cols: int, who: str = "weight") -> None:
        """Raise PatternError unless rows % vector == 0."""
        rows, cols = check_sizes(rows, cols, who)
        check_rows(rows, self, Nonzeros(vector_for(rows, self.vector)), who)

    def count(self, rows: int, cols: int) -> int:
        """Not known without a weight: raises PatternError."""
        self._refuse("number of entries")

    def _refuse(self, what: str) -> NoReturn:
        raise PatternError(
            f"pattern {self} has no {what} of its own, because it takes the zeros of a dense "
            "weight: use it with sparsify or from_dense, or choose a pattern such as 90%"
        )


@register_pattern
@dataclass(frozen=True)
class Block(Pattern):
    """Keep the best tiles of `rows x cols` entries of the whole weight.

    Args:
        rows: Height of a tile, in output rows, at least 1.
        cols: Width of a tile, in input columns, at least 1.
        sparsity: Dropped share of the tiles, in [0, 1].

    Raises:
        PatternError, DTypeError: A number is out of range, or has another type.

    Example:
        >>> pattern = Block(16, 16, 0.75)
        >>> str(pattern), pattern.panel, pattern.count(64, 64)
        ('block 16x16 75%', 8, 1024)
    """

    rows: int
    cols: int
    sparsity: float
    adjustable: ClassVar[bool] = True
    code: ClassVar[int] = 2

    def __post_init__(self) -> None:
        for field in ("rows", "cols"):
            size = as_integer(getattr(self, field), f"Block got {field}")
            object.__setattr__(self, field, size)
            if size < 1:
                raise PatternError(
                    f"Block got {field}={size}; {field} must be at least 1: "
                    "give the tile's height and width, for example Block(16, 16, 0.75)"
                )
        object.__setattr__(self, "sparsity", unit_interval(self.sparsity, "Block"))

    def __str__(self) -> str:
        return f"block {self.rows}x{self.cols} {percent(self.sparsity)}"

    @classmethod
    def parse(cls, text: str) -> "Block | None":
        """Read "block 16x16 75%"."""
        found = _BLOCK_TEXT.fullmatch(text)
        return cls(int(found[1]), int(found[2]), float(Decimal(found[3]) / 100)) if found else None

    def at_sparsity(self, sparsity: float) -> "Block":
        """Return the pattern with another sparsity."""
        return replace(self, sparsity=sparsity)

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of the tiles that are kept or dropped as one."""
        return self.rows, self.cols

    @property
    def panel(self) -> int:
        """Rows of a panel in storage: the highest panel that divides a tile."""
        return panel_for(self.rows)

    def check_shape(self, rows: int, cols: int, who: str = "weight") -> None:
        """Raise PatternError unless both sizes of the weight are multiples of the tile's sizes."""
        rows, cols = check_sizes(rows, cols, who)
        fitting = Block(math.gcd(rows, self.rows), math.gcd(cols, self.cols), self.sparsity)
        if cols % self.cols:
            raise misfit(who, "in_features", cols, self.cols, self, fitting)
        if rows % self.rows:
            raise misfit(who, "out_features", rows, self.rows, self, fitting)

    def count(self, rows: int, cols: int) -> int:
        """Exact number of kept entries: kept tiles (halves to even) times entries per tile.

        At least one tile is kept, unless the density is 0.
        """
        self.check_shape(rows, cols)
        tiles = (rows // self.rows) * (cols // self.cols)
        return self.rows * self.cols * kept_slots(tiles, self.density)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The rows of a panel, the sizes of a tile, and the bits of the sparsity."""
        return self.panel, self.rows, self.cols, _bits(self.sparsity)

    @classmethod
    def _of_numbers(cls, numbers: tuple[int, ...]) -> "Block":
        """Return the pattern of its `numbers`."""
        return cls(numbers[1], numbers[2], _float(numbers[3]))


def _bits(number: float) -> int:
    bits: int = struct.unpack("<q", struct.pack("<d", number))[0]
    return bits


def _float(bits: int) -> float:
    number: float = struct.unpack("<d", struct.pack("<q", bits))[0]
    return number
