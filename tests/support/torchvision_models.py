"""torchvision's classification models, also where its compiled operators cannot be loaded.

They need none of those operators, but importing torchvision without them fails: the operators that
it describes are declared first, without an implementation.
"""

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch

_DECLARED: list[Any] = []  # a library ends with its object


def imported() -> Any:
    """The module `torchvision.models`, or None where torchvision is not installed."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return None
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    text = (Path(found.origin).parent / "_meta_registrations.py").read_text()
    library = torch.library.Library("torchvision", "FRAGMENT")
    _DECLARED.append(library)
    for name in sorted(set(re.findall(r"torchvision::(\w+)", text))):
        library.define(f"{name}(Tensor x) -> Tensor")
    return importlib.import_module("torchvision.models")


def image_size(name: str) -> int:
    """A side of the image that a model takes, small where the model takes any."""
    if name.startswith(("vit", "swin", "maxvit")):
        return 224
    return 96 if name.startswith("inception") else 64
