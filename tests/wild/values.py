"""Arguments: what a parameter of this name and annotation takes, nearly takes, and never takes.

All valid values belong to one small world (8 outputs, 16 inputs, a batch of 4), so that those of
several parameters fit one another.
"""

from __future__ import annotations

import collections.abc
import contextlib
import inspect
import math
import types
import typing
from collections.abc import Callable
from random import Random
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import torch
from torch import Tensor, nn

import gossamer
from gossamer import backend, codes, masks, prox, recipes
from gossamer.arguments import check_one
from gossamer.errors import ArgumentError, DTypeError

ROWS, COLS, BATCH, K = 8, 16, 4, 3


class Odd:
    """An object that is nothing in particular."""


UNKNOWN = Odd()
Maker = Callable[[Random], Any]


def model(_: Random) -> nn.Module:
    return nn.Sequential(nn.Linear(COLS, ROWS), nn.ReLU(), nn.Linear(ROWS, 4))


def sparse_model(_: Random) -> nn.Module:
    return gossamer.sparsify(nn.Sequential(nn.Linear(COLS, ROWS), nn.ReLU()), "2:4")


def dense(_: Random) -> Tensor:
    return torch.randn(ROWS, COLS)


def mask(_: Random) -> Tensor:
    return (torch.arange(COLS) % 4 < 2).expand(ROWS, COLS).clone()


def structure(r: Random) -> Any:
    return backend.encode(mask(r), 1, 2, 4)


def sparse_weight(r: Random) -> Any:
    return gossamer.SparseWeight.from_dense(dense(r), "2:4")


def code(_: Random) -> Any:
    return codes.Code(torch.randn(BATCH, K), torch.randint(ROWS, (BATCH, K)))


def optimizer(_: Random) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.randn(3))], lr=0.1)


def marginal(n: int) -> Maker:
    return lambda _: torch.full((n,), 1 / n)


def one_of(*makers: Any) -> Maker:
    def pick(r: Random) -> Any:
        chosen = r.choice(makers)
        return chosen(r) if callable(chosen) else chosen

    return pick


def normal(*shape: int) -> Maker:
    return lambda _: torch.randn(*shape)


PATTERNS = ("2:4", "2:4:v4", "50%", "90%", "block 4x4 50%", "1:8", "2:4:g8", "nonzeros")

# By name, where a name means the same everywhere; else by annotation.
NAMED: dict[str, Maker] = {
    "model": one_of(model, model, sparse_model),
    "module": model,
    "linear": lambda _: nn.Linear(COLS, ROWS),
    "pattern": one_of(*PATTERNS),
    "p": one_of(*PATTERNS, 1.0, 2.0),
    "x": one_of(normal(BATCH, COLS), normal(BATCH, ROWS)),
    "input": normal(BATCH, COLS),
    "inputs": normal(BATCH, COLS),
    "example_input": normal(BATCH, COLS),
    "y": one_of(normal(BATCH, ROWS), normal(BATCH, COLS)),
    "outputs": normal(BATCH, ROWS),
    "weight": one_of(dense, dense, sparse_weight, lambda r: nn.Parameter(dense(r))),
    "dense": dense,
    "score": dense,
    "scores": normal(BATCH, ROWS),
    "mask": mask,
    "structure": structure,
    "new": structure,
    "old": structure,
    "transposed": one_of(None, lambda r: backend.transpose(structure(r))),
    "values": one_of(normal(ROWS * COLS // 2), normal(BATCH, K)),
    "bias": one_of(None, normal(ROWS), lambda _: True),
    "grad_output": one_of(normal(BATCH, ROWS), normal(BATCH, COLS)),
    "dictionary": one_of(normal(ROWS, COLS), normal(COLS, ROWS)),
    "code": code,
    "indices": one_of(lambda _: torch.randint(ROWS, (BATCH, K)), lambda r: structure(r).indices),
    "indptr": lambda _: torch.arange(0, ROWS * COLS // 2 + 1, COLS // 2),
    "fits": normal(BATCH, ROWS),
    "points": normal(BATCH, ROWS),
    "activations": lambda _: torch.randn(BATCH, ROWS).relu(),
    "reconstruction": normal(BATCH, COLS),
    "levels": one_of(None, (1, K)),
    "weights": one_of(
        normal(BATCH, K),
        lambda r: gossamer.activations.Weights(dense(r), None, dense(r)),
        marginal(BATCH),
    ),
    "residual": normal(BATCH, COLS),
    "optimizer": one_of(None, optimizer, optimizer),
    "params": one_of(lambda r: list(model(r).parameters()), (0.1, 0.2)),
    "parameters": lambda r: list(model(r).parameters()),
    "penalty": one_of(None, lambda _: prox.L1(0.1), 0.1),
    "groups": one_of(None, "neuron", "element", "input", (2, 2)),
    "grouping": one_of("neuron", (2, 2)),
    "in_features": lambda _: COLS,
    "out_features": lambda _: ROWS,
    "d_model": lambda _: COLS,
    "hidden": lambda _: ROWS,
    "experts": lambda _: 4,
    "rows": one_of(ROWS, lambda _: torch.randint(ROWS, (5,))),
    "cols": one_of(COLS, lambda _: torch.randint(COLS, (5,))),
    "shape": lambda _: (ROWS, COLS),
    "shapes": lambda _: {"a": (ROWS, COLS), "b": (4, ROWS)},
    "k": one_of(1, 2, K),
    "n": lambda _: 2,
    "m": lambda _: 4,
    "vector": one_of(1, 4, 8),
    "rank": one_of(1, 2),
    "layers": one_of(1, 3, 16),
    "features": lambda _: COLS,
    "latents": lambda _: ROWS,
    "seed": one_of(0, 7, 2**40),
    "step": one_of(0.5, 1.0, 3),
    "t": one_of(0, 5),
    "total_steps": one_of(10, 100),
    "lr": one_of(1e-3, 0.1),
    "eps": one_of(1e-8, 0.1),
    "tol": one_of(1e-6, 1e-3),
    "max_iter": one_of(1, 10, 100),
    "iterations": one_of(1, 10, 100),
    "numItermax": one_of(1, 50),
    "numIterMax": one_of(1, 50),
    "stopThr": one_of(1e-6, 1e-3),
    "reg": one_of(0.1, 1.0),
    "reg_m": one_of(1.0, (1.0, 2.0)),
    "unbalanced": one_of(None, 1.0),
    "M": one_of(normal(BATCH, 5), lambda _: torch.rand(BATCH, 5).numpy()),
    "cost": one_of(lambda _: torch.rand(BATCH, 5)),
    "a": one_of(marginal(BATCH), dense, structure, None),
    "b": one_of(marginal(5), dense, structure, None),
    "A": lambda _: torch.rand(BATCH, 2),
    "X_a": normal(BATCH, 2),
    "X_b": normal(5, 2),
    "X_s": normal(BATCH, 2),
    "X_t": normal(5, 2),
    "source": one_of(dense, normal(BATCH, 2)),
    "target": one_of("binary", "2:4", normal(5, 2), None),
    "include": one_of("*", ("0",), ["*"]),
    "exclude": one_of((), "2", ["0"]),
    "overrides": one_of(None, lambda _: {"0": "1:4"}, lambda _: {"2": None}),
    "distribution": one_of("uniform", "erk"),
    "state_dict": one_of(lambda r: model(r).state_dict(), lambda r: sparse_model(r).state_dict()),
    "state": lambda _: {},
    "prefix": one_of("", "0."),
    "name": one_of("a", "srste", "0"),
    "names": lambda _: ["a", "b"],
    "fns": lambda _: {"a": lambda: 1, "b": lambda: 2},
    "repeats": one_of(1, 2),
    "warmup": one_of(0, 1),
    "closure": one_of(None, lambda _: lambda: torch.zeros(())),
    "generator": one_of(None, lambda _: torch.Generator()),
    "dtype": one_of(None, torch.float32, torch.float64, torch.bfloat16),
    "device": one_of(None, "cpu", lambda _: torch.device("cpu"), "meta"),
    "index_dtype": one_of(torch.int64, torch.int32),
    "matrix": lambda r: dense(r).to_sparse(),
    "given": one_of("neuron", lambda _: recipes.entry("srste")),
    "threshold": one_of(0.5, normal(BATCH, COLS)),
    "lam": one_of(0.1, 1.0, 0),
    "radius": one_of(0.5, 2.0),
    "sparsity": one_of(0.5, 0.9, 0),
    "kept": one_of(1, 4),
    "total": lambda _: 8,
    "count": one_of(1, 2),
    "recipe": lambda _: recipes.STE("2:4"),
    "options": lambda _: gossamer.activations.Options(),
    "live": lambda r: gossamer.activations.float_gate(torch.randn(BATCH, COLS), dense(r), None),
    "text": one_of("l1:0.1", "lp:0.1:0.5"),
    "w": one_of(normal(ROWS, COLS)),
    "v": one_of(normal(4, ROWS)),
    "turn": one_of(0, 3),
    "samples": lambda _: [1.0, 2.0],
    "metric": one_of("sqeuclidean", "euclidean", normal(BATCH, COLS)),
    "tokens": one_of(normal(BATCH, COLS), 12),
    "neurons": one_of(None, 1, 4),
    "ceiling": one_of(0.0, normal(BATCH, ROWS)),
}


def valid(parameter: inspect.Parameter, hint: Any, r: Random) -> Any:
    """Return a value that a parameter most likely takes."""
    if parameter.default is not inspect.Parameter.empty and r.random() < 0.3:
        return parameter.default
    if parameter.name in NAMED and r.random() < 0.9:
        named = NAMED[parameter.name](r)
        with contextlib.suppress(DTypeError, ArgumentError):
            check_one(named, Any if hint is None else hint, "")
            return named
    made = by_annotation(hint, r)
    if made is UNKNOWN and parameter.default is not inspect.Parameter.empty:
        return parameter.default
    return made


def by_annotation(hint: Any, r: Random) -> Any:
    """Return a value of an annotation, `UNKNOWN` where nothing is known."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return by_annotation(args[0], r)
    if origin in (Union, types.UnionType):
        return by_annotation(r.choice(args), r)
    if origin is Literal:
        return r.choice(args)
    if origin is tuple and args:
        inner = [a for a in args if a is not Ellipsis]
        return tuple(by_annotation(a, r) for a in inner)
    if origin in (list, collections.abc.Sequence, collections.abc.Iterable):
        return [by_annotation(args[0], r)] if args else []
    if origin in (dict, collections.abc.Mapping):
        return {by_annotation(args[0], r): by_annotation(args[1], r)} if args else {}
    if origin is collections.abc.Callable:
        return lambda *_: torch.zeros(())
    plain: dict[Any, Maker] = {
        int: one_of(1, 2, 4, 8),
        float: one_of(0.1, 0.5, 1.0),
        bool: one_of(True, False),
        str: one_of("a", "0", "uniform"),
        Tensor: one_of(dense, normal(BATCH, COLS), normal(ROWS)),
        np.ndarray: lambda _: torch.rand(BATCH, COLS).numpy(),
        nn.Module: model,
        nn.Parameter: lambda q: nn.Parameter(dense(q)),
        gossamer.SparseWeight: sparse_weight,
        backend.Structure: structure,
        torch.optim.Optimizer: optimizer,
        torch.dtype: lambda _: torch.float32,
        codes.Code: code,
        prox.Penalty: lambda _: prox.L1(0.1),
    }
    if hint in (None, type(None)):
        return None
    known = isinstance(hint, collections.abc.Hashable) and hint in plain
    return plain[hint](r) if known else UNKNOWN


def nearly(value: Any, r: Random) -> Any:
    """Return a value of the same kind in which something is wrong."""
    if isinstance(value, Tensor) and not value.is_sparse:
        return r.choice(NEAR_TENSORS)(value, r)
    if isinstance(value, bool):
        return r.choice([not value, "no", 2, None])
    if isinstance(value, int):
        return r.choice([-1, 0, value + 1, 10**4, 2**31, 2**63 - 1, 10**29, -(2**63), float(value)])
    if isinstance(value, float):
        return r.choice([-value, 0.0, math.nan, math.inf, -math.inf, 1e308, 5e-324, str(value)])
    if isinstance(value, str):
        return r.choice([value + "x", value.upper(), "", "[", "2:0", "-1%", "é\0", value.encode()])
    if isinstance(value, tuple | list) and value:
        kind = type(value) if type(value) in (tuple, list) else tuple
        items = list(value)
        place = r.randrange(len(items))
        return r.choice(
            [
                kind(items[:-1]),
                kind([*items, items[-1]]),
                kind([*items[:place], nearly(items[place], r), *items[place + 1 :]]),
                kind([*items[:place], None, *items[place + 1 :]]),
            ]
        )
    if isinstance(value, dict):
        return r.choice([{}, {**value, "other": 1}, {1: None}, dict.fromkeys(value, "x")])
    if isinstance(value, nn.Module):
        return r.choice(
            [nn.ReLU(), nn.Sequential(), nn.Linear(5, 3), nn.Linear(COLS, ROWS, device="meta"),
             nn.Linear(COLS, ROWS).half(), nn.LazyLinear(3), type(value)]
        )  # fmt: skip
    return nonsense(r)


def _with(number: float) -> Callable[[Tensor, Random], Tensor]:
    def put(x: Tensor, r: Random) -> Tensor:
        x = x.detach().clone()
        if x.numel() and x.is_floating_point():
            x.view(-1)[r.randrange(x.numel())] = number
        elif x.numel() and x.dtype != torch.bool:
            x.view(-1)[r.randrange(x.numel())] = -1 if number != number else 10**9
        return x

    return put


NEAR_TENSORS: tuple[Callable[[Tensor, Random], Any], ...] = (
    lambda x, r: x[:0],
    lambda x, r: x[None],
    lambda x, r: x.reshape(-1),
    lambda x, r: x[..., :-1] if x.dim() else x,
    lambda x, r: x.double(),
    lambda x, r: x.half(),
    lambda x, r: x.long(),
    lambda x, r: x > 0,
    lambda x, r: x.to(torch.complex64),
    lambda x, r: x.detach().numpy() if x.dtype != torch.bfloat16 else x,
    lambda x, r: x.tolist(),
    lambda x, r: x.to("meta"),
    lambda x, r: x.to_sparse() if x.dim() else x,
    lambda x, r: x.expand(2, *x.shape),
    lambda x, r: x.t() if x.dim() == 2 else x,
    lambda x, r: x.detach().clone().requires_grad_(x.is_floating_point()),
    _with(math.nan),
    _with(math.inf),
    _with(1e38),
)


NONSENSE: tuple[Maker, ...] = (
    lambda _: None,
    lambda _: "text",
    lambda _: b"bytes",
    lambda _: Odd(),
    lambda _: Odd,
    lambda _: [],
    lambda _: {},
    lambda _: set(),
    lambda _: (1, "a", None),
    lambda _: {"a": 1},
    lambda _: math.nan,
    lambda _: math.inf,
    lambda _: -1,
    lambda _: 0,
    lambda _: 2**63 - 1,
    lambda _: 10**29,
    lambda _: 1e308,
    lambda _: 1j,
    lambda _: True,
    lambda _: lambda *_: None,
    lambda _: torch,
    lambda _: torch.float16,
    lambda _: torch.zeros(0),
    lambda _: torch.tensor(1.0),
    lambda _: torch.zeros(2, 3, 4),
    lambda _: torch.full((2, 2), math.nan),
    lambda _: np.zeros((2, 2)),
    lambda _: np.array(["a"], dtype=object),
    lambda _: np.float32(1.5),
    lambda _: nn.Linear(2, 2),
    lambda _: nn.Linear,
    lambda _: iter([1, 2]),
    lambda _: gossamer.NM(2, 4),
    lambda _: masks.random_mask((4, 4), "2:4"),
)


def nonsense(r: Random) -> Any:
    """Return anything."""
    return r.choice(NONSENSE)(r)


def hints_of(call: Any) -> dict[str, Any]:
    """Return the annotations of a callable, or none where they cannot be resolved."""
    function = call.__init__ if inspect.isclass(call) else call
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:
        return {}
    if inspect.isclass(call):
        try:
            hints = typing.get_type_hints(call, include_extras=True) | hints
        except Exception:
            return hints
    return hints
