"""ActivationSparseFFN: a feed-forward network that computes only its live activations."""

from __future__ import annotations

import math
from typing import Any, Literal, SupportsFloat, TypeAlias

import torch
from torch import Tensor, nn

from gossamer.activations import (
    Activation,
    GradientMemory,
    Weights,
    dense_feed_forward,
    sparse_feed_forward,
)
from gossamer.activations.decoding import RoundedGate
from gossamer.activations.passes import Former
from gossamer.activations.switch import Form
from gossamer.arguments import check, shown
from gossamer.errors import ArgumentError, DTypeError, ShapeError
from gossamer.nn.layers import activation_calls as calls
from gossamer.nn.layers.compiled_activations import compiled_feed_forward
from gossamer.nn.layers.linear import SparseLinear
from gossamer.nn.layers.live_shares import LiveShares
from gossamer.nn.layers.numbered import number
from gossamer.nn.layers.origin import Origin
from gossamer.ops.autocast import autocast, is_autocast
from gossamer.ops.expansion import expand
from gossamer.patterns import Pattern, as_integer

Gate: TypeAlias = Literal["auto", "dense", "float32", "int8"]

_GATES = ("auto", "dense", "float32", "int8")
_ACTIVATIONS = ("relu", "relu2")
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


class ActivationSparseFFN(nn.Module):
    """A feed-forward network y = h Wd, h = act(x Wg^T) * (x Wu^T), that visits live entries of h.

    act is zero for what is not positive. Where few entries of h are alive (a small L1 penalty
    leaves 0.5 to 5 % of them, see `gossamer.recipes.ActivationL1`), all products but the gate's
    cost only these, forward and backward. All forms of the computation give the same numbers up to
    rounding, and `gate="auto"` takes the fastest for the running shares.

    Args:
        d: size of an input and output row.
        hidden: neurons.
        gated: whether h has a second factor x Wu^T.
        gate: how the gate is computed: "float32" (the dtype of the weights, by torch), "int8"
            (screened in int8 with a bound on the error, then exact), "dense" (the whole network by
            torch), or "auto", which measures them once a shape.
        slack: scales the bound of the int8 screen. 1 is rigorous: the same live pairs as
            "float32". 6 / sqrt(d) is six standard deviations if rounding errors were independent.
        activation: "relu", or "relu2", its square.
        bias: whether to learn biases: [hidden] of gate and up, [d] of down.
        device: device of the tensors.
        dtype: float32, float64 or bfloat16; None is torch's default dtype.
        pattern: pattern of sparse weights, such as "2:4:v4": gate, up and down are `SparseLinear`
            layers then. Their rows are written out dense once per call, and their gradients are
            taken at the kept entries. None is dense weights.

    Raises:
        PatternError: the sizes do not fit the pattern.
        ArgumentError: a size is not positive, or a name is not known.
        DTypeError: the dtype is not supported.

    Example:
        >>> import torch
        >>> layer = ActivationSparseFFN(64, 256)
        >>> layer(torch.randn(2, 8, 64)).shape
        torch.Size([2, 8, 64])
        >>> 0.3 < layer.live_share < 0.7
        True
    """

    gate: nn.Parameter | SparseLinear
    up: nn.Parameter | SparseLinear | None
    down: nn.Parameter | SparseLinear

    def __init__(
        self,
        d: int,
        hidden: int,
        gated: bool = True,
        gate: Gate = "auto",
        slack: float = 1.0,
        activation: Activation = "relu",
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        pattern: str | Pattern | None = None,
    ) -> None:
        super().__init__()
        check(ActivationSparseFFN.__init__, locals())
        self.d = as_integer(d, "ActivationSparseFFN got d")
        self.hidden = as_integer(hidden, "ActivationSparseFFN got hidden")
        if self.d < 1 or self.hidden < 1:
            raise ArgumentError(
                f"ActivationSparseFFN got d={d} and hidden={hidden}; both must be at least 1"
            )
        for name, value in (("gated", gated), ("bias", bias)):
            if not isinstance(value, bool):
                raise ArgumentError(f"{name} is {value!r:.80}; True or False is needed")
        if activation not in _ACTIVATIONS:
            raise ArgumentError(f"activation is {activation!r:.80}; choose 'relu' or 'relu2'")
        self.activation: Activation = activation
        self.gate_form = gate
        self.slack = slack
        dtype = dtype or torch.get_default_dtype()
        if dtype not in _DTYPES:
            raise DTypeError(
                f"ActivationSparseFFN got dtype {dtype}; choose float32, float64 or bfloat16"
            )
        options: dict[str, Any] = {"device": device, "dtype": dtype}

        def weight(turned: bool = False) -> nn.Parameter | SparseLinear:
            if pattern is None:
                return nn.Parameter(torch.empty(self.hidden, self.d, **options))
            sizes = (self.hidden, self.d) if turned else (self.d, self.hidden)
            return SparseLinear(*sizes, bias, pattern=pattern, **options)

        def vector(size: int) -> nn.Parameter | None:
            own = bias and pattern is None  # a sparse layer has its bias inside
            return nn.Parameter(torch.empty(size, **options)) if own else None

        self.gate = weight()
        self.up = weight() if gated else None
        self.down = weight(turned=True)
        self.gate_bias = vector(self.hidden)
        self.up_bias = vector(self.hidden) if gated else None
        self.down_bias = vector(self.d)
        self.reset_parameters()
        self._set_up()

    def _set_up(self) -> None:
        self.penalty: SupportsFloat = 0.0
        """Strength of the L1 penalty on h in training; `recipes.ActivationL1` sets it."""
        self.former: Former | None = None
        """The activation that `sparsify_activations(relufy=True)` has replaced by ReLU."""
        self.softness: SupportsFloat = 0.0
        """The share of `former` in the activation; above 0 the network is dense."""
        self.revival: SupportsFloat = 0.0
        """Strength of the pull on the gates of dead neurons in training."""
        self.origin: Origin | None = None
        """What `sparsify_activations` replaced by this layer."""
        self.memory = GradientMemory()
        """Where the gradients of the weights are written."""
        self.shares = LiveShares()
        """What the calls so far found."""
        self.rounded = RoundedGate()
        """The gate in int8, kept from call to call while it decodes."""
        self.number = number(self)
        self.form: Form | None = None
        """How the last call was computed, None before the first."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.number = number(self)  # a copy has its own

    @classmethod
    def of_parts(
        cls,
        weights: Weights,
        activation: Activation = "relu",
        gate: Gate = "auto",
        slack: float = 1.0,
    ) -> ActivationSparseFFN:
        """Make a layer of existing Parameters, which may be shared with other layers.

        Args:
            weights: Parameters [hidden, d], and biases; `up` None makes the form without a second
                factor. A `SparseLinear` of gate, up or down, which maps as its dense layer does,
                stands for its weight and its bias.
            activation: see the class, as the next two.
            gate: see the class.
            slack: see the class.

        Raises:
            ShapeError: a size does not fit the gate's.
        """
        check(ActivationSparseFFN.of_parts, locals())
        parts = [_shape(part) for part in weights]
        hidden, d = parts[0] or [0, 0]
        down = [d, hidden] if _stored_turned(weights.down) else [hidden, d]
        sizes = [[hidden, d], [hidden, d], down, [hidden], [hidden], [d]]
        for name, found, size in zip(Weights._fields, parts, sizes, strict=True):
            if found not in (None, size):
                raise ShapeError(
                    f"{name} has shape {found}; {size} is needed beside a gate of shape "
                    f"{[hidden, d]}"
                )
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.hidden, layer.d = hidden, d
        layer.activation = activation
        layer.gate_form, layer.slack = gate, slack
        for name, parameter in zip(Weights._fields, weights, strict=True):
            setattr(layer, name, parameter)
        layer._set_up()
        return layer

    @classmethod
    def find_in(cls, model: nn.Module) -> dict[str, ActivationSparseFFN]:
        """Return the layers of this class in a model, by name."""
        check(ActivationSparseFFN.find_in, locals())
        return {name: m for name, m in model.named_modules() if isinstance(m, cls)}

    @property
    def gate_form(self) -> Gate:
        """How the gate is computed: "auto", "dense", "float32" or "int8"."""
        return self._gate_form

    @gate_form.setter
    def gate_form(self, form: Gate) -> None:
        if form not in _GATES:
            raise ArgumentError(f"gate is {form!r:.80}; choose one of {', '.join(_GATES)}")
        self._gate_form: Gate = form

    @property
    def slack(self) -> float:
        """What scales the bound of the int8 screen; 1 is rigorous."""
        return self._slack

    @slack.setter
    def slack(self, slack: float) -> None:
        if isinstance(slack, bool) or not isinstance(slack, int | float) or not 0 <= slack <= 1:
            raise ArgumentError(f"slack is {slack!r:.80}; a number in [0, 1] is needed")
        self._slack = float(slack)

    @property
    def weights(self) -> Weights:
        """The Parameters; of sparse layers their weights as dense matrices, differentiable."""
        up = None if self.up is None else _rows(self.up)
        return Weights(_rows(self.gate), up, _rows(self.down, turned=True), *self._biases)

    @property
    def parts(self) -> Weights:
        """Gate, up and down as they are stored, Parameters or `SparseLinear`, and biases."""
        return Weights(*(getattr(self, name) for name in Weights._fields))

    @property
    def sparse_parts(self) -> dict[str, SparseLinear]:
        """Those of gate, up and down whose weights are sparse, by name."""
        parts = {name: getattr(self, name) for name in Weights._fields[:3]}
        return {name: part for name, part in parts.items() if isinstance(part, SparseLinear)}

    @property
    def _biases(self) -> list[Tensor | None]:
        own = (self.gate_bias, self.up_bias, self.down_bias)
        parts = (self.gate, self.up, self.down)
        pairs = zip(parts, own, strict=True)
        return [part.bias if isinstance(part, SparseLinear) else bias for part, bias in pairs]

    @property
    def live_share(self) -> float:
        """The running share of live entries of h, NaN before the first call."""
        return math.nan if self.shares.live is None else self.shares.live

    @property
    def screened_share(self) -> float:
        """The running share of pairs that the int8 screen leaves, NaN before it ran."""
        return math.nan if self.shares.screened is None else self.shares.screened

    @property
    def dead_share(self) -> float:
        """The share of neurons that no token of the last 50 training steps made alive."""
        return len(self.shares.dead()) / self.hidden

    def take_counts(self) -> tuple[int, int]:
        """Return the live pairs and all pairs of the training passes since the last call."""
        return self.shares.take()

    def reset_parameters(self) -> None:
        """Draw the parameters as nn.Linear does, of sparse weights as `SparseLinear` does."""
        parts = (self.gate, self.up, self.down)
        biases = (self.gate_bias, self.up_bias, self.down_bias)
        for part, bias, fan_in in zip(parts, biases, (self.d, self.d, self.hidden), strict=True):
            if isinstance(part, SparseLinear):
                part.reset_parameters()
                continue
            for parameter in (part, bias):
                if parameter is not None:
                    nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5)

    def to_dense(self) -> ActivationSparseFFN:
        """Return an equivalent layer with dense weights; copies of those that were sparse."""
        weights = self.weights
        new = [
            w if w is None or isinstance(w, nn.Parameter) else nn.Parameter(w.detach())
            for w in weights
        ]
        kind = type(self)
        layer = kind.of_parts(Weights(*new), self.activation, self.gate_form, self.slack)  # type: ignore[arg-type]
        layer.penalty, layer.revival = self.penalty, self.revival
        layer.former, layer.softness = self.former, self.softness
        return layer.train(self.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Linear has
        """Map input [..., d] to [..., d]."""
        if not isinstance(input, Tensor):
            raise DTypeError(f"ActivationSparseFFN got {shown(input)}; a tensor is needed")
        if input.shape[-1:] != (self.d,):
            raise ShapeError(
                f"ActivationSparseFFN got an input of shape {list(input.shape)}; its last "
                f"dimension must be {self.d}"
            )
        weights = self.weights
        x = input.reshape(-1, self.d)
        if is_autocast(x):
            x, *matrices = autocast(x, *weights[:3])
            weights = weights._replace(**dict(zip(Weights._fields, matrices, strict=False)))
        if x.dtype != weights.gate.dtype:
            raise DTypeError(
                f"ActivationSparseFFN got an input of dtype {x.dtype} and has weights of dtype "
                f"{weights.gate.dtype}; convert one of them"
            )
        learns = torch.is_grad_enabled() and (
            x.requires_grad or any(w is not None and w.requires_grad for w in weights)
        )
        if torch.compiler.is_compiling():
            return compiled_feed_forward(self, x, weights, learns).view(input.shape)
        if learns:
            weights = calls.with_pull(self, x, weights)
        options = calls.plan(self, x, weights, learns)
        if options is None:
            y, h = dense_feed_forward(x, weights, calls.options_of(self, "float32", len(x)))
            calls.count_dense(self, h.detach(), learns)
        elif learns:
            y, counts = sparse_feed_forward(x, weights, options)
            calls.count(self, *counts, learns)
        else:
            y = calls.infer(self, x, weights, options)
        return y.view(input.shape)

    def extra_repr(self) -> str:
        """Return the line that `print(model)` shows."""
        return (
            f"d={self.d}, hidden={self.hidden}, gated={self.up is not None}, "
            f"gate={self.gate_form}, activation={self.activation}, "
            f"bias={self._biases[2] is not None}"
        )


def is_sparse_part(linear: nn.Module) -> bool:
    """Return whether a layer's sparse weight can be that of a network: its gradients are exact."""
    return type(linear) is SparseLinear and linear.weight.backward == "exact"


def _rows(part: nn.Parameter | SparseLinear, turned: bool = False) -> Tensor:
    """Return a weight [hidden, d]; `turned` says that a sparse layer stores its transpose."""
    if not isinstance(part, SparseLinear):
        return part
    dense = expand(part.weight)
    return dense.t().contiguous() if turned else dense


def _stored_turned(down: object) -> bool:
    """Whether the last weight is stored as the layer that maps [hidden] to [d] stores it."""
    return isinstance(down, SparseLinear)


def _shape(part: Any) -> list[int] | None:
    if isinstance(part, SparseLinear):
        return [part.out_features, part.in_features]
    return None if part is None else list(part.shape)


__all__ = ["ActivationSparseFFN", "is_sparse_part"]
