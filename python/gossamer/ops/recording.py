"""What looks on while a product runs: recorders, counters and transforms.

The eager path calls the kernels behind torch's dispatcher, where nobody sees them. While somebody
looks on (torch.jit.trace, a dispatch mode such as a FLOP counter or make_fx, the profiler), the
products go through the registered operators of `gossamer.ops.library` instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from gossamer.errors import GossamerError
from gossamer.weight.naming import describe

# Private, but each is what torch itself asks on every call; their public forms cost more.
transforming = torch._C._are_functorch_transforms_active
_modes = torch._C._len_torch_dispatch_stack
tracing = torch._C._get_tracing_state
SYMBOLIC: Any = torch.fx.Proxy
"""The type of an input under torch.fx.symbolic_trace."""
_is_batch = torch._C._functorch.is_legacy_batchedtensor
_profiling = torch._C._autograd._profiler_enabled


def recorded(x: Tensor) -> bool:
    """Return whether somebody records or counts operators.

    Or x is a batch of gradients (`is_grads_batched`), which torch's dispatcher takes apart.
    """
    return _modes() > 0 or _profiling() or tracing() is not None or _is_batch(x)


def differentiating_forward() -> bool:
    """Return whether a forward-mode derivative is being taken."""
    return forward_ad._current_level >= 0


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _exporting_onnx() -> bool:
    # torch.compile takes torch.onnx.is_in_onnx_export() itself for False.
    return torch.onnx.is_in_onnx_export()


def refuse_onnx(module: nn.Module) -> None:
    """Raise GossamerError if a model is being exported to ONNX, which has no sparse product."""
    if _exporting_onnx():
        raise GossamerError(
            f"{describe(module)} was called by an ONNX exporter, and ONNX has no operator for its "
            "product: export gossamer.densify(model)"
        )


def refuse_recorders(module: nn.Module, instead: str) -> None:
    """Raise GossamerError if what records would see numbers, and not how they are computed.

    Args:
        module: a module that selects its weight in the forward pass.
        instead: what to do, besides `gossamer.densify`.
    """
    if _modes() > 0:
        from torch.fx.experimental.proxy_tensor import get_proxy_mode

        by = "torch.export or make_fx" if get_proxy_mode() is not None else ""
    elif tracing() is not None:
        by = "torch.jit.trace" if not torch.onnx.is_in_onnx_export() else "an ONNX exporter"
    elif transforming():
        by = "a transform of torch.func (vmap, grad, jvp)"
    else:
        by = "forward-mode differentiation" if differentiating_forward() else ""
    if by:
        raise GossamerError(
            f"{describe(module)} was called under {by}, which cannot see how it selects its "
            f"mask: {instead}, or use gossamer.densify(model)"
        )


def as_leaf(module: nn.Module, x: Any) -> Any:
    """Return the call of a module as one node of a graph of torch.fx, like a module of torch.nn."""
    tracer = x.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (x,), {})


__all__ = [
    "SYMBOLIC",
    "as_leaf",
    "differentiating_forward",
    "recorded",
    "refuse_onnx",
    "refuse_recorders",
    "tracing",
    "transforming",
]
