"""Experts whose weights are stored together, as in Mixtral and its kin.

    gate_up_proj [experts, 2 * hidden, width], down_proj [experts, width, hidden]

A hidden neuron has one number in all experts, and is removed in all of them.
"""

from __future__ import annotations

from torch import Tensor, nn

_NAMES = {"gate_up_proj", "down_proj"}


def is_experts(module: nn.Module) -> bool:
    """Return whether a module holds experts like Mixtral's: exactly these two parameters."""
    own = dict(module.named_parameters(recurse=False))
    if own.keys() != _NAMES:
        return False
    up, down = own["gate_up_proj"], own["down_proj"]
    return (
        up.dim() == down.dim() == 3
        and len(up) == len(down)
        and up.shape[1] == 2 * down.shape[2]
        and up.shape[2] == down.shape[1]
    )


def parts(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Return views of the weights by neuron: [experts, 2, hidden, width], [experts, width, hidden].

    The two of `gate_up_proj` are the gate and what it multiplies.
    """
    up: Tensor = module.gate_up_proj.detach()  # type: ignore[operator]
    down: Tensor = module.down_proj.detach()  # type: ignore[operator]
    return up.view(len(up), 2, -1, up.shape[2]), down


def cut_experts(module: nn.Module, keep: Tensor) -> None:
    """Keep some hidden neurons, bool [hidden], in place."""
    up, down = parts(module)
    keep = keep.to(up.device)
    hidden = len(keep)
    trained = [module.gate_up_proj.requires_grad, module.down_proj.requires_grad]
    module.gate_up_proj = nn.Parameter(up[:, :, keep].flatten(1, 2).contiguous(), bool(trained[0]))
    module.down_proj = nn.Parameter(down[:, :, keep].contiguous(), bool(trained[1]))
    store_hidden(module, hidden, int(keep.sum()))


def store_hidden(module: nn.Module, before: int, after: int) -> None:
    """Update the number of hidden neurons that a module stores about itself."""
    for name in ("intermediate_dim", "intermediate_size", "moe_intermediate_size"):
        if getattr(module, name, None) == before:
            setattr(module, name, after)
