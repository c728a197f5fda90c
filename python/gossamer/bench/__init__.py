"""`gossamer bench`: the verbs, the layer and the train step, measured beside their rivals."""

from gossamer.bench.run import main

__all__ = ["main"]
