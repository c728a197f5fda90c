"""Net-Trim: weights of least l1 norm that reproduce a layer's outputs.

minimise ||W||_1 subject to ||(X W^T + b - Y) on Omega||_F <= eps and X W^T + b <= ceiling
elsewhere, with Omega = {Y > 0}: before a ReLU, a negative output only has to stay negative. A
linear output has no second constraint. ADMM solves the problem in float64; biases do not change.

Reference:
    Aghasi, Abdi, Romberg 2020, "Fast convex pruning of deep neural networks".
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from gossamer.arguments import NotNegative, Positive, Steps, check
from gossamer.backend import check_array
from gossamer.backend.arrays import FLOATING
from gossamer.errors import ArgumentError, DTypeError, ShapeError
from gossamer.pruning.calibration import calibrated, step_of

_ACTIVE = 1e-6  # an output above it counts as active
_SLACK = 1.1  # next layer's eps, relative to the change by the layers before it


class TrimmedLayer(NamedTuple):
    """Result of Net-Trim for one layer.

    Attributes:
        weight: float64 [out_features, in_features], with exact zeros.
        eps: the bound on the misfit.
        misfit: ||(X W^T + b - Y) on Omega||_F.
        violation: largest excess of an inactive output over its ceiling.
        residual: ||W - W'||_F / ||W'||_F between the two copies of the weight in ADMM; 0 means
            solved.
        iterations: number of ADMM steps.
        converged: whether ADMM reached the tolerance.
        nonzeros: non-zero entries of the weight, before and after.
    """

    weight: Tensor
    eps: float
    misfit: float
    violation: float
    residual: float
    iterations: int
    converged: bool
    nonzeros: tuple[int, int]


class Trimmed(NamedTuple):
    """A model after Net-Trim, and the result per layer by name."""

    model: nn.Module
    layers: Mapping[str, TrimmedLayer]


def net_trim(
    model: nn.Module,
    inputs: Tensor,
    eps: NotNegative = 0.05,
    *,
    method: Literal["parallel", "cascade"] = "parallel",
    tol: NotNegative = 1e-6,
    max_iter: Steps = 10_000,
) -> Trimmed:
    """Make the linear layers of a network sparse after training, on calibration data.

    Args:
        model: an `nn.Sequential`, possibly nested; it does not change. Every Linear is trimmed: as
            a layer before a ReLU if one follows, else as a linear output.
        inputs: calibration data [samples, ...].
        eps: largest misfit per layer, relative to the norm of its active outputs.
        method: "parallel" trims each layer for its original inputs; "cascade" for the outputs of
            the trimmed layers before it, with as much slack as the original weight needs.
        tol: see `net_trim_layer`.
        max_iter: largest number of ADMM steps per layer.

    Returns:
        A copy with sparse weights in the layers' dtype, and the result per layer.

    Raises:
        DTypeError: the model is not an `nn.Sequential`.
        ArgumentError: `eps` is negative or not finite, or the method is unknown.
        ShapeError: `inputs` holds no sample.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 2))
        >>> trimmed = net_trim(model, torch.randn(200, 20), eps=0.3)
        >>> [layer.nonzeros[1] < layer.nonzeros[0] for layer in trimmed.layers.values()]
        [True, True]
    """
    check(net_trim, locals())
    calibrated(inputs, "net_trim")
    trimmed = copy.deepcopy(model)
    steps = sequence(trimmed, "net_trim")
    modes = [module.training for _, module in steps]
    results: dict[str, TrimmedLayer] = {}
    with torch.no_grad():
        original = changed = inputs
        for place, (name, module) in enumerate(steps):
            module.eval()
            if not isinstance(module, nn.Linear):
                original = step_of(module, original, name, "net_trim")
                changed = step_of(module, changed, name, "net_trim")
                continue
            relu = feeds_relu(steps, place)
            outputs = step_of(module, original, name, "net_trim")
            given = changed if method == "cascade" else original
            active = outputs > _ACTIVE if relu else torch.ones_like(outputs, dtype=torch.bool)
            size = float((outputs * active).double().norm())
            own = module(given) - outputs
            bound = max(eps * size, _SLACK * float((own * active).double().norm()))
            results[name] = net_trim_layer(
                given.flatten(0, -2),
                outputs.flatten(0, -2),
                module.weight,
                bound,
                bias=module.bias,
                relu=relu,
                ceiling=module(given).clamp(min=0).flatten(0, -2),
                tol=tol,
                max_iter=max_iter,
            )
            original = outputs
            module.weight.copy_(results[name].weight)
            changed = module(changed)
        for mode, (_, module) in zip(modes, steps, strict=True):
            module.train(mode)
    return Trimmed(trimmed, results)


def net_trim_layer(
    inputs: Tensor,
    outputs: Tensor,
    weight: Tensor,
    eps: NotNegative,
    *,
    bias: Tensor | None = None,
    relu: bool = True,
    ceiling: Tensor | float = 0.0,
    rho: Positive = 2.0,
    tol: NotNegative = 1e-6,
    max_iter: Steps = 10_000,
) -> TrimmedLayer:
    """Trim one layer by Net-Trim.

    Args:
        inputs: X, [samples, in_features].
        outputs: Y, [samples, out_features], the wanted outputs before or after the ReLU.
        weight: initial weight, [out_features, in_features].
        eps: largest misfit in the Frobenius norm, >= 0.
        bias: [out_features], or None; it does not change.
        relu: whether a ReLU follows; outputs that are not positive then only have to stay below the
            ceiling.
        ceiling: largest value of these outputs before the ReLU, a number or shaped as `outputs`.
        rho: penalty of ADMM in units of 1 / mean |weight|; it affects the number of steps.
        tol: stop when the two copies of the weight, the two copies of the outputs, and the weights
            of two steps differ by less than tol, relative to their norms.
        max_iter: largest number of ADMM steps.

    Returns:
        The sparse weight and its fit. If no weight reaches `eps`, `converged` is False or the
        misfit is above `eps`.

    Raises:
        ShapeError: the sizes do not fit.
        ArgumentError: `eps` is negative, or a number is not finite.
    """
    check(net_trim_layer, locals())
    for name, given in (("inputs", inputs), ("outputs", outputs), ("weight", weight)):
        check_array(given, f"net_trim_layer: {name}", rank=2, dtypes=FLOATING, device=True)
    if (
        inputs.dim() != 2
        or outputs.dim() != 2
        or len(inputs) != len(outputs)
        or not len(inputs)
        or weight.shape != (outputs.shape[1], inputs.shape[1])
    ):
        raise ShapeError(
            f"net_trim_layer got inputs {list(inputs.shape)}, outputs {list(outputs.shape)} and "
            f"weight {list(weight.shape)}; [samples, in], [samples, out] and [out, in] with at "
            "least one sample are needed"
        )
    if not all(bool(given.isfinite().all()) for given in (inputs, outputs, weight)):
        raise ArgumentError("net_trim_layer got infinity or NaN; finite numbers are needed")
    x, y = inputs.detach().double(), outputs.detach().double()
    active = y > _ACTIVE if relu else torch.ones_like(y, dtype=torch.bool)
    shift = 0.0 if bias is None else bias.detach().double()
    target = y - shift
    top = torch.as_tensor(ceiling, dtype=torch.float64, device=y.device) - shift
    top = torch.where(active, torch.inf, top)

    gram = x.T @ x
    scale = 0.3 * float(gram.max()) ** 0.5 or 1.0  # normalises the step lengths of ADMM
    found, twin, iterations, converged = _admm(
        (x / scale, gram / scale**2),
        (target / scale, active, top / scale, eps / scale),
        weight.detach().double().T,
        (rho, tol, max_iter),
    )
    result = x @ found
    return TrimmedLayer(
        weight=found.T.contiguous(),
        eps=eps,
        misfit=float(((result - target) * active).norm()),
        violation=max(float((result - top).max()), 0.0),
        residual=float((found - twin).norm() / twin.norm().clamp(min=1e-300)),
        iterations=iterations,
        converged=converged,
        nonzeros=(int((weight != 0).sum()), int((found != 0).sum())),
    )


def _admm(
    data: tuple[Tensor, Tensor],
    constraint: tuple[Tensor, Tensor, Tensor, float],
    start: Tensor,
    settings: tuple[float, float, int],
) -> tuple[Tensor, Tensor, int, bool]:
    """Run ADMM with W1 = X W3, which obeys the constraints, and W2 = W3, which is sparse.

    Returns:
        W2, W3, the number of steps, and whether ADMM converged.
    """
    x, gram = data
    target, active, top, eps = constraint
    rho, tol, max_iter = settings
    magnitude = float(start.abs().sum()) or 1.0
    threshold = magnitude / start.numel() / rho
    reach = float((x @ start).norm())
    factor = torch.linalg.cholesky(gram + torch.eye(len(gram), dtype=x.dtype, device=x.device))
    dense = start.clone()
    outputs_dual, sparse_dual = torch.zeros_like(target), torch.zeros_like(dense)
    sparse = dense
    for step in range(1, max_iter + 1):
        before = dense
        wanted = x @ dense - outputs_dual
        miss = (wanted - target) * active
        norm = float(miss.norm())
        near = target + miss * (eps / norm if norm > eps else 1.0)
        outputs = torch.where(active, near, torch.minimum(wanted, top))
        sparse = nn.functional.softshrink(dense - sparse_dual, threshold)
        right = x.T @ (outputs + outputs_dual) + sparse + sparse_dual
        dense = torch.cholesky_solve(right, factor)
        outputs_gap, sparse_gap = outputs - x @ dense, sparse - dense
        outputs_dual += outputs_gap
        sparse_dual += sparse_gap
        # The dense copy may settle long before the sparse one: both must stop changing.
        moved = max(float((dense - before).norm()), float(sparse_gap.norm()))
        if moved <= tol * float(dense.norm()) and float(outputs_gap.norm()) <= tol * reach:
            return sparse, dense, step, True
    return sparse, dense, max_iter, False


def sequence(model: nn.Module, who: str) -> list[tuple[str, nn.Module]]:
    """Return the names and modules that an `nn.Sequential` calls, in order.

    Raises:
        DTypeError: the model is not an `nn.Sequential`.
    """
    if type(model) is not nn.Sequential:
        raise DTypeError(
            f"{who} got {type(model).__name__}; an nn.Sequential is needed: pass the part of the "
            "model that is one"
        )
    steps: list[tuple[str, nn.Module]] = []
    for name, module in model.named_children():
        inner = sequence(module, who) if type(module) is nn.Sequential else [("", module)]
        steps += [(f"{name}.{below}" if below else name, part) for below, part in inner]
    return steps


def feeds_relu(steps: list[tuple[str, nn.Module]], place: int) -> bool:
    """Return whether a ReLU follows a module, ignoring modules that compute nothing."""
    following = (module for _, module in steps[place + 1 :])
    rest = (m for m in following if not isinstance(m, nn.Dropout | nn.Identity))
    return isinstance(next(rest, None), nn.ReLU)
