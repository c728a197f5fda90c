"""Scores of weights by gradients and activations, for `gossamer.sparsify(score=...)`.

Each function returns the scores of all linear layers and convolutions of a model by name, in the
shapes of their weights; larger is kept. Nothing changes in the model: neither gradients, nor
statistics of normalisation layers, nor the mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from gossamer.arguments import check
from gossamer.errors import ArgumentError
from gossamer.nested import call_with
from gossamer.nn.layers.linear import is_conv1d
from gossamer.nn.layers.replacing import is_convolution
from gossamer.nn.left_dense import is_dense_linear
from gossamer.pruning.calibration import called

__all__ = ["drawn", "fisher", "grasp", "snip", "wanda"]

Loss = Callable[[nn.Module], Tensor]


def snip(model: nn.Module, loss: Loss) -> dict[str, Tensor]:
    """Return |g w|: what the loss would change, to first order, without a weight.

    Args:
        model: any module.
        loss: returns the loss of a model on some batch, 0-d.

    Raises:
        ArgumentError: there is no layer, or the loss does not depend on any weight.

    Reference:
        Lee, Ajanthan and Torr 2019, "SNIP: Single-shot Network Pruning based on Connection
        Sensitivity", equation 6, without the normalisation, which changes no order.

    Example:
        >>> import gossamer
        >>> model, x = nn.Sequential(nn.Linear(8, 4)), torch.randn(16, 8)
        >>> scores = snip(model, lambda model: model(x).square().mean())
        >>> gossamer.sparsify(model, "75%", score=scores)[0].weight.nnz
        8
    """
    check(snip, locals())
    weights = weights_of(model, "snip")
    with _untouched(model):
        grads = gradients(loss(model), weights, "snip")
    return oriented(model, {n: (g * weights[n].detach()).abs() for n, g in grads.items()})


def fisher(model: nn.Module, losses: Iterable[Loss]) -> dict[str, Tensor]:
    """Return g^2 w^2, g^2 the mean of squared gradients: what the loss would change without w.

    The squares are the diagonal of the empirical Fisher information; with one sample per loss it is
    the usual one.

    Args:
        model: any module.
        losses: each returns the loss of a model on its sample, 0-d.

    Raises:
        ArgumentError: there is no layer or no loss, or a loss does not depend on any weight.

    Reference:
        LeCun, Denker and Solla 1990, "Optimal Brain Damage", with the Fisher information for the
        Hessian, as Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher
        pruning", equation 9.
    """
    check(fisher, locals())
    weights = weights_of(model, "fisher")
    total = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
    count = 0
    with _untouched(model):
        for loss in losses:
            for name, g in gradients(loss(model), weights, "fisher").items():
                total[name] += g.float().square()
            count += 1
    if not count:
        raise ArgumentError("fisher got no losses; give at least one")
    squares = {name: t / count * weights[name].detach().float() ** 2 for name, t in total.items()}
    return oriented(model, squares)


def grasp(model: nn.Module, loss: Loss) -> dict[str, Tensor]:
    """Return w (H g): by how much the squared norm of the gradient would fall without a weight.

    Args:
        model: any module whose gradient can be differentiated again.
        loss: returns the loss of a model on some batch, 0-d.

    Raises:
        ArgumentError: there is no layer, or the loss does not depend on any weight.

    Reference:
        Wang, Zhang and Grosse 2020, "Picking Winning Tickets Before Training by Preserving Gradient
        Flow", equation 8, whose score -w (H g) is removed where it is largest.
    """
    check(grasp, locals())
    weights = weights_of(model, "grasp")
    # The other forms of attention cannot be differentiated twice.
    with _untouched(model), sdpa_kernel(SDPBackend.MATH):
        first = gradients(loss(model), weights, "grasp", again=True)
        fixed = {name: g.detach() for name, g in first.items()}
        along = torch.stack([(g * fixed[name]).sum() for name, g in first.items()]).sum()
        second = gradients(along, weights, "grasp")
    return oriented(model, {n: h * weights[n].detach() for n, h in second.items()})


@torch.no_grad()
def wanda(model: nn.Module, batches: Iterable[Any]) -> dict[str, Tensor]:
    """Return |w_ij| ||x_j||, x_j all values of the input that the weight multiplies.

    The published selection ranks within each output row: use it with an N:M pattern, or one layer
    at a time. Of a convolution x_j are the values of a channel at a tap.

    Args:
        model: any module.
        batches: what the model is called with: tensors, tuples of arguments, or dictionaries.

    Raises:
        ArgumentError: there is no layer or no batch, or the model cannot be called so.

    Reference:
        Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models",
        equation 1.
    """
    check(wanda, locals())
    weights = weights_of(model, "wanda")
    squares = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
    modules = dict(model.named_modules(remove_duplicate=False))
    hooks = [
        modules[name].register_forward_pre_hook(_adding(total), with_kwargs=True)
        for name, total in squares.items()
    ]
    count = 0
    try:
        with _untouched(model):
            for batch in batches:
                called(model, (batch,), "wanda", lambda given: call_with(model, given))
                count += 1
    finally:
        for hook in hooks:
            hook.remove()
    if not count:
        raise ArgumentError("wanda got no batches; give at least one")
    found = {name: w.detach().abs() * squares[name].sqrt() for name, w in weights.items()}
    return oriented(model, found)


def drawn(
    scores: Mapping[str, Tensor], generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Return scores whose largest entries are a random draw with probabilities by the scores.

    The k largest of log s + Gumbel noise are a draw of k entries without replacement, each next one
    with a probability proportional to s. Entries of score 0 come last.

    Args:
        scores: not negative, by name.
        generator: of the noise; None is torch's.

    Returns:
        New scores of the same shapes.

    Raises:
        ArgumentError: a score is negative or NaN.

    Reference:
        Kool, van Hoof and Welling 2019, "Stochastic Beams and Where to Find Them", section 2.3.

    Example:
        >>> found = drawn({"0": torch.tensor([0.0, 1.0, 1e9])}, torch.Generator().manual_seed(0))
        >>> found["0"].argsort(descending=True)
        tensor([2, 1, 0])
    """
    check(drawn, {"generator": generator})
    result = {}
    for name, score in scores.items():
        if not bool((score >= 0).all()):
            raise ArgumentError(f"drawn got scores of {name!r} below 0 or NaN; they must be >= 0")
        uniform = torch.rand(score.shape, generator=generator, dtype=torch.float64)
        noise = -torch.log(-torch.log(uniform.clamp_min(torch.finfo(torch.float64).tiny)))
        result[name] = score.double().log() + noise.to(score.device)
    return result


def weights_of(model: nn.Module, who: str) -> dict[str, nn.Parameter]:
    """Return the weights of linear layers and convolutions, by the layers' names."""
    found: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if is_dense_linear(module) or is_convolution(module):
            weight: Any = module.weight
            found[name] = weight
    if not found:
        raise ArgumentError(f"{who} found no linear layer and no convolution in the model")
    return found


def gradients(
    loss: Tensor, weights: Mapping[str, Tensor], who: str, again: bool = False
) -> dict[str, Tensor]:
    """Return the gradient of a loss by each weight, by name."""
    if not (isinstance(loss, Tensor) and loss.requires_grad):
        raise ArgumentError(
            f"{who}: the loss does not depend on the weights; return a tensor that was computed "
            "with gradients"
        )
    unique = list(dict.fromkeys(weights.values()))
    grads = torch.autograd.grad(loss, unique, create_graph=again, allow_unused=True)
    by = {
        id(p): p.new_zeros(p.shape) if g is None else g for p, g in zip(unique, grads, strict=True)
    }
    return {name: by[id(p)] for name, p in weights.items()}


def oriented(model: nn.Module, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return scores with rows that are outputs, which those of transformers' Conv1D are not."""
    return {
        name: tensor.t() if is_conv1d(model.get_submodule(name)) else tensor
        for name, tensor in found.items()
    }


def _adding(total: Tensor) -> Callable[..., None]:
    """Return a hook that adds the squares of the inputs that each weight multiplies."""
    inside = False

    def add(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        nonlocal inside
        if inside:  # the call below
            return
        x = (args[0] if args else kwargs["input"]).detach().float().square()
        with torch.enable_grad():
            # The derivative of a layer's sum by a weight is the sum of what it multiplies.
            weight = torch.zeros_like(total, requires_grad=True)
            others = {n: p.float() for n, p in module.named_parameters() if n != "weight"}
            inside = True
            try:
                y = functional_call(module, others | {"weight": weight}, (x,))
            finally:
                inside = False
            total.add_(torch.autograd.grad(y.sum(), weight)[0])

    return add


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Put buffers that a pass changes back."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
