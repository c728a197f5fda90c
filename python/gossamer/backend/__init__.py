"""The compiled kernels as functions on torch tensors and NumPy arrays, without autograd.

One file per topic; this is the only package that imports a compiled module. The products and the
structure are here; the other topics are `backend.masks`, `.prox`, `.codes` and `.transport`.
`register` lets another compiled module serve another device.
"""

from gossamer.backend.arrays import check_array
from gossamer.backend.change import move
from gossamer.backend.csr import Csr, decode_csr, encode_csr, expand_tiles
from gossamer.backend.products import sddmm, spmm, spmm_t
from gossamer.backend.registry import devices, register, unregister
from gossamer.backend.runtime import info, isa, isas, use_isa
from gossamer.backend.structure import (
    Layout,
    Structure,
    Transposed,
    coordinates,
    encode,
    gather,
    mask,
    scatter,
    transpose,
    validate,
)
from gossamer.errors import Unserved

__all__ = [
    "Csr",
    "Layout",
    "Structure",
    "Transposed",
    "Unserved",
    "check_array",
    "coordinates",
    "decode_csr",
    "devices",
    "encode",
    "encode_csr",
    "expand_tiles",
    "gather",
    "info",
    "isa",
    "isas",
    "mask",
    "move",
    "register",
    "scatter",
    "sddmm",
    "spmm",
    "spmm_t",
    "transpose",
    "unregister",
    "use_isa",
    "validate",
]
