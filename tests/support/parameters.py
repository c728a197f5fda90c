"""Modules that multiply by their own parameters, how they are called, and their sparse forms."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer import densify, sparsify

F64 = torch.float64


class Bare(nn.Module):
    """Multiplies by its parameters in each of the usual ways."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(8))
        self.up = nn.Parameter(torch.randn(8, 16))
        self.down = nn.Parameter(torch.randn(8, 16))
        self.mix = nn.ParameterList([nn.Parameter(torch.randn(8, 8)) for _ in range(2)])
        self.stack = nn.Parameter(torch.randn(3, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear((x @ self.up).tanh(), self.down, self.bias)
        x = torch.addmm(self.bias, x @ self.mix[0].T, self.mix[1])
        return torch.stack([F.linear(x, self.stack[i]) for i in range(3)])


BARE = ["up", "down", "mix.*", "stack"]


def attention(**options: Any) -> nn.Module:
    return nn.MultiheadAttention(16, 2, **options)


def run_attention(same: bool, **options: Any) -> Callable[[nn.Module, Tensor], Any]:
    def run(model: nn.Module, x: Tensor) -> Any:
        other = x if same else x.flip(0) * 2
        return model(x, other, other if same else other + 1, **options)[0]

    return run


def packed(model: nn.Module, x: Tensor) -> Any:
    lengths = [3, 5, 1]
    rows = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, last = model(rows)
    last = last if isinstance(last, tuple) else (last,)
    return torch.cat([y.data.flatten(), *(part.flatten() for part in last)])


def whole(model: nn.Module, x: Tensor) -> Any:
    y, last = model(x)
    last = last if isinstance(last, tuple) else (last,)
    return torch.cat([y.flatten(), *(part.flatten() for part in last)])


def call(model: nn.Module, x: Tensor) -> Any:
    return model(x)


ENCODER = {"dim_feedforward": 32, "dropout": 0.0, "batch_first": True}
# A model, how it is called, the sizes of x, and how many of its parameters are replaced.
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[..., Any], tuple[int, ...], int]] = {
    "attention": (attention, run_attention(True), (5, 3, 16), 2),
    "cross attention": (attention, run_attention(False), (5, 3, 16), 2),
    "attention without weights": (
        lambda: attention(bias=False, batch_first=True),
        run_attention(True, need_weights=False), (5, 3, 16), 2,
    ),
    "attention with all": (
        lambda: attention(add_bias_kv=True, add_zero_attn=True),
        run_attention(False, average_attn_weights=False), (5, 3, 16), 2,
    ),
    "attention of separate sizes": (
        lambda: attention(kdim=8, vdim=4),
        lambda m, x: m(x, x[..., :8], x[..., :4])[0], (5, 3, 16), 4,
    ),
    "encoder": (lambda: nn.TransformerEncoderLayer(16, 2, **ENCODER), call, (2, 5, 16), 2),
    "encoder stack": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, **ENCODER), 2, enable_nested_tensor=False
        ),
        lambda m, x: m(x, src_key_padding_mask=torch.tensor([[0, 0, 1], [0, 0, 0]]).bool()),
        (2, 3, 16), 4,
    ),
    "decoder": (
        lambda: nn.TransformerDecoderLayer(16, 2, **ENCODER),
        lambda m, x: m(x, x.flip(1)), (2, 5, 16), 4,
    ),
    "bilinear": (lambda: nn.Bilinear(8, 8, 4), lambda m, x: m(x, x + 1), (2, 5, 8), 1),
    "bare": (Bare, call, (4, 8), 5),
}  # fmt: skip
for _kind in (nn.LSTM, nn.GRU, nn.RNN):
    for _name, _options in {
        "": {}, " two layers": {"num_layers": 2, "bidirectional": True, "dropout": 0.0},
        " batch first": {"batch_first": True, "bias": False},
    }.items():  # fmt: skip
        _count = 2 * _options.get("num_layers", 1) * (2 if "bidirectional" in _options else 1)
        _make = lambda kind=_kind, o=_options: kind(8, 4, **o)  # noqa: E731
        CASES[f"{_kind.__name__}{_name}"] = (_make, whole, (5, 3, 8), _count)
        if not _options.get("batch_first"):
            CASES[f"{_kind.__name__}{_name} packed"] = (_make, packed, (5, 3, 8), _count)
CASES["LSTM of projections"] = (
    lambda: nn.LSTM(8, 16, 2, proj_size=4, bidirectional=True), packed, (5, 3, 8), 12,
)  # fmt: skip
CASES["LSTM without batch"] = (lambda: nn.LSTM(8, 4), whole, (5, 8), 2)
CASES["RNN of relu"] = (lambda: nn.RNN(8, 4, nonlinearity="relu"), whole, (5, 3, 8), 2)
for _cell in (nn.LSTMCell, nn.GRUCell, nn.RNNCell):
    CASES[_cell.__name__] = (
        lambda cell=_cell: cell(8, 4),
        lambda m, x: m(x)[0] if isinstance(m(x), tuple) else m(x), (3, 8), 2,
    )  # fmt: skip


def built(name: str, pattern: str = "2:4") -> tuple[nn.Module, nn.Module, Callable[..., Any]]:
    """A sparse model, its dense form by `densify`, and how they are called."""
    make, run, shape, _ = CASES[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.ModuleDict({"part": make(), "fc": nn.Linear(8, 8)})).to(F64)
    named = ["0.part." + glob for glob in BARE] if name == "bare" else ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*outputs that read nothing")
        sparsify(model, pattern, parameters=named)
    dense = densify(copy.deepcopy(model))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, dtype=F64, generator=generator)
    return model, dense, lambda m, x=x: run(m[0]["part"], x)
