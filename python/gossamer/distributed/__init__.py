"""Several processes: masks that must agree, and tensor-parallel layers.

Data parallelism is torch's own: DistributedDataParallel and `fully_shard` take sparse models as
they are, because values are an ordinary Parameter.
"""

from gossamer.distributed.structure import broadcast_structure, check_same_structure

__all__ = ["broadcast_structure", "check_same_structure"]
