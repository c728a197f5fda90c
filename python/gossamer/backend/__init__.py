"""The compiled kernels, one file per topic; the only package that imports the compiled module."""

from gossamer.backend.products import (
    Layout,
    Structure,
    Transposed,
    coordinates,
    encode,
    gather,
    info,
    isa,
    isas,
    scatter,
    sddmm,
    spmm,
    spmm_t,
    transpose,
    use_isa,
    validate,
)

__all__ = [
    "Layout",
    "Structure",
    "Transposed",
    "coordinates",
    "encode",
    "gather",
    "info",
    "isa",
    "isas",
    "scatter",
    "sddmm",
    "spmm",
    "spmm_t",
    "transpose",
    "use_isa",
    "validate",
]
