"""Layers, and the surgery that inserts them into a model and removes them again."""

from gossamer.nn.activation_surgery import sparsify_activations
from gossamer.nn.layers.activation_sparse import ActivationSparseFFN
from gossamer.nn.layers.adapted import AdaptedLinear, LowRankAdapter
from gossamer.nn.layers.base import MaskedLayer
from gossamer.nn.layers.convolution import SparseConv1d, SparseConv2d, SparseConv3d
from gossamer.nn.layers.linear import SparseLinear
from gossamer.nn.layers.masked import MaskedLinear
from gossamer.nn.layers.parameter import SparseParameter
from gossamer.nn.layers.permuted import PermutedLinear
from gossamer.nn.layers.preserving import SPPLinear
from gossamer.nn.layers.subset import SubsetLinear
from gossamer.nn.parameter_groups import parameter_groups
from gossamer.nn.preserving import merge_spp, with_spp
from gossamer.nn.routing import Routing, SinkhornRouter, TopKRouter
from gossamer.nn.sparsifier import Sparsifier
from gossamer.nn.subset import merge_subset, train_subset
from gossamer.nn.summary import Summary, summary
from gossamer.nn.surgery import densify, sparsify

__all__ = [
    "ActivationSparseFFN",
    "AdaptedLinear",
    "LowRankAdapter",
    "MaskedLayer",
    "MaskedLinear",
    "PermutedLinear",
    "Routing",
    "SPPLinear",
    "SinkhornRouter",
    "SparseConv1d",
    "SparseConv2d",
    "SparseConv3d",
    "SparseLinear",
    "SparseParameter",
    "Sparsifier",
    "SubsetLinear",
    "Summary",
    "TopKRouter",
    "densify",
    "merge_spp",
    "merge_subset",
    "parameter_groups",
    "sparsify",
    "sparsify_activations",
    "summary",
    "train_subset",
    "with_spp",
]
