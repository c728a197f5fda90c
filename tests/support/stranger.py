"""The pattern of `examples/band.py`, loaded once, and others that return wrong masks."""

import functools
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gossamer.patterns import Pattern, register_pattern, register_sparsifier

FILE = Path(__file__).parents[2] / "examples" / "band.py"


@functools.cache
def band() -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("band_example", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["band_example"] = module
    spec.loader.exec_module(module)
    return module


@register_pattern
@dataclass(frozen=True)
class Tiled(Pattern):
    """Whole columns of `panel` rows, half of them in each part of 8 columns: tile, panel, group."""

    high: int

    @property
    def sparsity(self) -> float:
        return 0.5

    @property
    def tile(self) -> tuple[int, int]:
        return self.high, 1

    @property
    def panel(self) -> int:
        return self.high

    @property
    def group(self) -> tuple[int, int]:
        return 4, 8

    def __str__(self) -> str:
        return f"tiled {self.high}"

    @classmethod
    def parse(cls, text: str) -> "Tiled | None":
        return cls(int(text[6:])) if text.startswith("tiled ") else None

    def check_shape(self, rows: int, cols: int, who: str = "weight") -> None:
        if rows % self.high or cols % 8:
            self.refuse(f"place in {who} [{rows}, {cols}]", "pad it")

    def count(self, rows: int, cols: int) -> int:
        return rows * cols // 2


@register_sparsifier(Tiled)
def best_halves(score: Tensor, pattern: Tiled) -> Tensor:
    best = score.reshape(-1, 8).argsort(dim=1, descending=True, stable=True)[:, :4]
    kept = torch.zeros(score.numel() // 8, 8, dtype=torch.bool)
    return kept.scatter(1, best, True).reshape(score.shape)


@register_pattern
@dataclass(frozen=True)
class Diagonals(Pattern):
    """Whole wrapped diagonals of a square weight, the best of them: sparsity can be adjusted."""

    sparsity: float
    adjustable = True

    def __str__(self) -> str:
        return f"diagonals {self.sparsity!r}"

    @classmethod
    def parse(cls, text: str) -> "Diagonals | None":
        return cls(float(text[10:])) if text.startswith("diagonals ") else None

    def check_shape(self, rows: int, cols: int, who: str = "weight") -> None:
        if rows != cols:
            self.refuse(f"place in {who} [{rows}, {cols}]", "it must be square")

    def count(self, rows: int, cols: int) -> int:
        return rows * max(round(cols * self.density), 1)

    def at_sparsity(self, sparsity: float) -> "Diagonals":
        return Diagonals(sparsity)


@register_sparsifier(Diagonals)
def best_diagonals(score: Tensor, pattern: Diagonals) -> Tensor:
    size = len(score)
    columns = (torch.arange(size)[:, None] + torch.arange(size)) % size
    totals = score.nan_to_num().gather(1, columns).sum(0)
    best = totals.argsort(descending=True, stable=True)[: pattern.count(size, size) // size]
    return torch.zeros(size, size, dtype=torch.bool).scatter(1, columns[:, best], True)


@register_pattern
@dataclass(frozen=True)
class Lower(Pattern):
    """The lower triangle: one mask, which cannot move."""

    moves = False

    def __str__(self) -> str:
        return "lower triangle"

    @classmethod
    def parse(cls, text: str) -> "Lower | None":
        return cls() if text == "lower triangle" else None

    def check_shape(self, rows: int, cols: int, who: str = "weight") -> None:
        if rows != cols:
            self.refuse(f"place in {who} [{rows}, {cols}]", "it must be square")

    def count(self, rows: int, cols: int) -> int:
        return rows * (rows + 1) // 2


@register_sparsifier(Lower)
def lower_triangle(score: Tensor, pattern: Lower) -> Tensor:
    return torch.ones(score.shape, dtype=torch.bool).tril()


def _raises(score: Tensor, pattern: Any) -> Tensor:
    raise KeyError("a slip")


WRONG = {
    "raises": _raises,
    "nothing": lambda score, pattern: None,
    "numbers": lambda score, pattern: score,
    "array": lambda score, pattern: (score > 0).numpy(),
    "shape": lambda score, pattern: best_halves(score, pattern)[:-1],
    "transposed": lambda score, pattern: best_halves(score, pattern).t(),
    "device": lambda score, pattern: best_halves(score, pattern).to("meta"),
    "too few": lambda score, pattern: torch.zeros(score.shape, dtype=torch.bool),
    "too many": lambda score, pattern: torch.ones(score.shape, dtype=torch.bool),
    "others each time": lambda score, pattern: best_halves(torch.rand(score.shape), pattern),
    "writes": lambda score, pattern: best_halves(score.zero_(), pattern)[:0],
}
"""Selections that break their contract, for `Tiled`."""
