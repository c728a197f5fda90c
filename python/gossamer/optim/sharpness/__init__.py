"""Sharpness-aware training: gradients at weights that are moved for the time of a pass.

model = gossamer.sparsify(model, "90%")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
gossamer.optim.sharpness.SAM(rho=0.05).attach(model, optimizer)  # then optimizer.step(closure)

Sparse weights move at their kept entries only.
"""

from gossamer.optim.sharpness.attached import Sharpness
from gossamer.optim.sharpness.compression import CrAM
from gossamer.optim.sharpness.momentum import MSAM
from gossamer.optim.sharpness.penalties import GAM, GradientPenalty
from gossamer.optim.sharpness.perturbations import ASAM, FSAM, SAM, SAMON, AdaSAP
from gossamer.optim.sharpness.trajectory import MESA, SAF
from gossamer.optim.sharpness.trust import TRAM

__all__ = [
    "ASAM",
    "FSAM",
    "GAM",
    "MESA",
    "MSAM",
    "SAF",
    "SAM",
    "SAMON",
    "TRAM",
    "AdaSAP",
    "CrAM",
    "GradientPenalty",
    "Sharpness",
]
