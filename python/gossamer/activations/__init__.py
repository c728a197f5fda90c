"""Sparse activations: feed-forward networks that compute only what a ReLU gate leaves alive.

`gossamer.nn.ActivationSparseFFN` is the layer; the functions are here.
"""

from gossamer.activations.functions import Counts, dense_feed_forward, sparse_feed_forward
from gossamer.activations.gate import GateForm, LiveGate, float_gate, int8_gate
from gossamer.activations.memory import GradientMemory
from gossamer.activations.passes import Activation, Options, Weights
from gossamer.activations.switch import Costs, costs_of
from gossamer.backend.activations import has_fast_int8

__all__ = [
    "Activation",
    "Costs",
    "Counts",
    "GateForm",
    "GradientMemory",
    "LiveGate",
    "Options",
    "Weights",
    "costs_of",
    "dense_feed_forward",
    "float_gate",
    "has_fast_int8",
    "int8_gate",
    "sparse_feed_forward",
]
