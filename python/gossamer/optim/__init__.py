"""Proximal optimizers: each step is a gradient step, then the penalty's proximal operator."""

from gossamer.optim.accelerated import AcceleratedProxGradient
from gossamer.optim.adamw import ProxAdamW
from gossamer.optim.half_space import HalfSpace
from gossamer.optim.proximal import Sparsity
from gossamer.optim.sgd import ProxSGD

__all__ = ["AcceleratedProxGradient", "HalfSpace", "ProxAdamW", "ProxSGD", "Sparsity"]
