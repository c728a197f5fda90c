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
from gossamer.activations.switch import Form
from gossamer.arguments import check, shown
from gossamer.errors import ArgumentError, DTypeError, ShapeError
from gossamer.nn.layers import activation_calls as calls
from gossamer.nn.layers.compiled_activations import compiled_feed_forward
from gossamer.nn.layers.live_shares import LiveShares
from gossamer.nn.layers.numbered import number
from gossamer.nn.layers.origin import Origin
from gossamer.ops.autocast import autocast, is_autocast
from gossamer.patterns import as_integer

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
        device: the kernels run on the CPU.
        dtype: float32, float64 or bfloat16; None is torch's default dtype.

    Raises:
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

    gate: nn.Parameter
    up: nn.Parameter | None
    down: nn.Parameter

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
        options = {"device": device, "dtype": dtype}

        def weight() -> nn.Parameter:
            return nn.Parameter(torch.empty(self.hidden, self.d, **options))  # type: ignore[arg-type]

        def vector(size: int) -> nn.Parameter | None:
            return nn.Parameter(torch.empty(size, **options)) if bias else None  # type: ignore[arg-type]

        self.gate = weight()
        self.up = weight() if gated else None
        self.down = weight()
        self.gate_bias = vector(self.hidden)
        self.up_bias = vector(self.hidden) if gated else None
        self.down_bias = vector(self.d)
        self.reset_parameters()
        self._set_up()

    def _set_up(self) -> None:
        self.penalty: SupportsFloat = 0.0
        """Strength of the L1 penalty on h in training; `recipes.ActivationL1` sets it."""
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
                factor.
            activation: see the class, as the next two.
            gate: see the class.
            slack: see the class.

        Raises:
            ShapeError: a size does not fit the gate's.
        """
        check(ActivationSparseFFN.of_parts, locals())
        hidden, d = weights.gate.shape
        sizes = [[hidden, d]] * 3 + [[hidden], [hidden], [d]]
        for name, parameter, size in zip(Weights._fields, weights, sizes, strict=True):
            shape = size if parameter is None else list(parameter.shape)
            if shape != size:
                raise ShapeError(
                    f"{name} has shape {shape}; {size} is needed beside a gate of shape "
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
        """The Parameters."""
        return Weights(self.gate, self.up, self.down, self.gate_bias, self.up_bias, self.down_bias)

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
        dead = self.shares.dead()
        return 0.0 if dead is None else float(dead.float().mean())

    def take_counts(self) -> tuple[int, int]:
        """Return the live pairs and all pairs of the training passes since the last call."""
        return self.shares.take()

    def reset_parameters(self) -> None:
        """Draw the parameters as nn.Linear does."""
        for weight, fan_in in ((self.gate, self.d), (self.up, self.d), (self.down, self.hidden)):
            if weight is not None:
                nn.init.uniform_(weight, -(fan_in**-0.5), fan_in**-0.5)
        biases = ((self.gate_bias, self.d), (self.up_bias, self.d), (self.down_bias, self.hidden))
        for bias, fan_in in biases:
            if bias is not None:
                nn.init.uniform_(bias, -(fan_in**-0.5), fan_in**-0.5)

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
            f"bias={self.down_bias is not None}"
        )


__all__ = ["ActivationSparseFFN"]
