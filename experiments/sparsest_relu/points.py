"""Points to fit with the sparsest network: of one input, or of several."""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gossamer import DataError

__all__ = ["Points", "load_points"]


class Points(NamedTuple):
    """What a network is to pass through.

    Attributes:
        name: as it was asked for.
        x: float32 [points, inputs].
        y: float32 [points].
    """

    name: str
    x: Tensor
    y: Tensor

    @property
    def univariate(self) -> bool:
        """Whether there is one input: its bias, and a straight line beside it, are free."""
        return self.x.shape[1] == 1

    @property
    def variance(self) -> float:
        """Variance of y, the mean squared error of a constant."""
        return float(self.y.var(correction=0))


def load_points(name: str) -> Points:
    """Make or read a data set.

    Args:
        name: ``"peak"`` (six points, a peak that is a plateau: three neurons suffice), ``"sine"``
            (twelve points of a sine: bends of several points each), ``"random"`` or
            ``"random:SEED"`` (ten Gaussian points in 50 dimensions, Gaussian values), or a CSV file
            without a heading: inputs, then the value.

    Returns:
        The points.

    Raises:
        DataError: an unknown name, a file that cannot be read, fewer than two points, two at one
            place, or values that are not finite.

    >>> load_points("peak").y
    tensor([0., 0., 1., 1., 0., 0.])
    """
    if name == "peak":
        return Points(name, torch.arange(-2.0, 4.0)[:, None], torch.tensor([0, 0, 1, 1, 0, 0.0]))
    if name == "sine":
        x = torch.arange(12.0)
        return Points(name, x[:, None] / 4, torch.sin(2 * math.pi * x / 11))
    kind, _, seed = name.partition(":")
    if kind == "random" and (seed == "" or seed.isdecimal()):
        generator = torch.Generator().manual_seed(int(seed or 0))
        x = torch.randn(10, 50, generator=generator)
        return Points(name, x, torch.randn(10, generator=generator))
    return _read(name)


def _read(name: str) -> Points:
    path = Path(name)
    if not path.is_file():
        raise DataError(
            f"no data {name!r}; peak, sine, random, random:SEED or a CSV file is needed"
        )
    try:
        rows = [
            [float(cell) for cell in line.split(",")]
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
        table = torch.tensor(rows, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{name} is no table of numbers ({error}); write a line per point, inputs then value, "
            "separated by commas, without a heading"
        ) from error
    if table.ndim != 2 or len(table) < 2 or table.shape[1] < 2:
        raise DataError(
            f"{name} has {len(rows)} lines of {len(rows[0]) if rows else 0} numbers; at least two "
            "lines of at least two are needed"
        )
    if not bool(table.isfinite().all()):
        raise DataError(f"{name} holds a value that is not finite; remove it")
    if len({tuple(inputs) for inputs in table[:, :-1].tolist()}) < len(table):
        raise DataError(f"{name} has two lines with the same inputs; keep one")
    return Points(path.name, table[:, :-1].contiguous(), table[:, -1].contiguous())
