"""POT's namespace `ot.bregman`."""

from gossamer.ot.pot_backend.barycenters import (
    barycenter,
    barycenter_debiased,
    free_support_sinkhorn_barycenter,
)
from gossamer.ot.pot_backend.samples import (
    empirical_sinkhorn,
    empirical_sinkhorn2,
    empirical_sinkhorn_divergence,
)
from gossamer.ot.pot_backend.sweeps import sinkhorn, sinkhorn2

__all__ = [
    "barycenter",
    "barycenter_debiased",
    "empirical_sinkhorn",
    "empirical_sinkhorn2",
    "empirical_sinkhorn_divergence",
    "free_support_sinkhorn_barycenter",
    "sinkhorn",
    "sinkhorn2",
]
