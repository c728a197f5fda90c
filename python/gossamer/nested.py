"""The tensors inside nested containers: outputs of models, state of optimizers and recipes."""

from collections.abc import Iterator, Mapping

from torch import Tensor


def tensors(value: object) -> Iterator[Tensor]:
    """Yield the tensors in a tensor, a mapping's values, a list or a tuple, at any depth.

    Example:
        >>> import torch
        >>> [t.item() for t in tensors({"a": [torch.tensor(1)], "b": (torch.tensor(2), "text")})]
        [1, 2]
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors(part)
