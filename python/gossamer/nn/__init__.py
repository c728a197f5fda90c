"""Layers, and the surgery that puts them into a model and takes them out again."""

from gossamer.nn.adapters import AdaptedLinear, LowRankAdapter
from gossamer.nn.linear import SparseLinear
from gossamer.nn.master import MasterLinear
from gossamer.nn.router import Routing, SinkhornRouter, TopKRouter
from gossamer.nn.summary import Summary, summary
from gossamer.nn.surgery import densify, sparsify

__all__ = [
    "AdaptedLinear",
    "LowRankAdapter",
    "MasterLinear",
    "Routing",
    "SinkhornRouter",
    "SparseLinear",
    "Summary",
    "TopKRouter",
    "densify",
    "sparsify",
    "summary",
]
