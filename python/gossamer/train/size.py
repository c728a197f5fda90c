"""Size of a model in training: its density, its bytes, and whether a machine can hold it."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import nn

from gossamer.errors import ArgumentError
from gossamer.nested import tensors
from gossamer.nn import MaskedLayer, summary
from gossamer.recipes import Recipe
from gossamer.train.config import TrainConfig
from gossamer.train.model import GPTConfig, dense_parameters
from gossamer.train.spec import RunSpec


def check_memory(config: TrainConfig, vocabulary: int) -> None:
    """Refuse a training that this machine's memory cannot hold.

    The count is from below: one dense model, and of one step the tokens, the logits and four
    activations per block.

    Args:
        config: configuration of the training.
        vocabulary: number of tokens.

    Raises:
        ArgumentError: the training needs more memory than there is.
    """
    routers = [r for name in config.runs if (r := RunSpec.parse(name).router) is not None]
    sizes = GPTConfig(
        vocabulary, config.context, config.width, config.depth, config.heads,
        experts=config.experts if routers else 1, router=routers[0] if routers else None,
    )  # fmt: skip
    tokens = config.tokens_per_step
    needed = 4 * dense_parameters(sizes)
    needed += tokens * (16 + 8 * vocabulary + 16 * config.width * config.depth)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ArgumentError(
            f"train got batch={config.batch}, context={config.context}, width={config.width}, "
            f"depth={config.depth}, which need more than {needed / 1e9:,.0f} GB; this machine has "
            f"{memory / 1e9:,.0f} GB: lower --batch, --context, --width or --depth"
        )


def check_threads(threads: int | None) -> None:
    """Refuse more threads than a machine starts without harm.

    Raises:
        ArgumentError: there are more than four for each processor, and more than 16.
    """
    most = max(16, 4 * (os.cpu_count() or 1))
    if threads is not None and threads > most:
        raise ArgumentError(
            f"train got threads={threads}; this machine has {os.cpu_count()} processors: choose "
            f"--threads up to {most}"
        )


def density_of(model: nn.Module, recipe: Recipe, dense: int) -> float:
    """Return the used parameters of a prepared model over those of the dense model.

    Args:
        model: model prepared by `recipe`.
        recipe: recipe attached to the model.
        dense: number of parameters of the dense model.
    """
    kept, _ = kept_entries(recipe.layers)
    inside = {id(m.entries) for m in model.modules() if isinstance(m, MaskedLayer)}
    rest = sum(p.numel() for p in model.parameters() if id(p) not in inside)
    return (kept + rest) / dense


def state_bytes(model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe | None) -> int:
    """Return the bytes of parameters, gradients, moments, structure and the recipe's tensors."""
    total = summary(model, optimizer).total
    if recipe is not None:
        total += sum(tensor.nbytes for tensor in tensors(recipe.state))
    return total


def kept_entries(layers: Mapping[str, nn.Module]) -> tuple[int, int]:
    """Return the entries that prepared layers use in a forward pass, and all their entries."""
    kept = whole = 0
    for layer in layers.values():
        for module in layer.modules():
            if isinstance(module, MaskedLayer):
                kept += module.used_entries
                whole += module.out_features * module.in_features
    return kept, whole
