"""SynFlow: scores of an untrained network without data, in rounds.

    R = sum of f(1; |theta|),   score = |w dR/d|w||

Each round drops the smallest scores of all layers together; the kept share falls by the same factor
from round to round. The sum of a layer's scores is the same in every layer, so that in many rounds
no layer loses all its entries, as it may in one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gossamer.arguments import Share, Steps, check
from gossamer.errors import ArgumentError
from gossamer.pruning.calibration import called
from gossamer.pruning.ranking import kept_globally
from gossamer.pruning.scores import gradients, oriented, weights_of

__all__ = ["synflow"]

Choose = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


def synflow(
    model: nn.Module,
    example: Tensor,
    sparsity: Share,
    rounds: Steps = 100,
    choose: Choose | None = None,
) -> dict[str, Tensor]:
    """Return the scores of the last round, 0 at what was dropped.

    Cut by them with `global_shares` at the same sparsity. The model runs in float64 and evaluation
    mode on one input of ones, with the magnitudes of all its parameters; what a BatchNorm subtracts
    is added. It suits networks of linear layers, convolutions, BatchNorm, pooling and ReLU; a
    softmax or a LayerNorm at the end makes the sum of the outputs a constant. The model does not
    change.

    Args:
        model: any module that takes one real tensor.
        example: [batch, ...], of which the shape of one sample counts.
        sparsity: dropped share of all weights at the end, in [0, 1].
        rounds: prunings; 1 ranks once.
        choose: a function of the scores by name, whose results are ranked instead: such as
            `drawn`, for masks that are drawn by the scores.

    Raises:
        ArgumentError: there is no layer, the model cannot be called so, its output depends on no
            weight, or the scores overflow.

    Reference:
        Tanaka et al. 2020, "Pruning neural networks without any data by iteratively conserving
        synaptic flow", algorithm 1.

    Example:
        >>> import gossamer
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> scores = synflow(model, torch.zeros(1, 8), 0.75)
        >>> sum(int((score > 0).sum()) for score in scores.values())
        48
    """
    check(synflow, locals())
    if not (example.is_floating_point() and example.dim() and len(example)):
        raise ArgumentError(
            f"synflow got an example {list(example.shape)} of {example.dtype}; give real numbers "
            "[batch, ...], of at least one sample"
        )
    weights = weights_of(model, "synflow")
    ones = torch.ones_like(example[:1], dtype=torch.float64)
    state: dict[str, Tensor] = {}
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        real = value.detach().double().abs() if value.is_floating_point() else value.detach()
        state[name] = -real if name.endswith("running_mean") else real
    names = {id(p): name for name, p in model.named_parameters()}
    own = {layer: names[id(p)] for layer, p in weights.items()}
    masks = {layer: torch.ones_like(p, dtype=torch.bool) for layer, p in weights.items()}
    total = sum(mask.numel() for mask in masks.values())
    scores: dict[str, Tensor] = {}
    with _evaluating(model):
        for number in range(rounds):
            live = {
                layer: (state[own[layer]] * mask).requires_grad_() for layer, mask in masks.items()
            }
            used = state | {own[layer]: w for layer, w in live.items()}
            with torch.enable_grad():
                run = partial(functional_call, model, used)
                y = called(model, (ones,), "synflow", lambda x, run=run: run((x,)))
                found = gradients(y.sum() if isinstance(y, Tensor) else y, live, "synflow")
            scores = {layer: (g * live[layer].detach()).abs() for layer, g in found.items()}
            if not all(bool(score.isfinite().all()) for score in scores.values()):
                raise ArgumentError(
                    "synflow: the scores overflow, as the magnitudes of a very deep network do; "
                    "scale its weights down first, or use snip"
                )
            kept = round(total * (1.0 - sparsity) ** ((number + 1) / rounds))
            ranked = scores if choose is None else choose(scores)
            masks = kept_globally(
                {
                    layer: ranked[layer].double().masked_fill(~masks[layer], -math.inf)
                    for layer in masks
                },
                kept,
            )
    return oriented(model, {layer: score * masks[layer] for layer, score in scores.items()})


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode, and put the mode of each module back."""
    before = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in before:
            module.training = mode
