"""The three verbs on torch tensors and NumPy arrays, differentiable any number of times."""

from gossamer.ops.verbs import sddmm, spmm, spmm_t

__all__ = ["sddmm", "spmm", "spmm_t"]
