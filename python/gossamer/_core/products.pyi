"""Layouts and the three verbs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

class Layout:
    def __init__(
        self, rows: int, cols: int, vector: int, block_cols: int, n: int = 0, m: int = 0
    ) -> None: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def vector(self) -> int: ...
    @property
    def block_cols(self) -> int: ...
    @property
    def n(self) -> int: ...
    @property
    def m(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    @property
    def panels(self) -> int: ...
    def as_ints(self) -> list[int]: ...

_Indices = npt.NDArray[np.uint8]
_Pointers = npt.NDArray[np.int32]

def encode(
    mask: Any, vector: int, n: int, m: int, /
) -> tuple[Layout, _Indices, _Pointers | None]: ...
def encode_csr(
    rows: int, cols: int, indptr: Any, indices: Any, vector: int, n: int, m: int, csc: bool, /
) -> tuple[Layout, _Indices, _Pointers | None, _Pointers]: ...
def decode_csr(
    layout: Layout, indices: Any, indptr: Any, /
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], _Pointers]: ...
def move(
    a: Layout,
    a_indices: Any,
    a_indptr: Any,
    b: Layout,
    b_indices: Any,
    b_indptr: Any,
    values: Sequence[Any],
    out: Sequence[Any],
    /,
) -> None: ...
def check_structure(layout: Layout, indices: Any, indptr: Any, /) -> None: ...
def check_tiles(layout: Layout, indices: Any, indptr: Any, rows: int, cols: int, /) -> None: ...
def gather(dense: Any, layout: Layout, indices: Any, indptr: Any, values: Any, /) -> None: ...
def scatter(values: Any, layout: Layout, indices: Any, indptr: Any, dense: Any, /) -> None: ...
def coordinates(layout: Layout, indices: Any, indptr: Any, /) -> npt.NDArray[np.int64]: ...
def transpose(
    layout: Layout, indices: Any, indptr: Any, t_indices: Any, t_perm: Any, /
) -> tuple[Layout, Any, _Pointers, Any]: ...

# `device` and `stream` say where a device runs the call; the CPU ignores them.
def spmm(
    x: Any,
    values: Any,
    layout: Layout,
    indices: Any,
    indptr: Any,
    bias: Any,
    y: Any,
    device: int = -1,
    stream: int = 0,
    /,
) -> None: ...
def spmm_t(
    grad_output: Any,
    values: Any,
    layout: Layout,
    indices: Any,
    indptr: Any,
    grad_input: Any,
    device: int = -1,
    stream: int = 0,
    /,
) -> None: ...
def spmm_t_packed(
    grad_output: Any,
    values: Any,
    layout: Layout,
    indices: Any,
    indptr: Any,
    t_layout: Layout,
    t_indices: Any,
    t_indptr: Any,
    perm: Any,
    grad_input: Any,
    device: int = -1,
    stream: int = 0,
    /,
) -> None: ...
def sddmm(
    grad_output: Any,
    x: Any,
    layout: Layout,
    indices: Any,
    indptr: Any,
    grad_values: Any,
    device: int = -1,
    stream: int = 0,
    /,
) -> None: ...

# `geometry`: kernel, stride, padding in front and dilation of three dimensions, and groups.
def convolve(
    x: Any,
    values: Any,
    layout: Layout,
    indices: Any,
    indptr: Any,
    bias: Any,
    geometry: Sequence[int],
    y: Any,
    device: int = -1,
    stream: int = 0,
    /,
) -> None: ...
def convolve_input(
    grad_output: Any,
    values: Any,
    layout: Layout,
    indices: Any,
    indptr: Any,
    t_layout: Layout | None,
    t_indices: Any,
    t_indptr: Any,
    perm: Any,
    geometry: Sequence[int],
    grad_input: Any,
    device: int = -1,
    stream: int = 0,
    /,
) -> None: ...
def convolve_weight(
    grad_output: Any,
    x: Any,
    layout: Layout,
    indices: Any,
    indptr: Any,
    geometry: Sequence[int],
    grad_values: Any,
    device: int = -1,
    stream: int = 0,
    /,
) -> None: ...
