"""Patterns: which entries of a weight may be kept. Value objects without torch.

A weight is `[out_features, in_features]`. `NM` keeps n of every m consecutive columns; `GroupedNM`
also uses every choice of columns equally often; `Unstructured` and `Block` keep the best entries or
tiles. With `vector` = V, V consecutive rows share their columns. `gossamer.masks` selects entries.
"""

import math
import numbers
import operator
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeAlias

from gossamer.errors import DTypeError, PatternError, ShapeError

__all__ = ["NM", "Block", "GroupedNM", "Pattern", "Unstructured", "parse_pattern"]

VECTORS = (1, 4, 8)
MAX_M = 64
MAX_CHUNK = 2**15

_FORMS = (
    '"2:4" (N:M), "2:4:v4" (N:M, 4 rows share their columns), "2:4:g8" (n:m:g), '
    '"90%" (unstructured), "90%:v4" (unstructured, 4 rows share their columns), "block 16x16 75%"'
)
_NM_TEXT = re.compile(r"(-?\d{1,9})\s*:\s*(-?\d{1,9})(?:\s*:\s*([vg])(\d{1,9}))?", re.ASCII)
_PERCENT = r"(-?(?:\d{1,9}(?:\.\d*)?|\.\d+))\s*%"
_UNSTRUCTURED_TEXT = re.compile(_PERCENT + r"(?:\s*:\s*v(\d{1,9}))?", re.ASCII)
_BLOCK_TEXT = re.compile(r"block\s*(\d{1,9})\s*x\s*(\d{1,9})\s+" + _PERCENT, re.ASCII)


class _OfGroups:
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


@dataclass(frozen=True)
class NM(_OfGroups):
    """Keep exactly n of every m consecutive columns of a row.

    Args:
        n: Entries kept per group, 1 <= n <= m.
        m: Columns per group, at most 64.
        vector: Rows that share one choice of columns: 1, 4 or 8.

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

    def __post_init__(self) -> None:
        for field in ("n", "m", "vector"):
            object.__setattr__(self, field, as_integer(getattr(self, field), f"NM got {field}"))
        if not 1 <= self.n <= self.m <= MAX_M:
            raise PatternError(
                f"NM got n={self.n}, m={self.m}; 1 <= n <= m <= {MAX_M} must hold: "
                "write the entries kept first and the group second, for example NM(2, 4)"
            )
        _check_vector(self.vector, "NM")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}{_vector_text(self.vector)}"

    @property
    def panel(self) -> int:
        """Rows that share one list of columns in storage."""
        return self.vector

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
            raise _misfit(who, "in_features", cols, self.m, self, self._narrower(rows, cols))
        _check_rows(rows, self, NM(self.n, self.m, _vector_for(rows, self.vector)), who)

    def count(self, rows: int, cols: int) -> int:
        """Exact number of kept entries of a `[rows, cols]` weight: rows * cols * n / m."""
        self.check_shape(rows, cols)
        return rows * (cols // self.m) * self.n

    def _narrower(self, rows: int, cols: int) -> "Pattern":
        """Return a pattern of this density that fits `cols`: smaller groups, else unstructured."""
        vector = _vector_for(rows, self.vector)
        for m in range(self.m - 1, 0, -1):
            if cols % m == 0 and self.n * m % self.m == 0:
                return NM(self.n * m // self.m, m, vector)
        return Unstructured(round(self.sparsity, 4), vector)


# --8<-- [start:pattern]
@dataclass(frozen=True)
class Unstructured:
    """Keep the best entries of the whole weight.

    Args:
        sparsity: Dropped share of the entries, in [0, 1].
        vector: Rows that share one list of columns: 1, 4 or 8.

    Raises:
        PatternError, DTypeError: A number is out of range, or has another type.

    Example:
        >>> pattern = Unstructured(0.975)
        >>> str(pattern), pattern.count(10, 100)
        ('97.5%', 25)
    """

    sparsity: float
    vector: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", unit_interval(self.sparsity, "Unstructured"))
        object.__setattr__(self, "vector", as_integer(self.vector, "Unstructured got vector"))
        _check_vector(self.vector, "Unstructured")

    def __str__(self) -> str:
        return f"{_percent(self.sparsity)}{_vector_text(self.vector)}"

    @property
    def density(self) -> float:
        """Kept share of the entries, 1 - sparsity."""
        return 1.0 - self.sparsity

    @property
    def panel(self) -> int:
        """Rows that share one list of columns in storage."""
        return self.vector

    def check_shape(self, rows: int, cols: int, who: str = "weight") -> None:
        """Raise PatternError unless rows % vector == 0."""
        rows, cols = check_sizes(rows, cols, who)
        _check_rows(rows, self, Unstructured(self.sparsity, _vector_for(rows, self.vector)), who)

    def count(self, rows: int, cols: int) -> int:
        """Exact number of kept entries: V * round(rows * cols / V * density), halves to even."""
        self.check_shape(rows, cols)
        return self.vector * round(rows * cols // self.vector * self.density)

    # --8<-- [end:pattern]


@dataclass(frozen=True)
class Block:
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
        return f"block {self.rows}x{self.cols} {_percent(self.sparsity)}"

    @property
    def density(self) -> float:
        """Kept share of the entries, 1 - sparsity."""
        return 1.0 - self.sparsity

    @property
    def panel(self) -> int:
        """Rows that share one list of columns in storage: the widest vector that divides a tile."""
        return _vector_for(self.rows, max(VECTORS))

    def check_shape(self, rows: int, cols: int, who: str = "weight") -> None:
        """Raise PatternError unless both sizes of the weight are multiples of the tile's sizes."""
        rows, cols = check_sizes(rows, cols, who)
        fitting = Block(math.gcd(rows, self.rows), math.gcd(cols, self.cols), self.sparsity)
        if cols % self.cols:
            raise _misfit(who, "in_features", cols, self.cols, self, fitting)
        if rows % self.rows:
            raise _misfit(who, "out_features", rows, self.rows, self, fitting)

    def count(self, rows: int, cols: int) -> int:
        """Exact number of kept entries: kept tiles (halves to even) times entries per tile."""
        self.check_shape(rows, cols)
        tiles = (rows // self.rows) * (cols // self.cols)
        return self.rows * self.cols * round(tiles * self.density)


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
    vector = panel = 1

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


Pattern: TypeAlias = NM | Unstructured | Block | GroupedNM


def parse_pattern(p: str | Pattern) -> Pattern:
    """Return the pattern that a text describes; a pattern is returned unchanged.

    Args:
        p: "2:4", "2:4:v4", "2:4:g8", "97.5%", "90%:v4", "block 16x16 75%", or a pattern; any case.

    Raises:
        PatternError: The text has none of these forms, or a number in it is out of range.
        DTypeError: `p` is neither a text nor a pattern.

    Example:
        >>> parse_pattern("2:4:v4")
        NM(n=2, m=4, vector=4)
    """
    if isinstance(p, NM | Unstructured | Block | GroupedNM):
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
        if found := _BLOCK_TEXT.fullmatch(text):
            return Block(int(found[1]), int(found[2]), float(Decimal(found[3]) / 100))
    except PatternError as error:
        raise PatternError(f"parse_pattern got {p!r:.80}: {error!s:.400}") from None
    raise PatternError(
        f"parse_pattern got {p!r:.80}; the text of a pattern must have one of the known forms: "
        f"write one of {_FORMS}"
    )


def check_sizes(rows: int, cols: int, who: str) -> tuple[int, int]:
    """Return both sizes as int; DTypeError if not an integer, ShapeError if negative."""
    rows, cols = as_integer(rows, f"{who} got rows"), as_integer(cols, f"{who} got cols")
    if rows < 0 or cols < 0:
        raise ShapeError(
            f"{who} got shape [{rows}, {cols}]; sizes must not be negative: "
            "pass [out_features, in_features]"
        )
    return rows, cols


def unit_interval(sparsity: object, who: str) -> float:
    """Return the sparsity as float; DTypeError if not a number, PatternError outside [0, 1]."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, numbers.Real):
        raise DTypeError(
            f"{who} got sparsity={sparsity!r}; sparsity must be a number: "
            "pass the dropped share, for example 0.9"
        )
    if not 0 <= sparsity <= 1:  # type: ignore[operator]  # typeshed: Real compares to nothing
        raise PatternError(
            f"{who} got sparsity={sparsity}; sparsity must be in [0, 1]: "
            "pass the dropped share, for example 0.9 to keep a tenth"
        )
    return abs(float(sparsity))  # turns -0.0 into 0.0, whose text is "0%"


def as_integer(value: object, what: str) -> int:
    """Return an integer (NumPy's too) as int; DTypeError for anything else, also for a bool."""
    if not isinstance(value, bool):
        try:
            return operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
    raise DTypeError(f"{what}={value!r}; it must be an integer: pass a whole number such as 4")


def _check_vector(vector: int, who: str) -> None:
    if vector not in VECTORS:
        raise PatternError(
            f"{who} got vector={vector}; vector must be 1, 4 or 8: choose how many rows share "
            "their columns"
        )


def _check_rows(rows: int, pattern: NM | Unstructured, fitting: Pattern, who: str) -> None:
    if rows % pattern.vector:
        raise _misfit(who, "out_features", rows, pattern.vector, pattern, fitting)


def _vector_for(rows: int, most: int) -> int:
    return next(v for v in reversed(VECTORS) if v <= most and rows % v == 0)


def _misfit(
    who: str, name: str, size: int, unit: int, pattern: Pattern, fitting: Pattern
) -> PatternError:
    return PatternError(
        f"{who} got {name}={size} with pattern {pattern}; {name} must be a multiple of {unit}: "
        f"choose {fitting}, pad to {-(-size // unit) * unit}, "
        "or exclude the layer (exclude=...)"
    )


def _vector_text(vector: int) -> str:
    return "" if vector == 1 else f":v{vector}"


def _percent(sparsity: float) -> str:
    text = f"{Decimal(repr(sparsity)) * 100:f}"  # as float, 0.07 * 100 is 7.000000000000001
    return (text.rstrip("0").rstrip(".") if "." in text else text) + "%"
