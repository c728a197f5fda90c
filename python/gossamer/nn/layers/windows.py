"""The sizes of a window as torch's convolutions take them: one number or several, or a name."""

from __future__ import annotations

from gossamer.errors import ShapeError
from gossamer.patterns import as_integer

Sizes = int | tuple[int, ...] | list[int]


def read_sizes(dims: int, who: str, name: str, given: Sizes, least: int) -> tuple[int, ...]:
    """Return one number per dimension.

    Args:
        dims: dimensions.
        who: the beginning of an error.
        name: of the argument.
        given: one number, or one per dimension.
        least: the smallest that is allowed.

    Raises:
        ShapeError: another number of numbers, or one is too small.

    Example:
        >>> read_sizes(2, "got", "stride", 3, 1)
        (3, 3)
    """
    several = tuple(given) if isinstance(given, tuple | list) else (given,)
    sizes = tuple(as_integer(n, f"{who} {name}") for n in several)
    if len(sizes) == 1:
        sizes *= dims
    if len(sizes) != dims or min(sizes) < least:
        raise ShapeError(
            f"{who} {name}={given}; one number or {dims} are needed, each at least {least}"
        )
    return sizes


def named_padding(
    padding: str,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    who: str,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the padding in front and behind that "same" or "valid" stands for.

    Raises:
        ShapeError: another name, or "same" with a stride.

    Example:
        >>> named_padding("same", (4,), (1,), (1,), "got")
        ((1,), (2,))
    """
    if padding not in ("same", "valid"):
        raise ShapeError(f"{who} padding={padding!r}; choose 'same', 'valid' or numbers")
    if padding == "valid":
        return (0,) * len(kernel), (0,) * len(kernel)
    if any(step != 1 for step in stride):
        raise ShapeError(
            f"{who} padding='same' and stride={stride}; 'same' needs stride 1: give the padding as "
            "numbers"
        )
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return tuple(n // 2 for n in total), tuple(n - n // 2 for n in total)


__all__ = ["Sizes", "named_padding", "read_sizes"]
