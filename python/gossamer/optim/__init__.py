"""Proximal optimizers, Muon, averages and soups of sparse weights, sharpness-aware methods.

Each step of a proximal optimizer is a gradient step, then the penalty's proximal operator.
"""

from gossamer.optim import sharpness
from gossamer.optim.accelerated import AcceleratedProxGradient
from gossamer.optim.adamw import ProxAdamW
from gossamer.optim.averaging import AveragedModel, follow_masks
from gossamer.optim.half_space import HalfSpace
from gossamer.optim.muon import Muon
from gossamer.optim.phases import PruneRetrain
from gossamer.optim.prox_linear import ProxLinear
from gossamer.optim.proximal import Sparsity
from gossamer.optim.sgd import ProxSGD
from gossamer.optim.soups import Soup, barrier, greedy_soup, soup

__all__ = [
    "AcceleratedProxGradient",
    "AveragedModel",
    "HalfSpace",
    "Muon",
    "ProxAdamW",
    "ProxLinear",
    "ProxSGD",
    "PruneRetrain",
    "Soup",
    "Sparsity",
    "barrier",
    "follow_masks",
    "greedy_soup",
    "sharpness",
    "soup",
]
