"""Layers that are measured: Gossamer and its rivals, behind the same two calls, verified first.

A candidate whose output or gradients differ from the dense formula is an error, never a number.
"""

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.harness.contest import UnavailableError, WrongResultError
from bench.harness.record import GOSSAMER
from bench.layers.cases import MASKED_DENSE, NN_LINEAR, SPARSEPROP, TORCH_CSR, Problem
from gossamer import SparseLinear, backend

# Largest difference from the dense formula, relative to the largest entry of the result. Sums of
# a few thousand float32 products differ by about 1e-6 in another order; bfloat16 rounds to 2**-8.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 1.6e-2}


@dataclass(frozen=True)
class Candidate:
    """One way to compute the layer of a problem.

    Args:
        name: shown in tables.
        layer: from x [batch, in_features] to [batch, out_features].
        leaves: tensors whose gradients a training step would compute, besides the input.
        grad_weight: the weight's gradient as a dense matrix, zero where nothing is kept.
        grad_bias: the bias' gradient.
    """

    name: str
    layer: Callable[[Tensor], Tensor]
    leaves: tuple[Tensor, ...]
    grad_weight: Callable[[], Tensor]
    grad_bias: Callable[[], Tensor | None]

    def forward(self, problem: Problem) -> Tensor:
        """Compute the output without recording a graph."""
        with torch.no_grad():
            return self.layer(problem.x)

    def step(self, problem: Problem) -> Tensor:
        """Compute the output and all gradients; gradients of an earlier step are dropped first."""
        problem.x.grad = None
        for leaf in self.leaves:
            leaf.grad = None
        output = self.layer(problem.x)
        output.backward(problem.grad_output)  # type: ignore[no-untyped-call]
        return output


def verify(candidate: Candidate, problem: Problem, backward: bool) -> None:
    """Compare a candidate with the dense formula.

    Args:
        candidate: what to verify.
        problem: on what.
        backward: whether to compare the three gradients too.

    Raises:
        WrongResultError: a result has another shape or differs by more than rounding.
    """
    expected = problem.expected
    output = candidate.step(problem).detach() if backward else candidate.forward(problem)
    pairs: list[tuple[str, Tensor | None, Tensor]] = [("output", output, expected.output)]
    if backward:
        pairs += [
            ("gradient of the input", problem.x.grad, expected.grad_input),
            ("gradient of the weight", candidate.grad_weight(), expected.grad_weight),
            ("gradient of the bias", candidate.grad_bias(), expected.grad_bias),
        ]
    for what, given, wanted in pairs:
        check_close(f"{candidate.name}, {problem.case.pattern}: {what}", given, wanted)


def check_close(
    what: str, given: Tensor | None, wanted: Tensor, dtype: torch.dtype | None = None
) -> None:
    """Raise unless a result is that of the dense formula up to rounding.

    Args:
        what: named in the error.
        given: the result; None if it was not computed.
        wanted: of the dense formula.
        dtype: in which the result was computed; None takes that of ``given``.

    Raises:
        WrongResultError: it is missing, not finite, of another shape, or differs.

    Example:
        >>> check_close("sum", torch.tensor([3.0]), torch.tensor([3.0]))
    """
    if given is None or given.shape != wanted.shape:
        shape = None if given is None else tuple(given.shape)
        raise WrongResultError(f"{what} has shape {shape}; it must be {tuple(wanted.shape)}")
    if not wanted.numel():
        return
    scale = float(wanted.abs().max()) or 1.0
    error = float((given.float() - wanted).abs().max()) / scale
    tolerance = TOLERANCE[dtype or given.dtype]
    # Written so that NaN fails too.
    if not error <= tolerance:
        raise WrongResultError(
            f"{what} differs from the dense formula by {error:.1e} of its largest entry; at most "
            f"{tolerance:.1e} is rounding: this candidate is wrong here and is not timed"
        )


def candidate(name: str, problem: Problem) -> Candidate:
    """Build a candidate for a problem; each owns its parameters.

    Args:
        name: one of the names in ``cases``.
        problem: what it is to compute.

    Returns:
        The candidate, not yet verified.

    Raises:
        UnavailableError: it cannot run here.
    """
    builders: dict[str, Callable[[Problem], Candidate]] = {
        NN_LINEAR: nn_linear,
        GOSSAMER: gossamer,
        MASKED_DENSE: masked_dense,
        TORCH_CSR: torch_csr,
        SPARSEPROP: sparseprop,
    }
    return builders[name](problem)


def nn_linear(problem: Problem) -> Candidate:
    """The layer of torch itself: MKL's dense products."""
    linear = problem.linear
    return Candidate(
        NN_LINEAR,
        linear,
        tuple(linear.parameters()),
        lambda: _grad(linear.weight) * problem.mask,
        lambda: linear.bias.grad,
    )


def gossamer(problem: Problem) -> Candidate:
    """This library's layer, as a user gets it."""
    layer = SparseLinear.from_dense(problem.linear, problem.case.pattern, mask=problem.mask)
    weight, bias = layer.weight, layer.bias
    assert bias is not None
    return Candidate(
        GOSSAMER,
        layer,
        tuple(layer.parameters()),
        lambda: _dense(backend.scatter(_grad(weight.values), weight.structure)),
        lambda: bias.grad,
    )


def masked_dense(problem: Problem) -> Candidate:
    """What sparse training does without sparse kernels: a dense product with weight * mask."""
    weight = problem.linear.weight.detach().clone().requires_grad_()
    bias = problem.linear.bias.detach().clone().requires_grad_()
    mask = problem.mask.to(weight.dtype)
    return Candidate(
        MASKED_DENSE,
        lambda x: F.linear(x, weight * mask, bias),
        (weight, bias),
        lambda: _grad(weight),
        lambda: bias.grad,
    )


def torch_csr(problem: Problem) -> Candidate:
    """The CSR product of torch; it computes and stores the weight's gradient dense."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        weight = problem.linear.weight.detach().to_sparse_csr().requires_grad_()
    bias = problem.linear.bias.detach().clone().requires_grad_()

    def layer(x: Tensor) -> Tensor:
        # F.linear with a CSR weight runs four times slower than this form.
        product: Tensor = weight @ x.T
        return product.T + bias

    return Candidate(
        TORCH_CSR,
        layer,
        (weight, bias),
        lambda: _grad(weight).to_dense() * problem.mask,
        lambda: bias.grad,
    )


def load_sparseprop() -> Any:
    """Import SparseProp's layer.

    Returns:
        The class.

    Raises:
        UnavailableError: it is not installed, or does not run here.
    """
    try:
        return importlib.import_module("sparseprop.modules").SparseLinear
    except Exception as error:  # it was compiled by its own set-up and may fail in any way
        raise UnavailableError(
            f"SparseProp does not import ({type(error).__name__}: {error}); "
            "pip install 'setuptools>=77' pybind11, then "
            "pip install --no-build-isolation sparseprop"
        ) from error


def sparseprop(problem: Problem) -> Candidate:
    """SparseProp (Nikdan et al. 2023) from PyPI, if it is installed."""
    theirs = load_sparseprop()
    layer: nn.Module = theirs.from_dense(problem.linear)
    values, bias = layer.W_val, layer.bias
    assert isinstance(values, Tensor)
    assert isinstance(bias, Tensor)
    indptr, columns = layer.W_idx  # type: ignore[misc]

    def grad_weight() -> Tensor:
        rows, cols = problem.mask.shape
        # Its explicit row lengths, not torch's CSR: the verifier must not depend on a rival.
        dense = torch.zeros(rows, cols)
        at = torch.repeat_interleave(torch.arange(rows), torch.as_tensor(indptr).diff().long())
        dense[at, torch.as_tensor(columns).long()] = _grad(values)
        return dense

    return Candidate(SPARSEPROP, layer, (values, bias), grad_weight, lambda: bias.grad)


def _grad(tensor: Tensor) -> Tensor:
    if tensor.grad is None:
        raise WrongResultError("a step left the weight without a gradient")
    return tensor.grad


def _dense(array: object) -> Tensor:
    assert isinstance(array, Tensor)
    return array
