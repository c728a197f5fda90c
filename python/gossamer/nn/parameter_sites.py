"""Finds the parameters that modules multiply by themselves, and that sparse layers can replace.

Known are attention's projections, recurrent matrices, bilinear maps and transformers' experts;
others are named by the caller.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from gossamer.errors import PatternError
from gossamer.nn.globs import listed
from gossamer.nn.layers.base import MaskedLayer
from gossamer.nn.layers.parameter import Form, SparseParameter, stand_in
from gossamer.nn.left_dense import is_dense_linear
from gossamer.weight import SparseWeight

_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
_CELL = ("weight_ih", "weight_hh")
# They do not multiply by their parameters, or by another product.
_OTHERS = (
    nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase, _ConvNd,
    ParametrizationList, SparseWeight, MaskedLayer,
)  # fmt: skip


@dataclass
class ParameterSite:
    """A parameter to replace, and linear layers over its matrices, which stand for it.

    Args:
        parameter: the parameter.
        names: its names in the model.
        form: how its matrices make it up.
        turned: whether it is stored as [in, out].
        parts: a linear layer over each of its matrices [out, in].
        layers: names of layers of torch that are nothing but this parameter and a bias.
    """

    parameter: nn.Parameter
    names: list[str]
    form: Form
    turned: bool
    parts: list[nn.Linear]
    layers: list[str] = field(default_factory=list)

    def part_names(self, index: int) -> list[str]:
        """Return the names of one of its matrices."""
        single = self.form in ("matrix", "fold")
        return [name if single else f"{name}.{index}" for name in self.names]

    def of(self, layers: Mapping[int, nn.Module]) -> SparseParameter | None:
        """Return what replaces the parameter, of layers by the ids of `parts`.

        None if one is missing.
        """
        found: list[Any] = [layers.get(id(part)) for part in self.parts]
        if any(layer is None for layer in found):
            return None
        return SparseParameter(found, self.form, self.parameter.shape, self.turned)


def find_parameter_sites(
    model: nn.Module, named: Sequence[str] = (), turned: Collection[str] = ()
) -> list[ParameterSite]:
    """Return the known parameters, and those that are named.

    Args:
        model: any module.
        named: globs of further parameters, matrices [out, in] or stacks of them.
        turned: names of further parameters that are [in, out].

    Raises:
        PatternError: a glob names no such parameter.
    """
    places: dict[int, list[tuple[str, nn.Module, str, nn.Parameter]]] = {}
    candidates: list[str] = []
    for name, module, own, parameter in _parameters(model):
        places.setdefault(id(parameter), []).append((name, module, own, parameter))
        if _can_be_named(module, parameter):
            candidates.append(name)
    for glob in named:
        if not any(fnmatchcase(name, glob) for name in candidates):
            raise PatternError(
                f"parameters={glob!r} matches no matrix or stack of matrices that a module "
                f"multiplies by itself; the model has {listed(candidates) or 'none'}: correct the "
                "glob or drop it"
            )
    sites = []
    for found in places.values():
        forms = {_form(*place[1:], named, turned, place[0], candidates) for place in found}
        if len(forms) > 1 or None in forms:
            continue  # another kind of module shares it
        (known,) = forms
        assert known is not None  # noqa: S101
        form, is_turned = known
        parameter = found[0][3]
        layers = [name.rpartition(".")[0] for name, module, *_ in found if _is_layer(module)]
        parts = _matrices(parameter, form, is_turned)
        sites.append(
            ParameterSite(parameter, [p[0] for p in found], form, is_turned, parts, layers)
        )
    return sites


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    for name, module in model.named_modules(remove_duplicate=False):
        for own, parameter in module._parameters.items():
            if parameter is not None and not is_lazy(parameter):
                yield f"{name}.{own}" if name else own, module, own, parameter


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def _can_be_named(module: nn.Module, parameter: nn.Parameter) -> bool:
    matrix = parameter.dim() in (2, 3) and min(parameter.shape[-2:]) > 1
    return matrix and not (isinstance(module, _OTHERS) or is_dense_linear(module))


def _form(
    module: nn.Module,
    own: str,
    parameter: nn.Parameter,
    named: Sequence[str],
    turned: Collection[str],
    name: str,
    candidates: Collection[str],
) -> tuple[Form, bool] | None:
    """Return the form of a parameter, and whether it is [in, out]; None if it is not replaced."""
    if name in candidates and any(fnmatchcase(name, glob) for glob in named):
        return _known(module, own, parameter) or (
            "matrix" if parameter.dim() == 2 else "stack",
            name in turned,
        )
    return _known(module, own, parameter)


def _known(module: nn.Module, own: str, parameter: nn.Parameter) -> tuple[Form, bool] | None:
    kind = type(module)
    if kind is nn.MultiheadAttention and own.endswith("proj_weight"):
        return "rows" if own == "in_proj_weight" else "matrix", False
    if kind is NonDynamicallyQuantizableLinear and own == "weight":
        return "matrix", False
    if kind in _RECURRENT and own in getattr(module, "_flat_weights_names", _CELL):
        return ("matrix", False) if own.startswith("weight_") else None
    if kind is nn.Bilinear and own == "weight":
        return "fold", False
    transposed = getattr(module, "is_transposed", None)
    if kind.__name__.endswith("Experts") and own.endswith("_proj") and parameter.dim() == 3:
        return ("stack", transposed) if isinstance(transposed, bool) else None
    return None


def _matrices(parameter: nn.Parameter, form: Form, turned: bool) -> list[nn.Linear]:
    dense = parameter.detach()
    matrices: Sequence[torch.Tensor] = [dense]
    if form == "rows":
        matrices = dense.chunk(3)
    elif form == "stack":
        matrices = list(dense)
    elif form == "fold":
        matrices = [dense.flatten(0, 1)]
    return [stand_in(m.t() if turned else m, parameter.requires_grad) for m in matrices]


__all__ = ["ParameterSite", "find_parameter_sites"]
