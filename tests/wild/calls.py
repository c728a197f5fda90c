"""One wild call: what it is given, and what became of it."""

from __future__ import annotations

import ast
import functools
import gc
import inspect
import traceback
import types
import warnings
from pathlib import Path
from random import Random
from typing import Any

import torch

from gossamer.errors import GossamerError
from wild.targets import Target
from wild.values import UNKNOWN, hints_of, nearly, nonsense, valid

HERE = str(Path(__file__).resolve().parent)
# Errors that a function may raise in words of its own, if it raises them itself.
OWN_WORDS = (TypeError, ValueError, NotImplementedError, AttributeError, KeyError, OSError)
# Of torch, and clear: too much memory, and what a Parameter says to the same call.
OF_TORCH = (
    *("can't allocate memory", "not enough memory", "Unable to allocate"),
    "a leaf Variable that requires grad is being used in an in-place operation",
)


def arguments(call: Any, r: Random, wildness: float) -> tuple[list[Any], dict[str, Any]]:
    """Return positional and named arguments; at wildness 0 all are valid."""
    try:
        signature = inspect.signature(call)
    except (ValueError, TypeError):
        return [], {}
    hints = hints_of(call)
    named: dict[str, Any] = {}
    more: list[Any] = []
    for name, parameter in signature.parameters.items():
        if name == "self":
            continue
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            if parameter.kind is parameter.VAR_POSITIONAL and r.random() < wildness:
                more = [nonsense(r)]
            continue
        optional = parameter.default is not parameter.empty
        if optional and r.random() < 0.5:
            continue
        value = valid(parameter, hints.get(name), r)
        if r.random() < wildness:
            value = nearly(value, r) if r.random() < 0.6 else nonsense(r)
        named[name] = value
    if r.random() < wildness * 0.05 and named:
        named.pop(r.choice(list(named)))
    if r.random() < wildness * 0.03:
        named["no_such_name"] = 1
    only = [n for n, p in signature.parameters.items() if p.kind is p.POSITIONAL_ONLY]
    first = [named.pop(n) for n in only if n in named]
    return first + (more if not named else []), named


def one_call(target: Target, seed: int) -> dict[str, str]:
    """Make the call of this seed; return its verdict and what was said."""
    r = Random(seed)
    torch.manual_seed(seed % 2**63)
    wildness = r.choice([0.0, 0.15, 0.4, 1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call = target.call
        if target.owner is not None:
            built = build(target.owner, r)
            if built is None:
                return {"verdict": "not built", "error": "", "text": ""}
            call = getattr(built, target.name.rsplit(".", 1)[1])
        try:
            first, named = arguments(call, r, wildness)
        except Exception as error:  # what a value is made with is broken, or out of memory
            return {"verdict": "not built", "error": type(error).__name__, "text": str(error)}
        return verdict_of(call, first, named)


def build(kind: type, r: Random) -> Any:
    """Return an object of a class from valid arguments, or None after a few attempts."""
    for _ in range(6):
        try:
            first, named = arguments(kind, r, 0.0)
        except Exception:
            return None
        if any(value is UNKNOWN for value in (*first, *named.values())):
            continue  # a result, which nobody builds by hand
        try:
            return kind(*first, **named)
        except Exception:
            gc.collect(0)
    return None


def verdict_of(call: Any, first: list[Any], named: dict[str, Any]) -> dict[str, str]:
    """Make a call and judge how it ended."""
    try:
        result = call(*first, **named)
        if inspect.isgenerator(result):
            next(result, None)
    except (Exception, SystemExit) as error:
        return {
            "verdict": "clear" if is_clear(error) else "unclear",
            "error": type(error).__name__,
            "text": f"{_place(error)}: {str(error)[:160]}",
        }
    return {"verdict": "returned", "error": "", "text": ""}


def is_clear(error: BaseException) -> bool:
    """Whether an error says which argument was wrong.

    So does one of ours; Python's own of a call that does not fit the signature; what a function of
    ours raises in its own words; and what the given functions and objects raise themselves.
    """
    if isinstance(error, GossamerError | MemoryError):
        return True
    if any(words in str(error) for words in OF_TORCH):
        return True
    frames = [f for f, _ in traceback.walk_tb(error.__traceback__)]
    ours = [f for f in frames if not f.f_code.co_filename.startswith(HERE)]
    if isinstance(error, TypeError) and _is_signature(error, ours):
        return True
    if not ours:  # so tells a compiled class what it takes
        return "incompatible constructor arguments" in str(error)
    if frames[-1].f_code.co_filename.startswith(HERE):
        return True
    last = frames[-1]
    if "gossamer" not in last.f_code.co_filename or not isinstance(error, OWN_WORDS):
        return False
    at = traceback.extract_tb(error.__traceback__)[-1].lineno
    return at in _raises(last.f_code.co_filename)


@functools.cache
def _raises(path: str) -> frozenset[int]:
    """Return the lines of the raise statements of a file."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    return frozenset(n for node in nodes for n in range(node.lineno, (node.end_lineno or 0) + 1))


def _is_signature(error: TypeError, frames: list[types.FrameType]) -> bool:
    words = ("missing ", " positional argument", "unexpected keyword", "multiple values")
    inside = any("gossamer" in frame.f_code.co_filename for frame in frames)
    return not inside and "()" in str(error) and any(word in str(error) for word in words)


def _place(error: BaseException) -> str:
    """Return the innermost line of ours, by which kinds of errors are told apart."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "gossamer" in f.filename and HERE not in f.filename]
    if not ours:
        return "outside"
    path = ours[-1].filename.split("gossamer/")[-1]
    return f"{path}:{ours[-1].lineno}"


__all__ = ["build", "one_call"]
