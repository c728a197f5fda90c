"""LoRA of peft on sparse layers, whose merge keeps the mask.

    model = get_peft_model(model, with_sparse(LoraConfig(target_modules=["up", "down"])))

The product B A of an adapter acts at the kept entries alone: y = x (W + s (B A) o M)^T + b. So the
merged layer computes what the layer with its adapter does, and is as sparse as before. Muñoz, Yuan
and Jain 2024, "SQFT: Low-cost Model Adaptation in Low-precision Sparse Foundation Models".
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from torch.func import functional_call

from gossamer.arguments import check
from gossamer.errors import ArgumentError
from gossamer.nn import SparseLinear
from gossamer.ops import sddmm

__all__ = ["LoraSparseLinear", "with_sparse"]

_INITS: tuple[Any, ...] = (True, False, "gaussian")


def with_sparse(config: LoraConfig) -> LoraConfig:
    """Have a configuration of LoRA take `SparseLinear` layers too.

    A file does not keep this, so that a saved adapter is loaded with
    `config=with_sparse(PeftConfig.from_pretrained(folder))`.

    Args:
        config: names the layers by `target_modules`. Variants such as DoRA are peft's to refuse.

    Returns:
        The same object.

    Raises:
        ArgumentError: `lora_bias`, or an initialisation that reads a dense weight.

    Example:
        >>> import gossamer, peft
        >>> config = with_sparse(LoraConfig(target_modules=["0"], r=2))
        >>> model = torch.nn.Sequential(gossamer.SparseLinear(8, 4, pattern="2:4"))
        >>> type(peft.get_peft_model(model, config).base_model.model[0]).__name__
        'LoraSparseLinear'
    """
    check(with_sparse, locals())
    _check(config)
    config._register_custom_module({SparseLinear: LoraSparseLinear})
    return config


class LoraSparseLinear(nn.Module, LoraLayer):
    """A `SparseLinear` with adapters of low rank at its kept entries; peft makes it.

    The values of the base layer do not train. `merge` adds the adapters to them without a change of
    the mask; `unmerge` takes them away again, to rounding.

    Args:
        base_layer: the layer, or what peft has put around it.
        adapter_name: name of the first adapter.
        config: the configuration that `with_sparse` has checked.
        options: rank, scale and others, as peft gives them.
    """

    # Of LoraLayer, which has no types.
    get_base_layer: Any
    lora_A: Any  # noqa: N815
    lora_B: Any  # noqa: N815
    active_adapters: list[str]
    lora_dropout: Any
    scaling: dict[str, float]
    merged_adapters: list[str]

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: LoraConfig, **options: Any
    ) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Unsupported layer type")
            LoraLayer.__init__(self, base_layer)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config=config, **options)

    def update_layer(
        self, adapter_name: str, *args: Any, config: LoraConfig, **options: Any
    ) -> None:
        """Add an adapter; peft calls this."""
        _check(config)
        super().update_layer(adapter_name, *args, config=config, **options)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return what an adapter adds to the values: s (B A) at the kept entries, [nnz]."""
        down, up = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        weight = self.get_base_layer().weight
        if weight.dtype == torch.float64:
            down, up = down.double(), up.double()
        found: Tensor = sddmm(up.t(), down, weight) * self.scaling[adapter]
        return found.to(weight.dtype)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the product; x [..., in_features]."""
        LoraLayer._check_forward_args(self, x, *args, **kwargs)
        if kwargs.pop("adapter_names", None) is not None:
            raise ArgumentError(
                "adapter_names (an adapter per sample) was given, and a sparse layer multiplies a "
                "batch with one set of values: call the model once per adapter"
            )
        layer = self.get_base_layer()
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            return layer(x, *args, **kwargs)  # type: ignore[no-any-return]
        active = [name for name in self.active_adapters if name in self.lora_A]
        values = layer.weight.values
        dropped = []
        for name in active:
            if isinstance(self.lora_dropout[name], nn.Identity) or not self.training:
                values = values + self.get_delta_weight(name)
            else:
                dropped.append(name)
        y: Tensor = functional_call(layer, {"weight.values": values}, (x, *args), kwargs)
        for name in dropped:  # on other inputs
            own = {"weight.values": self.get_delta_weight(name)}
            if layer.bias is not None:
                own["bias"] = torch.zeros_like(layer.bias)
            y = y + functional_call(layer, own, (self.lora_dropout[name](x), *args), kwargs)
        return y

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the values; the mask stays.

        Args:
            safe_merge: whether to refuse a result that is not finite.
            adapter_names: which; None is the active ones.

        Raises:
            ValueError: it is not finite; the values do not change.
        """
        values = self.get_base_layer().weight.values
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.lora_A:
                continue
            merged = values + self.get_delta_weight(name)
            if safe_merge and not merged.isfinite().all():
                raise ValueError(
                    f"the values merged with adapter {name!r} are not finite; it was trained to "
                    "NaN or infinity: use another adapter"
                )
            values.copy_(merged)
            self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take merged adapters from the values, to rounding."""
        values = self.get_base_layer().weight.values
        while self.merged_adapters:
            values.sub_(self.get_delta_weight(self.merged_adapters.pop()))

    def __repr__(self) -> str:
        return f"lora.{super().__repr__()}"


def _check(config: LoraConfig) -> None:
    if config.lora_bias:
        raise ArgumentError(
            "lora_bias=True was given; an adapter of a sparse layer has no bias: train the layer's "
            "own by bias='lora_only'"
        )
    if config.init_lora_weights not in _INITS:
        raise ArgumentError(
            f"init_lora_weights={config.init_lora_weights!r:.80} reads a dense weight; choose "
            "True, False or 'gaussian' for sparse layers"
        )
