"""Values in containers: tensors inside them, and the arguments that an example holds."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def call_with(function: Callable[..., Any], example: Any) -> Any:
    """Call a function with an example of its arguments.

    Args:
        function: a model, for example.
        example: one argument; or several as a tuple or list; or a mapping by keyword.

    Example:
        >>> call_with(pow, (2, 3)), call_with(abs, -1), call_with(dict, {"a": 1})
        (8, 1, {'a': 1})
    """
    if isinstance(example, Mapping):
        return function(**example)
    return function(*example) if isinstance(example, tuple | list) else function(example)


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
