"""Folders of sparse models for transformers' from_pretrained.

    import gossamer.integrations.transformers
    model = AutoModelForCausalLM.from_pretrained(folder)

A model that `sparsify` or a recipe has changed writes to its configuration of which layers it is,
so `save_pretrained` and `gossamer.save` both give such a folder. Importing this module registers
what builds the layers, before transformers loads the numbers. Where it is not imported, such a
folder is refused: transformers raises "Unknown fusion type: sparse layers of gossamer, …".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from gossamer.errors import CheckpointError
from gossamer.io.loading import planned, tie, with_networks
from gossamer.io.reading import Saved, read_files
from gossamer.nn.foreign import METHOD, forget, stands_in_parameters, tell_configs
from gossamer.nn.layers.in_place import placed
from gossamer.nn.layers.rebuilding import part_of
from gossamer.nn.swapping import replace_modules


@register_quantization_config(METHOD)
class SparseLayersConfig(QuantizationConfigMixin):
    """The description of the layers in a configuration, see `gossamer.nn.description`."""

    def __init__(self, **description: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        self.description = description

    @classmethod
    def from_dict(
        cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Make a configuration of what `config.json` holds."""
        found = {name: value for name, value in config_dict.items() if name != "quant_method"}
        config = cls(**found)
        return (config, kwargs) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        """Return what `config.json` holds."""
        return {"quant_method": METHOD, **self.description}


@register_quantizer(METHOD)
class SparseLayers(HfQuantizer):
    """Builds sparse layers of a folder inside `from_pretrained`; nothing is quantized."""

    requires_calibration = True  # a dense folder is not made sparse on the way

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._parts: dict[nn.Module, dict[str, Any]] = {}
        self._tied: dict[str, str] = {}

    def update_attn_implementation(self, config: Any) -> Any:
        """Take back the refusal of the configuration, since the layers can be built."""
        described = config.quantization_config
        forget(config)
        config.quantization_config = described
        return config

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> nn.Module:
        if not checkpoint_files or not all(f.endswith(".safetensors") for f in checkpoint_files):
            raise CheckpointError(
                f"the weights are {checkpoint_files}; sparse layers are loaded from safetensors "
                "files: give the folder that was saved"
            )
        files = [Path(file) for file in checkpoint_files]
        # The model is made on the meta device; the layers have memory, so that they are checked.
        with torch.device("cpu"), torch.no_grad():
            saved = _renamed(read_files(files, files[0].parent), model)
            with_networks(model, saved.description["layers"] or {})
            new, state = planned(model, saved)
            names: dict[Any, str] = {module: name for name, module in model.named_modules()}
            names |= {parameter: name for name, parameter in model.named_parameters()}
            replace_modules(model, new)
            self._tied = saved.description.get("tied") or {}
            tie(model, self._tied, new)
        self._parts = {
            layer: part_of(state, f"{names[old]}.")
            for old, layer in zip(new, placed(new), strict=True)
        }
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        """Load the layers by their own rules, and leave an ordinary model behind."""
        for layer, part in self._parts.items():
            layer.load_state_dict(part)
        self._parts = {}
        self.remove_quantization_config(model)  # type: ignore[no-untyped-call]
        for module in model.modules():
            config = vars(module).get("config")
            if getattr(config, "_is_quantized", False):
                config._is_quantized = False  # type: ignore[union-attr]
        tell_configs(model)
        return model

    def update_weight_conversions(self, weight_conversions: Any, *args: Any) -> Any:
        """Return none where experts are sparse: they were saved under their own names."""
        described: Any = self.quantization_config
        layers = described.description.get("layers")
        return [] if stands_in_parameters(layers) else weight_conversions

    def is_serializable(self) -> bool:
        """Whether `save_pretrained` works: yes."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether the layers train: yes."""
        return True


def _renamed(saved: Saved, model: nn.Module) -> Saved:
    """Return what was saved by the names of the model, which may be the base of a larger one."""
    prefix = f"{model.base_model_prefix}."
    layers = saved.description["layers"] or {}
    own = {name for name, _ in [*model.named_modules(), *model.named_parameters()]}
    changes: list[Callable[[str], str]] = [
        lambda name: name,
        lambda name: name.removeprefix(prefix),
        lambda name: prefix + name,
    ]
    for change in changes:
        if all(change(name) in own for name in layers):
            described = dict(saved.description)
            described["layers"] = saved.description["layers"] and {
                change(name): layer for name, layer in layers.items()
            }
            tied = saved.description.get("tied") or {}
            described["tied"] = {change(a): change(b) for a, b in tied.items()}
            state = {change(name): tensor for name, tensor in saved.state.items()}
            return Saved(state, described, saved.place)
    raise CheckpointError(
        f"{type(model).__name__} has not the layers that were saved, such as "
        f"{next(iter(layers))!r}; load the folder with the class that was saved"
    )


__all__ = ["SparseLayers", "SparseLayersConfig"]
