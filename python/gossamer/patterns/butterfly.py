"""The pattern `Butterfly`: blocks on a grid, so that every output can reach every input."""

import re
from dataclasses import dataclass

from gossamer.errors import PatternError
from gossamer.patterns.checks import (
    Vectored,
    as_integer,
    check_sizes,
    check_vector,
    vector_text,
)
from gossamer.patterns.registry import register_pattern

_TEXT = re.compile(r"butterfly\s*(\d{1,9})\s*/\s*(\d{1,9})(?:\s*:\s*v(\d{1,9}))?", re.ASCII)
_USUAL = 8


@register_pattern
@dataclass(frozen=True)
class Butterfly(Vectored):
    """Keep `kept` of the `grid` blocks of each row of a grid x grid of equal blocks.

    Block (r, c) is kept if c = r, or c = r xor 2^i for one of i < kept - 1. The grid is stretched
    over the weight, so blocks are as large as the weight's sizes say. The mask is a function of the
    shape: scores and weights play no part, and it never moves.

    Args:
        kept: blocks of each row of blocks, at least 1 and at most log2(grid) + 1.
        grid: blocks along each side, a power of 2.
        vector: rows of a panel, which divides the rows of a block: 1, 4, 8, 16, 32, 64 or 128.

    Raises:
        PatternError, DTypeError: a number is out of range, or has another type.

    Reference:
        Dao et al. 2022, "Pixelated Butterfly: Simple and Efficient Sparse training for Neural
        Network Models" (flat block butterfly: the first factors of a butterfly matrix, added up
        instead of multiplied).

    Example:
        >>> pattern = Butterfly(3, 16)
        >>> str(pattern), pattern.density, pattern.count(768, 3072)
        ('butterfly 3/16', 0.1875, 442368)
    """

    kept: int
    grid: int
    vector: int = _USUAL

    def __post_init__(self) -> None:
        for name in ("kept", "grid", "vector"):
            value = as_integer(getattr(self, name), f"Butterfly got {name}")
            object.__setattr__(self, name, value)
        check_vector(self.vector, "Butterfly")
        if self.grid < 1 or self.grid & (self.grid - 1):
            raise PatternError(
                f"Butterfly got grid={self.grid}; it must be a power of 2: choose 16, say"
            )
        if not 1 <= self.kept <= self.grid.bit_length():
            raise PatternError(
                f"Butterfly got kept={self.kept} with grid={self.grid}; it must be in "
                f"[1, {self.grid.bit_length()}]: choose a smaller one, or a larger grid"
            )

    def __str__(self) -> str:
        text = "" if self.vector == _USUAL else vector_text(self.vector) or ":v1"
        return f"butterfly {self.kept}/{self.grid}{text}"

    @classmethod
    def parse(cls, text: str) -> "Butterfly | None":
        """Read "butterfly 3/16" and "butterfly 3/16:v4"."""
        found = _TEXT.fullmatch(text)
        return cls(int(found[1]), int(found[2]), int(found[3] or _USUAL)) if found else None

    @property
    def density(self) -> float:
        """Kept share of the entries, kept / grid."""
        return self.kept / self.grid

    @property
    def sparsity(self) -> float:
        """Dropped share of the entries."""
        return (self.grid - self.kept) / self.grid

    @property
    def moves(self) -> bool:
        """No: there is one mask."""
        return False

    def check_shape(self, rows: int, cols: int, who: str = "weight") -> None:
        """Raise PatternError unless the grid divides both sizes, and blocks have whole panels."""
        rows, cols = check_sizes(rows, cols, who)
        for name, size, unit in (
            ("out_features", rows, self.grid * self.vector),
            ("in_features", cols, self.grid),
        ):
            if size % unit:
                raise PatternError(
                    f"{who} got {name}={size} with pattern {self}; {name} must be a multiple of "
                    f"{unit}: choose a smaller grid or vector, pad to {-(-size // unit) * unit}, "
                    "or exclude the layer (exclude=...)"
                )

    def count(self, rows: int, cols: int) -> int:
        """Exact number of kept entries."""
        self.check_shape(rows, cols)
        return rows * cols // self.grid * self.kept
