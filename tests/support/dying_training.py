"""A training that ends its process: in a module that the other process can import."""

import os
from typing import Any

from experiments.compare_recipes.training import Training
from gossamer.train import TrainConfig


def dying(plan: TrainConfig, training: Training) -> dict[str, Any]:
    if training.seed == 1:
        os._exit(11)
    return training.row | {"val_loss": 1.0}
