"""Guard: notices that integer buffers were written over after they were checked.

Structure lives in ordinary buffers, so whatever computes with all tensors of a module (a moving
average over a state dict, a broadcast of buffers, `to_empty`) may change the mask. torch counts the
writes into a tensor; where the count or the tensor is another one, a checksum tells whether the
bytes are. Writes that torch does not count (through `.data`, NumPy, or into a tensor made in
inference mode) are not noticed.
"""

from __future__ import annotations

import zlib
from typing import Any
from weakref import WeakSet, WeakValueDictionary, ref

import torch
from torch import Tensor, nn

from gossamer.errors import StructureError
from gossamer.weight.naming import describe

_PLAIN = (Tensor, nn.Parameter)


class Guard:
    """Up to three integer buffers as they were when their owner last wrote or checked them.

    Args:
        owner: the module whose buffers they are; its `structure` checks them.

    Attributes:
        value: what the owner has built over these buffers.
    """

    def __init__(self, owner: nn.Module) -> None:
        self._forget(owner)

    def _forget(self, owner: nn.Module | None) -> None:
        self._owner = None if owner is None else ref(owner)
        self.value: Any = None
        self._a: Tensor | None = None
        self._b: Tensor | None = None
        self._c: Tensor | None = None
        self._versions = (-1, -1, -1)
        self._checksum: int | None = None
        _ALIVE.add(self)

    @property
    def checksum(self) -> int | None:
        """The checksum of the right bytes; None if none was taken."""
        return self._checksum

    def own(self, owner: nn.Module) -> None:
        """Take another owner, which a copy has to do."""
        self._owner = ref(owner)

    def holds(self, a: Tensor, b: Tensor | None, c: Tensor | None = None) -> bool:
        """Return whether these are the buffers of the last `keep`, and nobody has written to them.

        Every product asks this.
        """
        if a is not self._a or b is not self._b or c is not self._c:
            return False
        try:
            versions = self._versions
            return (
                a._version == versions[0]
                and (b is None or b._version == versions[1])
                and (c is None or c._version == versions[2])
            )
        except RuntimeError:  # made in inference mode
            return True

    def keep(self, value: Any, *buffers: Tensor | None, checksum: bool | None = None) -> None:
        """Remember the buffers and what was built over them.

        Args:
            value: what was built.
            buffers: up to three; None for one that the owner lacks.
            checksum: True takes a checksum of the bytes; False forgets the last one; None leaves
                it.
        """
        self.value = value
        self._a, self._b, self._c = (*buffers, None, None)[:3]
        self._versions = tuple(map(_version, (self._a, self._b, self._c)))  # type: ignore[assignment]
        if checksum is False:
            self._checksum = None
        elif checksum and has_bytes(self._a):
            self._checksum = checksum_of(buffers)
        if self._a is not None and has_bytes(self._a):
            _BY_ADDRESS[self._a.data_ptr()] = self

    def is_intact(self, *buffers: Tensor | None) -> bool:
        """Return whether the bytes are those of the last checksum; False if there is none."""
        return self._checksum is not None and self._checksum == checksum_of(buffers)

    def check(self, value: Any, name: str, advice: str, *buffers: Tensor | None) -> None:
        """Pass buffers whose bytes are right, put right what can be, and keep them.

        Args:
            value: what was built over the buffers.
            name: the name of the buffers in an error.
            advice: what to do, besides loading a state dict.
            buffers: see `keep`.

        Raises:
            StructureError: the bytes are others.
        """
        # Nothing can be said of bytes that cannot be read, or of which no checksum was taken.
        readable = all(map(has_bytes, buffers)) and self._checksum is not None
        if readable and not (self.is_intact(*buffers) or self.restore(*buffers)):
            owner = None if self._owner is None else self._owner()
            whose = "a copy" if owner is None else describe(owner)
            raise StructureError(
                f"the {name} of {whose} were written over after the mask was set (by an average or "
                "a broadcast of all buffers, by to_empty, or by hand), and the values do not "
                f"belong to what is there now: load a state dict, {advice}, or average by "
                "gossamer.optim.AveragedModel, which follows masks that move"
            )
        self.keep(value, *buffers, checksum=True)

    def restore(self, *buffers: Tensor | None) -> bool:
        """Put right what an average of the buffers with themselves has rounded.

        The bytes come from a twin, as the other side of such an average is one.

        Returns:
            Whether the bytes are right now; nothing changes otherwise.
        """
        for other in _ALIVE:
            theirs = (other._a, other._b, other._c)[: len(buffers)]
            if (
                other is not self
                and other._checksum == self._checksum
                and _shapes(theirs) == _shapes(buffers)
                and all(map(has_bytes, theirs))
                and other.is_intact(*theirs)
            ):
                if not all(map(_is_rounded, buffers, theirs)):
                    return False
                for mine, right in zip(buffers, theirs, strict=True):
                    if mine is not None and right is not None:
                        mine.copy_(right)
                return True
        return False

    def __getstate__(self) -> dict[str, Any]:
        """Keep the checksum alone: the buffers of a copy are others, and count from 0."""
        return {"checksum": self._checksum}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._forget(None)
        self._checksum = state["checksum"]


_ALIVE: WeakSet[Guard] = WeakSet()
_BY_ADDRESS: WeakValueDictionary[int, Guard] = WeakValueDictionary()


def check_written(buffer: Tensor) -> None:
    """Check a first buffer that comes without its owner, as in compiled code.

    Raises:
        StructureError: it was written over.
    """
    guard = _BY_ADDRESS.get(buffer.data_ptr())
    if guard is None or buffer.is_inference() or buffer._version == guard._versions[0]:
        return
    owner: Any = None if guard._owner is None else guard._owner()
    if owner is not None:
        _ = owner.structure, getattr(owner, "transposed", None)


def has_bytes(buffer: Tensor | None) -> bool:
    """Return whether a buffer can be read: it is not on meta, fake, or wrapped by a transform."""
    return buffer is None or (
        type(buffer) in _PLAIN
        and not buffer.is_meta
        and not torch._C._functorch.is_functorch_wrapped_tensor(buffer)
    )


def _version(buffer: Tensor | None) -> int:
    return -1 if buffer is None or buffer.is_inference() else buffer._version


def _shapes(buffers: tuple[Tensor | None, ...]) -> list[Any]:
    return [None if buffer is None else (buffer.shape, buffer.dtype) for buffer in buffers]


def checksum_of(buffers: tuple[Tensor | None, ...]) -> int:
    """Return the CRC-32 of the bytes of some buffers, one after the other."""
    total = 0
    for buffer in buffers:
        if buffer is not None and buffer.numel():
            total = zlib.crc32(buffer.detach().cpu().contiguous().numpy().data, total)
    return total


def _is_rounded(found: Tensor | None, right: Tensor | None) -> bool:
    """Return whether `found` is `right` up to the rounding of an average with itself.

    It takes equal numbers to equal numbers, and none further than float32 rounds: 1, or a part in
    2^22. An average with another mask takes equal numbers to others, except where a mask is so
    small that no number repeats.
    """
    if found is None or right is None:
        return True
    a, b = found.long(), right.long()
    near = bool(((a - b).abs() <= 1 + (b >> 22)).all())
    pairs = torch.stack((a.flatten(), b.flatten()))
    return near and torch.unique(pairs, dim=1).shape[1] == torch.unique(b).numel()


__all__ = ["Guard", "check_written", "checksum_of", "has_bytes"]
