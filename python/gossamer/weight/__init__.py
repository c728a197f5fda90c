"""The sparse weight: trainable values, their structure, and its transpose."""

from gossamer.weight.checks import check_dense, check_dtype
from gossamer.weight.sparse_weight import SparseWeight
from gossamer.weight.transpose import Backward, Transpose

__all__ = ["Backward", "SparseWeight", "Transpose", "check_dense", "check_dtype"]
