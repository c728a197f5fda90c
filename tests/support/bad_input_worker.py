"""Runs bad calls in a process of its own, and tells of each what became of it.

Reads a JSON list of [name, code] from standard input and writes, one JSON value a line, the name
before a case is run and what happened after it. The last statement of the code is the bad call;
the ones before prepare it. What happened is a dict:

    raised    the names of the error's classes, most special first; none if nothing was raised
    message   its text
    changed   what the call changed all the same: files and objects
    noise     what was written to standard output and error meanwhile
"""

import ast
import io
import json
import os
import sys
import tempfile
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gossamer import _core, backend, masks, ops, patterns, weight
from gossamer.cli import main
from gossamer.nn import SparseLinear, sparsify
from gossamer.train import data
from gossamer.train.checkpoint import load_checkpoint, restore, save_checkpoint


class CommandError(Exception):
    """The command line ended with an error; its text is what the user saw."""


class TracebackError(Exception):
    """The command line ended with a traceback."""


def cli(*arguments: str) -> None:
    """Runs `gossamer` as a shell would."""
    seen = io.StringIO()
    before = sys.argv
    sys.argv = ["gossamer", *arguments]
    try:
        with redirect_stdout(seen), redirect_stderr(seen):
            main()
    except SystemExit as end:
        text = " ".join(seen.getvalue().translate(dict.fromkeys(map(ord, "╭╮╰╯│─"))).split())
        if end.code in (0, None):
            return
        if "Traceback" in text:
            raise TracebackError(text) from None
        raise CommandError(text) from None
    finally:
        sys.argv = before


def fresh() -> dict[str, Any]:
    """The names that a case may use, made anew for each."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    lists = torch.rand(2, 20) < 0.4
    lists[:, 0], lists[:, 1] = True, False
    mask = lists.repeat_interleave(4, 0)
    s = backend.encode(mask, 4)
    half = torch.arange(16) % 4 < 2
    nm = backend.encode(half.expand(8, 16), 1, 2, 4)
    dense = torch.randn(8, 16)
    return {
        "K": backend, "CORE": _core, "Layout": backend.Layout, "Structure": backend.Structure,
        "Transposed": backend.Transposed, "nn": nn, "np": np, "torch": torch, "os": os,
        "Path": Path, "cli": cli, "data": data, "ops": ops,
        "NM": patterns.NM, "Unstructured": patterns.Unstructured, "Block": patterns.Block,
        "parse": patterns.parse_pattern, "S": masks, "SparseWeight": weight.SparseWeight,
        "SparseLinear": SparseLinear, "sparsify": sparsify,
        "save": save_checkpoint, "load": load_checkpoint, "restore": restore, "fake": fake,
        "mask": mask, "s": s, "nm": nm, "half": half.expand(8, 16).clone(), "dense": dense,
        "values": torch.randn(s.nnz), "nm_values": torch.randn(nm.nnz),
        "x": torch.randn(3, 20), "g": torch.randn(3, 8), "big": torch.randn(8, 20),
        "w": weight.SparseWeight.from_dense(dense, "2:4:v4"),
        "loose": weight.SparseWeight.from_dense(dense, "50%"),
        "layer": SparseLinear(16, 8, pattern="50%"),
        "model": nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8)),
    }  # fmt: skip


def fake(tensor: Tensor) -> Tensor:
    """A tensor that has sizes and a device, but no memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode().from_tensor(tensor)


def look(value: Any) -> Any:
    """What a call must not change in a value, as something that compares."""
    if isinstance(value, nn.Module):
        return repr(value), {k: look(v) for k, v in value.state_dict().items()}
    if type(value) in (Tensor, nn.Parameter):
        if value.is_nested or value.layout != torch.strided or value.device.type != "cpu":
            return str(value.dtype)
        memory = torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage())
        return tuple(value.shape), value.stride(), str(value.dtype), memory.numpy().tobytes()
    if type(value) is np.ndarray and value.dtype != object:
        return value.shape, str(value.dtype), value.tobytes()
    if isinstance(value, dict):
        return {k: look(v) for k, v in value.items() if not str(k).startswith("__")}
    if isinstance(value, list | tuple):
        return [look(v) for v in value]
    return None


def files() -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(Path().rglob("*")) if p.is_file()}


def changes(before: tuple[Any, Any], after: tuple[Any, Any]) -> list[str]:
    found = [f"file {n}" for n in sorted(before[1].keys() | after[1].keys())
             if before[1].get(n) != after[1].get(n)]  # fmt: skip
    return found + [n for n in before[0] if before[0][n] != after[0].get(n)]


def run(code: str) -> dict[str, Any]:
    names = fresh()
    *first, last = ast.parse(code).body
    exec(compile(ast.Module(first, []), "<case>", "exec"), names)  # noqa: S102
    before = look(names), files()
    noise = io.StringIO()
    raised: list[str] = []
    message = ""
    try:
        with redirect_stdout(noise), redirect_stderr(noise):
            exec(compile(ast.Module([last], []), "<case>", "exec"), names)  # noqa: S102
    except Exception as error:
        raised, message = [c.__name__ for c in type(error).__mro__[:-2]], str(error)
    changed = changes(before, (look(names), files()))
    return {"raised": raised, "message": message, "changed": changed, "noise": noise.getvalue()}


def work() -> None:
    """Runs the cases, each in an empty folder of its own."""
    warnings.simplefilter("ignore")
    os.environ["COLUMNS"] = "400"  # the command line must not break its words
    torch.set_num_threads(1)
    # Standard output belongs to the protocol; what C++ prints goes to the error stream.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for name, code in json.load(sys.stdin):
        print(json.dumps(name), file=answers, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            backend.use_isa(None)
            try:
                outcome = run(code)
            except Exception as error:  # the preparation itself is wrong
                outcome = {
                    "raised": ["BadCase"],
                    "message": repr(error),
                    "changed": [],
                    "noise": "",
                }
            os.chdir("/")
        print(json.dumps(outcome), file=answers, flush=True)


if __name__ == "__main__":
    work()
