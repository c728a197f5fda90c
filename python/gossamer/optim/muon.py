"""Muon: momentum made orthogonal, for dense, masked and sparse weights; AdamW for the rest.

    M <- mu M + G,   O = NS(M) at the kept entries,   W <- (1 - lr wd) W - lr rms O / RMS(O)

NS is Newton and Schulz's iteration with Jordan's quintic, on the scattered dense matrix. RMS is
over the kept entries. With `every` = k it runs in each k-th step, and O serves until the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from gossamer import backend
from gossamer.arguments import Count, NotNegative, Positive, Range, check
from gossamer.errors import DTypeError
from gossamer.nn.globs import Globs, as_globs, covers
from gossamer.nn.layers.base import MaskedLayer
from gossamer.nn.left_dense import is_dense_linear
from gossamer.optim.proximal import evaluate, torch_step
from gossamer.weight import SparseWeight
from gossamer.weight.sharding import is_sharded

__all__ = ["Muon", "newton_schulz"]

Beta = Annotated[float, Range(lambda v: 0 <= v < 1, "in [0, 1)")]

# a, b, c of a x + b x^3 + c x^5: after 5 rounds singular values above 0.01 lie in [0.68, 1.2].
QUINTIC = (3.4445, -4.7750, 2.0315)


def newton_schulz(matrix: Tensor, iterations: Count = 5) -> Tensor:
    """Return the nearest matrix with orthonormal rows (or columns), approximately.

    Singular values become about 1, between 0.68 and 1.2; singular vectors stay.

    Args:
        matrix: [rows, cols], float32 or float64.
        iterations: rounds; each costs three products.

    Reference:
        Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks" (the quintic's
        coefficients); the iteration is Björck and Bowie's 1971.

    Example:
        >>> newton_schulz(torch.diag(torch.tensor([3.0, 1.0]))).diag().mul(10).round().tolist()
        [8.0, 11.0]
    """
    check(newton_schulz, locals())
    a, b, c = QUINTIC
    x: Tensor = matrix / matrix.norm().clamp_min(torch.finfo(matrix.dtype).tiny)
    tall = len(x) > x[0].numel()
    x = x.T if tall else x
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + torch.addmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x.T if tall else x


class Muon(torch.optim.AdamW):
    """Muon for the matrices of a model, also sparse and masked ones, and AdamW for all the rest.

    The momentum of a sparse weight is scattered to a dense matrix, made orthogonal, and taken at
    the kept entries again, so memory beside the weight is that of its kept entries (and one dense
    matrix at a time). The root mean square of each update, over the kept entries, is `rms`, so that
    learning rate and weight decay are AdamW's. Weights of linear layers and convolutions
    count as matrices [out, rest]; embeddings, vectors and other parameters take AdamW's step.

    Under a mask that is chosen anew in each forward pass (`STE`), the whole dense weight is
    updated. When a mask moves, momentum and direction follow their coordinates; new entries start
    at 0, and with `every` above 1 they wait for the next direction.

    Args:
        params: parameters or parameter groups, as for torch's optimizers. A group with both kinds
            of parameters becomes two groups.
        model: the model that holds them.
        lr: learning rate.
        momentum: mu, in [0, 1).
        nesterov: use G + mu M instead of M.
        weight_decay: decoupled, as in AdamW.
        every: steps between two directions: the dense products of an update are paid once in so
            many steps.
        rms: root mean square of an update at lr = 1; 0.2 is that of AdamW.
        iterations: rounds of Newton and Schulz.
        betas: of AdamW.
        eps: of AdamW.
        exclude: globs of modules whose matrices AdamW steps, such as the output layer.

    Raises:
        ArgumentError, DTypeError: a setting is invalid, or a matrix is sharded.

    Reference:
        Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the RMS of
        0.2 is from Liu et al. 2025, "Muon is scalable for LLM training". Sparse weights and
        `every` are ours.

    Example:
        >>> from gossamer import SparseLinear
        >>> model = SparseLinear(8, 8, pattern="2:4")
        >>> optimizer = Muon(model.parameters(), model, lr=0.1, weight_decay=0.0)
        >>> before = model.weight.values.detach().clone()
        >>> model(torch.randn(4, 8)).square().sum().backward()
        >>> optimizer.step()
        >>> round((model.weight.values - before).square().mean().sqrt().item(), 4)
        0.02
    """

    def __init__(
        self,
        params: Iterable[Any],
        model: nn.Module,
        lr: NotNegative = 1e-3,
        momentum: Beta = 0.95,
        nesterov: bool = True,
        weight_decay: NotNegative = 1e-2,
        *,
        every: Count = 1,
        rms: Positive = 0.2,
        iterations: Count = 5,
        betas: tuple[Beta, Beta] = (0.9, 0.999),
        eps: NotNegative = 1e-8,
        exclude: Globs = (),
    ) -> None:
        given = locals()
        check(Muon.__init__, {n: v for n, v in given.items() if n not in ("self", "params")})
        self._matrices = matrices(model, exclude)
        self._settings = {
            name: given[name] for name in ("momentum", "nesterov", "every", "rms", "iterations")
        }
        super().__init__(params, lr, betas, eps, weight_decay)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; matrices and other parameters become two groups.

        Args:
            param_group: as for torch's optimizers.

        Raises:
            DTypeError: a matrix is sharded.
        """
        check(Muon.add_param_group, locals())
        given = param_group["params"]
        listed = [given] if isinstance(given, Tensor) else list(given)
        parts: dict[bool, list[Any]] = {True: [], False: []}
        for one in listed:
            parameter = one[1] if isinstance(one, tuple) else one
            is_matrix = id(parameter) in self._matrices
            if is_matrix and is_sharded(parameter):
                raise DTypeError(
                    "Muon got a sharded matrix; its direction needs whole matrices: use "
                    "DistributedDataParallel, or exclude the layer (exclude=...)"
                )
            parts[is_matrix].append(one)
        for is_matrix, own in parts.items():
            if own or (not listed and not is_matrix):
                group = self._settings | param_group | {"params": own, "orthogonal": is_matrix}
                super().add_param_group(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step.

        Args:
            closure: recomputes the loss and its gradients; optional.

        Returns:
            The closure's return value, or None.
        """
        loss = evaluate(closure)
        rest = [group for group in self.param_groups if not group["orthogonal"]]
        torch_step(self, torch.optim.AdamW, rest)
        for group in self.param_groups:
            if group["orthogonal"]:
                for parameter in group["params"]:
                    if parameter.grad is not None and parameter.numel():
                        self._step(parameter, group)
        return loss

    def _step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, mu, every = self.state[parameter], group["momentum"], group["every"]
        if not state:
            state["step"] = torch.zeros(())
            state["momentum_buffer"] = torch.zeros_like(parameter)
            if every > 1:
                state["direction"] = torch.zeros_like(parameter)
        gradient: Tensor = parameter.grad  # type: ignore[assignment]
        buffer = state["momentum_buffer"]
        buffer.mul_(mu).add_(gradient)
        if every == 1 or int(state["step"]) % every == 0:
            ahead = gradient.add(buffer, alpha=mu) if group["nesterov"] else buffer
            direction = self._direction(parameter, ahead, group)
            if every > 1:
                state["direction"].copy_(direction)
        else:
            direction = state["direction"]
        state["step"] += 1
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
        parameter.add_(direction, alpha=-group["lr"])

    def _direction(self, parameter: Tensor, ahead: Tensor, group: dict[str, Any]) -> Tensor:
        """Return the orthogonal update [as the parameter], of the group's RMS on what is kept."""
        owner = self._matrices[id(parameter)]
        ahead = ahead.to(torch.promote_types(ahead.dtype, torch.float32))
        kept: Tensor | None = None
        if isinstance(owner, SparseWeight):
            dense = backend.scatter(ahead, owner.structure)
        else:
            if isinstance(owner, MaskedLayer) and not getattr(owner, "reselect_each_forward", True):
                kept = owner.mask().view_as(ahead)
                ahead = ahead * kept
            dense = ahead.flatten(1)
        update = newton_schulz(dense, group["iterations"])
        if isinstance(owner, SparseWeight):
            update = backend.gather(update, owner.structure)
        else:
            update = update.reshape(ahead.shape)
            update = update if kept is None else update * kept
        count = update.numel() if kept is None else int(kept.sum())
        size = update.norm().clamp_min(torch.finfo(update.dtype).tiny) / max(count, 1) ** 0.5
        update *= group["rms"] / size
        return update.to(parameter.dtype)


def matrices(model: nn.Module, exclude: Globs = ()) -> dict[int, nn.Module]:
    """Return the modules that hold a matrix, by the id of its parameter."""
    globs = as_globs(exclude)
    found: dict[int, nn.Module] = {}
    for name, module in model.named_modules():
        owner = name.removesuffix(".weight") if isinstance(module, SparseWeight) else name
        if any(covers(glob, owner) for glob in globs):
            continue
        if isinstance(module, SparseWeight):
            found[id(module.values)] = module
        elif isinstance(module, MaskedLayer):
            if module.sparse_weight is None:
                found[id(module.entries)] = module
        elif is_dense_linear(module) or isinstance(module, nn.modules.conv._ConvNd):
            found[id(module.weight)] = module
    return found
