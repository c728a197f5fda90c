"""How each layer is described and built again: its options, which its state dict lacks, as JSON.

A description is `{"kind": name, option: value, …}`. Together with the layer's state dict it gives
an equal layer, without the dense layer that stood in its place. Everything in both is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from gossamer.activations import Activation, Weights
from gossamer.activations.passes import Former
from gossamer.backend import Structure
from gossamer.errors import CheckpointError, GossamerError
from gossamer.nn.layers.activation_sparse import ActivationSparseFFN
from gossamer.nn.layers.adapted import AdaptedLinear
from gossamer.nn.layers.base import MaskedLayer, linear_of_parts
from gossamer.nn.layers.bimask import BiMaskLinear
from gossamer.nn.layers.convolution import KINDS as CONVOLUTIONS
from gossamer.nn.layers.convolution import SparseConv
from gossamer.nn.layers.filters import SHAPE, options_of
from gossamer.nn.layers.iso_flop import NONLINEARITIES, Branches, Doped, Factors
from gossamer.nn.layers.linear import SparseLinear
from gossamer.nn.layers.masked import Gradient, MaskedLinear
from gossamer.nn.layers.parameter import Form, SparseParameter
from gossamer.nn.layers.permuted import PermutedLinear
from gossamer.nn.layers.popup import PopupLinear
from gossamer.nn.layers.preserving import SPPLinear
from gossamer.nn.layers.products import product_of
from gossamer.nn.layers.sampled import SampledLinear
from gossamer.nn.layers.soft_threshold import SoftThresholdLinear
from gossamer.nn.layers.subset import SubsetLinear
from gossamer.nn.layers.threshold import ThresholdLinear
from gossamer.patterns import Pattern, pattern_of_fields, plain_fields
from gossamer.weight import SparseWeight, descriptor
from gossamer.weight.sharding import class_of

MADE_BY = "_gossamer_recipe"
"""The attribute with the identity of the recipe that made a layer: it can be attached again."""

State = Mapping[str, Tensor]
Options = Mapping[str, Any]


class Kind(NamedTuple):
    """How the layers of one class are described and built."""

    options: Callable[[Any], dict[str, Any]]
    """Returns the options of a layer, as JSON values."""
    build: Callable[[State, Options], nn.Module]
    """Builds a layer of its state dict and its options."""


KINDS: dict[type[nn.Module], Kind] = {}


def describe(layer: nn.Module) -> dict[str, Any] | None:
    """Return the description of a layer, None if it is not one of `KINDS`.

    Example:
        >>> describe(SparseLinear(8, 4, pattern="2:4"))
        {'kind': 'SparseLinear', 'pattern': '2:4', 'transpose': 'packed', 'backward': 'exact'}
    """
    own = class_of(layer)
    kind = KINDS.get(own)
    if kind is None:
        return None
    found = {"kind": own.__name__, **kind.options(layer)}
    if (maker := vars(layer).get(MADE_BY)) is not None:
        found["recipe"] = maker
    return found


def build(described: Options, state: State) -> nn.Module:
    """Build a layer of its description and its state dict; the tensors are copied.

    Raises:
        CheckpointError: the two do not describe a layer; StructureError: its structure is damaged.
    """
    name = described.get("kind") if isinstance(described, Mapping) else described
    kind = next((kind for layer, kind in KINDS.items() if layer.__name__ == name), None)
    if kind is None:
        raise CheckpointError(
            f"a layer of kind {name!r:.80} was saved; this version knows "
            f"{', '.join(layer.__name__ for layer in KINDS)}: load it with the version of the file"
        )
    try:
        layer = kind.build(state, described)
        layer.load_state_dict(state)
    except GossamerError:
        raise
    except KeyError as error:
        raise CheckpointError(f"{name} lacks {error}; use another copy of the file") from None
    except Exception as error:  # of the constructors, which damaged numbers may reach
        raise CheckpointError(f"{name} cannot be built: {error!s:.400}") from None
    if isinstance(maker := described.get("recipe"), Mapping):
        object.__setattr__(layer, MADE_BY, dict(maker))
    return layer


def part_of(state: State, prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {name[len(prefix) :]: t for name, t in state.items() if name.startswith(prefix)}


def _plain(pattern: Pattern | None) -> dict[str, Any] | None:
    """Return a pattern with its exact numbers, which its text rounds."""
    return None if pattern is None else plain_fields(pattern)


def _pattern(plain: Options | None) -> Any:
    return None if plain is None else pattern_of_fields(plain)


def _one_of(options: Options, name: str, allowed: tuple[Any, ...]) -> Any:
    value = options[name]
    if not any(value is known or (isinstance(value, str) and value == known) for known in allowed):
        known = ", ".join(map(repr, allowed))
        raise CheckpointError(f"{name} is {value!r:.80}; it is one of {known}")
    return value


def _parameter(state: State, name: str) -> nn.Parameter | None:
    return nn.Parameter(state[name].clone()) if name in state else None


def _needed(state: State, name: str) -> nn.Parameter:
    return nn.Parameter(state[name].clone())


# ---- weights that store kept entries only ------------------------------------------------------


def _weight_options(weight: SparseWeight) -> dict[str, Any]:
    return {
        "pattern": str(weight.pattern),  # for a reader; the descriptor is what counts
        "transpose": weight.stored_transpose,
        "backward": weight.backward,
    }


def _weight(state: State, options: Options) -> SparseWeight:
    pattern, layout = descriptor.read(state["descriptor"])
    indptr = state["indptr"].clone() if "indptr" in state else None
    structure = Structure(layout, state["indices"].clone(), indptr)
    rule = {"transpose": options["transpose"], "backward": options["backward"]}
    return SparseWeight(state["values"].clone(), structure, pattern, **rule)


def _linear(state: State, options: Options) -> SparseLinear:
    weight = _weight(part_of(state, "weight."), options)
    return SparseLinear.of_parts(weight, _parameter(state, "bias"))


def _permuted(state: State, options: Options) -> PermutedLinear:
    weight = _weight(part_of(state, "weight."), options)
    return PermutedLinear.of_parts(weight, _parameter(state, "bias"), state["row_order"])


def _adapted(state: State, options: Options) -> AdaptedLinear:
    weight = _weight(part_of(state, "weight."), options)
    layer = AdaptedLinear.of_parts(weight, _parameter(state, "bias"))
    if "adapter.left" in state:
        # Its own generator: a load draws no numbers from torch's.
        layer.insert(state["adapter.left"].shape[1], torch.Generator())
    return layer


def _preserving(state: State, options: Options) -> SPPLinear:
    weight = _weight(part_of(state, "weight."), options)
    rank, scale = len(state["column_scale"]), float(options["scale"])
    # Its own generator: a load draws no numbers from torch's.
    return SPPLinear.of_parts(weight, _parameter(state, "bias"), rank, scale, torch.Generator())


def _linear_options(layer: MaskedLayer) -> dict[str, Any]:
    weight = layer.sparse_weight
    assert weight is not None  # noqa: S101 - of layers that have one
    return _weight_options(weight)


KINDS[SparseWeight] = Kind(_weight_options, _weight)
KINDS[SparseLinear] = Kind(_linear_options, _linear)
KINDS[PermutedLinear] = Kind(_linear_options, _permuted)
KINDS[AdaptedLinear] = Kind(_linear_options, _adapted)
KINDS[SPPLinear] = Kind(lambda layer: _linear_options(layer) | {"scale": layer.scale}, _preserving)


def _convolution_options(layer: SparseConv) -> dict[str, Any]:
    return _weight_options(layer.weight) | options_of(layer)


def _convolution(kind: type[SparseConv]) -> Callable[[State, Options], SparseConv]:
    def build(state: State, options: Options) -> SparseConv:
        weight = _weight(part_of(state, "weight."), options)
        window = {name: options[name] for name in SHAPE}
        return kind.of_parts(weight, _parameter(state, "bias"), **window)

    return build


for _convolved in CONVOLUTIONS:
    KINDS[_convolved] = Kind(_convolution_options, _convolution(_convolved))

# ---- dense weights under a mask ----------------------------------------------------------------


def _masked_options(layer: MaskedLinear) -> dict[str, Any]:
    return {
        "pattern": str(layer.pattern),  # for a reader
        "target": _plain(layer.target),
        "gradient": layer.gradient,
        "reselect_each_forward": layer.reselect_each_forward,
        **layer.product.options(),
    }


def _sampled_options(layer: SampledLinear) -> dict[str, Any]:
    sample = _plain(layer.sample)
    return _masked_options(layer) | {"sample": sample, "seed": layer.seed, "index": layer.index}


def _masked(kind: Callable[..., MaskedLinear]) -> Callable[[State, Options], MaskedLinear]:
    def build(state: State, options: Options) -> MaskedLinear:
        pattern, layout = descriptor.read(state["descriptor"])
        weight = _needed(state, "weight")
        if tuple(weight.shape) != (layout.rows, layout.cols):
            raise CheckpointError(
                f"the weight is {list(weight.shape)}, its mask {layout.rows} x {layout.cols}; the "
                "file is damaged: use another copy"
            )
        given: dict[str, Any] = {"product": product_of(options)}
        if "threshold" in state:
            given["per"] = "layer" if len(state["threshold"]) == 1 else "channel"
        layer = kind(weight, _parameter(state, "bias"), pattern, **given)
        layer.reselect_each_forward = _one_of(options, "reselect_each_forward", (True, False))
        layer.gradient = _one_of(options, "gradient", get_args(Gradient))
        layer.target = _pattern(options["target"])
        if isinstance(layer, SampledLinear):
            layer.sample = _pattern(options["sample"])
            layer.seed, layer.index = int(options["seed"]), int(options["index"])
        return layer

    return build


def _subset_options(layer: SubsetLinear) -> dict[str, Any]:
    return layer.product.options()


def _subset(state: State, options: Options) -> SubsetLinear:
    part = part_of(state, "trained.")
    known = {"transpose": "none", "backward": "exact"}
    mask = _weight(part, known).mask()
    weight = state["weight"].clone()
    return SubsetLinear(weight, _parameter(state, "bias"), mask, product_of(options))


KINDS[SubsetLinear] = Kind(_subset_options, _subset)
for _kind in (MaskedLinear, BiMaskLinear, PopupLinear, ThresholdLinear):
    KINDS[_kind] = Kind(_masked_options, _masked(_kind))
for _sampled in (SampledLinear, SoftThresholdLinear):
    KINDS[_sampled] = Kind(_sampled_options, _masked(_sampled))

# ---- several layers in the place of one --------------------------------------------------------


def _parts_options(layer: nn.Module) -> dict[str, Any]:
    """Return the options of the sparse layers inside, and the function between them."""
    parts = {name: describe(part) for name, part in layer.named_modules() if name}
    found: dict[str, Any] = {
        "parts": {
            name: part for name, part in parts.items() if part and part["kind"] == "SparseLinear"
        }
    }
    if hasattr(layer, "nonlinearity"):
        found["nonlinearity"] = layer.nonlinearity
    return found


def _parts(kind: type[nn.Module]) -> Callable[[State, Options], nn.Module]:
    def build_parts(state: State, options: Options) -> nn.Module:
        layer = kind.__new__(kind)
        nn.Module.__init__(layer)
        parts = {
            name: build(part, part_of(state, f"{name}.")) for name, part in options["parts"].items()
        }
        if kind is Branches:
            layer.branches = nn.ModuleList(parts[f"branches.{i}"] for i in range(len(parts)))
            layer.register_parameter("bias", _parameter(state, "bias"))
        else:
            for name in ("sparse",) if kind is Doped else ("down", "up"):
                layer.add_module(name, parts[name])
        if kind is Doped:
            for name in ("down", "up"):
                layer.add_module(name, linear_of_parts(_needed(state, f"{name}.weight"), None))
        some: Any = next(iter(parts.values()))
        first, last = (parts["down"], parts["up"]) if kind is Factors else (some, some)
        layer.in_features, layer.out_features = first.in_features, last.out_features
        if kind is not Doped:
            layer.nonlinearity = _one_of(options, "nonlinearity", tuple(NONLINEARITIES))
        return layer

    return build_parts


for _several in (Branches, Factors, Doped):
    KINDS[_several] = Kind(_parts_options, _parts(_several))

# ---- layers in the place of a parameter --------------------------------------------------------


def _parameter_options(whole: SparseParameter) -> dict[str, Any]:
    return {
        "form": whole.form, "shape": list(whole.shape), "turned": whole.turned,
        "order": list(whole.order), "parts": [describe(part) for part in whole.children()],
    }  # fmt: skip


def _whole(state: State, options: Options) -> SparseParameter:
    parts = [build(part, part_of(state, f"{i}.")) for i, part in enumerate(options["parts"])]
    if not all(isinstance(part, MaskedLayer) for part in parts):
        raise CheckpointError("SparseParameter has a part that is no layer with a mask")
    form = _one_of(options, "form", get_args(Form))
    shape = [int(size) for size in options["shape"]]
    turned = _one_of(options, "turned", (True, False))
    order = [str(name) for name in options["order"]]
    return SparseParameter(parts, form, shape, turned, order)  # type: ignore[arg-type]


KINDS[SparseParameter] = Kind(_parameter_options, _whole)

# ---- sparse activations ------------------------------------------------------------------------


def _network_options(layer: ActivationSparseFFN) -> dict[str, Any]:
    found: dict[str, Any] = {
        "activation": layer.activation, "gate": layer.gate_form, "slack": layer.slack,
    }  # fmt: skip
    if layer.former is not None:
        found["former"] = layer.former
    if sparse := layer.sparse_parts:
        found["parts"] = {name: describe(part) for name, part in sparse.items()}
    return found


def _network(state: State, options: Options) -> ActivationSparseFFN:
    parts: dict[str, Any] = {name: _parameter(state, name) for name in Weights._fields}
    for name, part in options.get("parts", {}).items():
        if name not in Weights._fields[:3]:
            raise CheckpointError(f"ActivationSparseFFN has no part {name!r:.80}")
        parts[name] = build(part, part_of(state, f"{name}."))
    weights = Weights(**parts)
    if weights.gate is None or weights.down is None:
        raise CheckpointError("ActivationSparseFFN lacks gate or down; use another copy")
    activation = _one_of(options, "activation", get_args(Activation))
    layer = ActivationSparseFFN.of_parts(weights, activation)
    layer.gate_form, layer.slack = options["gate"], options["slack"]
    if "former" in options:
        layer.former = _one_of(options, "former", get_args(Former))
    return layer


KINDS[ActivationSparseFFN] = Kind(_network_options, _network)

__all__ = ["KINDS", "MADE_BY", "Kind", "build", "describe", "part_of"]
