"""Which layers of a model gain from sparsity, before anything is trained.

`profile` runs a model once on an example, then times each of its linear layers, dense and sparse,
on inputs of the size that it received.
"""

from gossamer.profiling.measure import profile
from gossamer.profiling.report import LayerTimes, Profile

__all__ = ["LayerTimes", "Profile", "profile"]
