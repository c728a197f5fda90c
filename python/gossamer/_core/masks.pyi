"""Selections of masks."""

from typing import Any

import numpy as np
import numpy.typing as npt

from gossamer._core.products import Layout

def select(layout: Layout, shared: int, weight: Any, values: Any, indices: Any, /) -> None: ...
def add_pruned(
    layout: Layout, indices: Any, indptr: Any, out: Any, source: Any, alpha: float, /
) -> None: ...
def difference(
    a: Layout, a_indices: Any, a_indptr: Any, b: Layout, b_indices: Any, b_indptr: Any, /
) -> int: ...
def transposable(
    weight: Any, n: int, m: int, method: int, sharpness: float, iterations: int, mask: Any, /
) -> None: ...
def sample(
    x: Any,
    layout: Layout,
    approximate: bool,
    seed: int,
    step: int,
    layer: int,
    values: Any,
    indices: Any,
    /,
) -> None: ...
def draw_groups(
    rows: int, cols: int, vector: int, n: int, m: int, seed: int, /
) -> tuple[Layout, npt.NDArray[np.uint8], None]: ...
def draw_entries(
    rows: int, cols: int, vector: int, entries: int, seed: int, /
) -> tuple[Layout, npt.NDArray[np.uint8], npt.NDArray[np.int32]]: ...
def draw_tiles(
    rows: int, cols: int, vector: int, high: int, wide: int, tiles: int, seed: int, /
) -> tuple[Layout, npt.NDArray[np.uint8], npt.NDArray[np.int32]]: ...
def double_prune(
    layout: Layout, indices: Any, indptr: Any, values: Any, n: int, m: int, /
) -> tuple[Layout, npt.NDArray[np.uint8], npt.NDArray[np.int32], npt.NDArray[np.int32]]: ...
def drop(
    layout: Layout, indices: Any, indptr: Any, values: Any, count: int, stays: Any, /
) -> None: ...
def grow_random(
    layout: Layout, indices: Any, indptr: Any, stays: Any, seed: int, /
) -> tuple[Layout, npt.NDArray[np.uint8], npt.NDArray[np.int32] | None]: ...
def spread_tiles(
    layout: Layout, indices: Any, indptr: Any, vector: int, high: int, wide: int, /
) -> tuple[Layout, npt.NDArray[np.uint8], npt.NDArray[np.int32]]: ...

class GrowLargest:
    def __init__(self, layout: Layout, indices: Any, indptr: Any, stays: Any, /) -> None: ...
    def offer(self, scores: Any, /) -> None: ...
    def finish(
        self,
    ) -> tuple[Layout, npt.NDArray[np.uint8], npt.NDArray[np.int32] | None]: ...
