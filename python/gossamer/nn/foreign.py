"""Models of transformers, told by what they have, so that transformers need not be installed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from gossamer.nn.description import FORMAT, describe_model

METHOD = "gossamer"
_PARAMETER = "SparseParameter"
_CONVERSIONS = "_conversions_when_dense"
# transformers raises an error with the name of a fusion that it does not know. So where nothing is
# registered that builds sparse layers, a folder of them gives no model with random weights.
REFUSAL = "sparse layers of gossamer, which `import gossamer.integrations.transformers` makes known"


def is_pretrained(model: nn.Module) -> bool:
    """Whether a module is a model of transformers."""
    return hasattr(type(model), "save_pretrained") and is_config(getattr(model, "config", None))


def is_config(value: object) -> bool:
    """Whether an object is a configuration of transformers."""
    return hasattr(type(value), "save_pretrained") and hasattr(type(value), "to_json_string")


def told(config: Any, description: Mapping[str, Any]) -> Any:
    """Write to a configuration of which layers its model is, or forget that if there are none."""
    if description["layers"] != {}:
        config.quantization_config = {"quant_method": METHOD, **description}
        config.fusion_config = {**_fusions(config), REFUSAL: True}
    else:
        forget(config)
    return config


def tell_configs(model: nn.Module) -> None:
    """Write to the configurations in a model of which layers it is, after a change of them.

    `save_pretrained` writes them to `config.json`. Of a part of a model, whose whole is not known,
    only that it has sparse layers is written.
    """
    done: set[int] = set()

    def visit(module: nn.Module) -> None:
        config = vars(module).get("config")
        if is_pretrained(module):
            description = describe_model(module)
            if description["layers"] and REFUSAL not in _fusions(config):
                config = _own_config(module)
            told(config, description)
            _keep_names(module, description["layers"])
            done.update((id(config), *(id(one) for one in vars(config).values())))
            return
        if is_config(config) and id(config) not in done:
            parts: dict[str, Any] = {"format": FORMAT, "layers": None, "tied": {}}
            if describe_model(module)["layers"] and not hasattr(config, "quantization_config"):
                told(config, parts)
        for child in module.children():
            visit(child)

    visit(model)


def stands_in_parameters(layers: Mapping[str, Any] | None) -> bool:
    """Whether layers of a description stand in the places of parameters."""
    found = (layers or {}).values()
    return any(isinstance(one, Mapping) and one.get("kind") == _PARAMETER for one in found)


def _keep_names(model: Any, layers: Mapping[str, Any]) -> None:
    """Have `save_pretrained` write experts under their own names, while they are sparse.

    It would put them into the format of other versions, as tensors of another shape.
    """
    kept = vars(model).get(_CONVERSIONS)
    if stands_in_parameters(layers):
        if kept is None:
            vars(model)[_CONVERSIONS] = [vars(model).get("_weight_conversions")]
            model._weight_conversions = []
    elif kept is not None:
        del vars(model)[_CONVERSIONS], model._weight_conversions
        if kept[0] is not None:
            model._weight_conversions = kept[0]


def _own_config(model: Any) -> Any:
    """Give a model a copy of its configuration, which a dense model may share; return it."""
    copies: dict[int, Any] = {}
    found = copy.deepcopy(model.config, copies)
    for module in model.modules():
        theirs = vars(module).get("config")
        if is_config(theirs) and id(theirs) in copies:
            module.config = copies[id(theirs)]
    return found


def _fusions(config: Any) -> dict[str, Any]:
    return getattr(config, "fusion_config", None) or {}


def forget(config: Any) -> None:
    """Take back what `told` has written."""
    method = getattr(config, "quantization_config", None)
    if isinstance(method, dict) and method.get("quant_method") == METHOD:
        del config.quantization_config
    if REFUSAL in (fusions := _fusions(config)):
        rest = {name: value for name, value in fusions.items() if name != REFUSAL}
        config.fusion_config = rest
        if not rest:
            del config.fusion_config


__all__ = [
    "METHOD",
    "REFUSAL",
    "forget",
    "is_config",
    "is_pretrained",
    "stands_in_parameters",
    "tell_configs",
    "told",
]
