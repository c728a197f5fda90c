"""Sparse codes: top-k selection and decoding, autoencoders, unfolded solvers, regularisers."""

from gossamer.codes.autoencoder import Losses, TopKAutoencoder, geometric_median
from gossamer.codes.core import Code, dots, prefix_gradients, scatter, scatter_touched
from gossamer.codes.functions import decode, encode, prefix_errors, selected, top_k
from gossamer.codes.losses import (
    activation_imbalance,
    cauchy_schwarz,
    explained_variance,
    flops_penalty,
    hierarchical_loss,
)
from gossamer.codes.unfolded import IHT, ISTA, LISTA, hard_top_k, soft_threshold

__all__ = [
    "IHT",
    "ISTA",
    "LISTA",
    "Code",
    "Losses",
    "TopKAutoencoder",
    "activation_imbalance",
    "cauchy_schwarz",
    "decode",
    "dots",
    "encode",
    "explained_variance",
    "flops_penalty",
    "geometric_median",
    "hard_top_k",
    "hierarchical_loss",
    "prefix_errors",
    "prefix_gradients",
    "scatter",
    "scatter_touched",
    "selected",
    "soft_threshold",
    "top_k",
]
