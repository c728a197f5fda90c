"""Optimizer state in 8 bits, by blocks: read as numbers, and written again.

    x_i = qmap[codes_i] * scale[i // block]         scale = largest |x| of the block

An entry that moves to another block needs another code, so the state of a moved mask is read, moved
and quantised anew. It is that of torchao's optimizers (a tensor of its own class) and of
bitsandbytes' (`state1`, `absmax1`, `qmap1` in the state of a parameter). Dettmers et al. 2022,
"8-bit Optimizers via Block-wise Quantization".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import DTypeError
from gossamer.weight.sharding import is_sharded

__all__ = ["BlockState", "quantized_state"]


@dataclass(frozen=True)
class BlockState:
    """One state tensor in 8 bits.

    Args:
        codes: uint8, of the parameter's shape.
        scale: float32 [blocks].
        qmap: float32 [256], ascending.
        names: of codes and scale in the parameter's state, where they can be replaced; a state of
            a class of its own has one name, and keeps its size.
    """

    codes: Tensor
    scale: Tensor
    qmap: Tensor
    names: tuple[str, ...]

    @property
    def block(self) -> int:
        """Entries per block, a power of two; the last block may have fewer."""
        entries, blocks = self.codes.numel(), max(self.scale.numel(), 1)
        size = 1
        while -(-entries // size) > blocks:
            size *= 2
        return size

    def read(self) -> Tensor:
        """Return the numbers, float32, of the parameter's shape."""
        scale = self.scale.repeat_interleave(self.block)[: self.codes.numel()]
        found = self.qmap[self.codes.flatten().long()] * scale
        return found.view(self.codes.shape)

    def write(self, numbers: Tensor) -> None:
        """Quantise numbers of the same shape, in place."""
        codes, scale = self._quantized(numbers)
        self.codes.copy_(codes.view(self.codes.shape))
        self.scale.copy_(scale)

    def replace(self, state: dict[str, Any], numbers: Tensor) -> None:
        """Quantise numbers of another size, into new tensors of the parameter's state."""
        codes, scale = self._quantized(numbers)
        state.update(zip(self.names, (codes, scale), strict=True))

    def _quantized(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        flat = numbers.flatten().float()
        padded = torch.nn.functional.pad(flat, (0, -len(flat) % self.block)).view(-1, self.block)
        scale = padded.abs().amax(1)
        # A block of zeros, and one whose scale is too small to divide by, has the codes of zero.
        shares = (padded / scale.clamp(min=1e-30)[:, None]).flatten()[: len(flat)]
        between = (self.qmap[1:] + self.qmap[:-1]) / 2
        return torch.searchsorted(between, shares).to(torch.uint8), scale.to(self.scale.dtype)


def quantized_state(state: dict[str, Any], parameter: Tensor) -> dict[str, BlockState]:
    """Return what of a parameter's optimizer state is in 8 bits, by name.

    Raises:
        DTypeError: a state tensor is in a form that cannot be read here.
    """
    found = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or not tensor.dim():
            continue
        inner = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
        if hasattr(inner, "__tensor_flatten__"):
            parts = [getattr(inner, part, None) for part in ("codes", "scale", "qmap")]
            if is_sharded(tensor) or not _is_8_bit(parts, inner.shape):
                where = " and sharded" if is_sharded(tensor) else ""
                raise DTypeError(
                    f"the optimizer's {name} is a {type(inner).__name__}{where}, which cannot "
                    "follow a mask: use an optimizer that keeps float32, bfloat16 or, not sharded, "
                    "8 bits by blocks, or a recipe whose mask stays"
                )
            found[name] = BlockState(*_tensors(parts), (name,))
        elif name.startswith("state") and tensor.dtype == torch.uint8:
            own = name.removeprefix("state")
            parts = [tensor, state.get(f"absmax{own}"), state.get(f"qmap{own}")]
            if _is_8_bit(parts, parameter.shape):
                found[name] = BlockState(*_tensors(parts), (name, f"absmax{own}"))
    return found


def _tensors(parts: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
    codes, scale, qmap = parts
    return codes, scale, qmap


def _is_8_bit(parts: list[Any], shape: torch.Size) -> bool:
    codes, scale, qmap = parts
    return (
        all(isinstance(part, Tensor) for part in parts)
        and codes.dtype == torch.uint8
        and codes.shape == shape
        and scale.dim() == 1
        and scale.numel() > 0
        and qmap.shape == (256,)
    )
