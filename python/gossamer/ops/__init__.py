"""The three verbs and the gradient sampler, differentiable, on torch tensors and NumPy arrays."""

from gossamer.ops import torch_calls  # registers them
from gossamer.ops.expansion import expand
from gossamer.ops.gradient_sampling import MvueMethod, mvue, mvue_product
from gossamer.ops.sparsified import sparsified_op, sparsify_tensor
from gossamer.ops.verbs import sddmm, spmm, spmm_t

__all__ = [
    "MvueMethod",
    "expand",
    "mvue",
    "mvue_product",
    "sddmm",
    "sparsified_op",
    "sparsify_tensor",
    "spmm",
    "spmm_t",
    "torch_calls",
]
