"""What is known of patterns: classes, how masks are chosen, scores by name, and own kernels.

The package registers its own patterns here as a stranger would. After STen's layouts, sparsifiers
and operators (Ivanov et al. 2023, "STen: Productive and Efficient Sparsity in PyTorch"): one layout
holds every mask here, so a pattern needs a selection, and kernels of its own only if it wants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, Literal, TypeVar, get_args, overload

from gossamer.arguments import shown
from gossamer.errors import DTypeError, GossamerError, PatternError
from gossamer.patterns.protocol import PLUGIN, Pattern, plain_of_numbers

__all__ = [
    "check_registered",
    "operator_of",
    "pattern_kinds",
    "pattern_of_code",
    "pattern_of_fields",
    "plain_fields",
    "register_operator",
    "register_pattern",
    "register_sparsifier",
    "score_of",
    "selection_of",
    "unknown_kind",
]

Verb = Literal["spmm", "spmm_t", "sddmm"]
# (scores of the slots, pattern) -> bool, True = kept; tensors, which this layer does not know.
Selection = Callable[[Any, Any], Any]
# (name of the layer, dense weight) -> scores of its entries.
Score = Callable[[str, Any], Any]
Function = TypeVar("Function", bound=Callable[..., Any])
Kind = TypeVar("Kind", bound=type[Pattern])

_KINDS: dict[str, type[Pattern]] = {}
_SELECTIONS: dict[type[Pattern], Selection] = {}
_SCORES: dict[str, Score] = {}
OPERATORS: dict[tuple[type[Pattern], str], Callable[..., Any]] = {}


# ---- patterns ----------------------------------------------------------------------------------


def register_pattern(kind: Kind) -> Kind:
    """Make a class of patterns known to texts, state dicts and saved folders; a decorator.

    Files name the class by its `__name__`, so another class of the same name is refused; the same
    class, defined again, replaces itself.

    Args:
        kind: a frozen dataclass that extends `Pattern`; its fields are numbers, texts, booleans
            or None.

    Raises:
        PatternError: the class is abstract, not frozen, or its name is taken.
        DTypeError: it is no class of patterns.

    Example:
        >>> from dataclasses import dataclass
        >>> @register_pattern
        ... @dataclass(frozen=True)
        ... class FirstColumns(Pattern):
        ...     width: int
        ...     def __str__(self): return f"first {self.width}"
        ...     def check_shape(self, rows, cols, who="weight"): pass
        ...     def count(self, rows, cols): return rows * min(self.width, cols)
        >>> FirstColumns(3) == pattern_of_fields({"name": "FirstColumns", "width": 3})
        True
    """
    if not (isinstance(kind, type) and issubclass(kind, Pattern)):
        raise DTypeError(
            f"register_pattern got {shown(kind)}; it must be a class that extends "
            "gossamer.patterns.Pattern"
        )
    name = kind.__name__
    if missing := sorted(kind.__abstractmethods__):
        raise PatternError(f"register_pattern got {name}, which lacks {', '.join(missing)}: add it")
    if not getattr(getattr(kind, "__dataclass_params__", None), "frozen", False):
        raise PatternError(
            f"register_pattern got {name}; a pattern is a value: put @dataclass(frozen=True) on it"
        )
    if any(issubclass(kind, own) and kind is not own for own in _KINDS.values()):
        raise PatternError(
            f"register_pattern got {name}, which extends a registered pattern; files could not "
            "tell the two apart: extend gossamer.patterns.Pattern"
        )
    known = _KINDS.get(name, kind)
    same = known.__module__ == kind.__module__ or _file(known) == _file(kind)
    if not same or known.__qualname__ != kind.__qualname__:
        raise PatternError(
            f"register_pattern got {name} of {kind.__module__}; {known.__module__} has registered "
            "a pattern of this name, which files could not tell apart: rename the class"
        )
    _KINDS[name] = kind
    return kind


def _file(kind: type[Pattern]) -> str:
    """Return the file of a class, which may have been run as a module of another name."""
    return str(kind.__str__.__code__.co_filename)


def pattern_kinds() -> tuple[type[Pattern], ...]:
    """Return the registered classes of patterns."""
    return tuple(_KINDS.values())


def check_registered(pattern: Pattern) -> None:
    """Raise PatternError unless the class of a pattern is registered."""
    kind = type(pattern)
    if _KINDS.get(kind.__name__) is not kind:
        raise PatternError(
            f"pattern {pattern} is of {kind.__module__}.{kind.__name__}, which is not registered: "
            "put @gossamer.patterns.register_pattern on the class"
        )


def pattern_of_code(code: int, numbers: tuple[int, ...]) -> Pattern:
    """Return the pattern of a code and the numbers of a descriptor.

    Raises:
        PatternError: the code is unknown, or the class is not registered here.
    """
    if code == PLUGIN:
        return pattern_of_fields(plain_of_numbers(numbers))
    kind = next((kind for kind in _KINDS.values() if kind.code == code), None)
    if kind is None:
        known = sorted({kind.code for kind in _KINDS.values()} - {PLUGIN})
        raise PatternError(f"pattern kind {code} was given; {known} and {PLUGIN} are known")
    return kind._of_numbers(numbers)


def unknown_kind(descriptor: Sequence[int]) -> str | None:
    """Return the name of a descriptor's pattern if it is not registered here, else None."""
    if descriptor[0] & 0xFF != PLUGIN:
        return None
    try:
        name = str(plain_of_numbers((descriptor[3], *descriptor[5:]))["name"])
    except PatternError:
        return None  # damaged: whoever reads it says so
    return None if name in _KINDS else name


def plain_fields(pattern: Pattern) -> dict[str, Any]:
    """Return the name and the exact fields of a pattern, which its text may round."""
    own = {field.name: getattr(pattern, field.name) for field in fields(pattern)}  # type: ignore[arg-type]
    return {"name": type(pattern).__name__, **own}


def pattern_of_fields(plain: Any) -> Pattern:
    """Return the pattern of a name and its fields.

    Raises:
        PatternError: the class is not registered here, or refuses the fields.
    """
    given = dict(plain)
    name = given.pop("name", None)
    kind = _KINDS.get(name)
    if kind is None:
        raise PatternError(
            f"pattern {name!r:.80} was saved, which is not registered here: import the module that "
            "registers it (gossamer.patterns.register_pattern) and load again, or make these "
            'layers dense with gossamer.load(..., fallback="warn")'
        )
    try:
        pattern = kind(**given)
        str(pattern), hash(pattern)  # numbers and texts have both
    except GossamerError:
        raise
    except Exception as error:  # of a class that others wrote
        raise PatternError(
            f"pattern {name} cannot be built of the fields that were saved: {error!s:.200}; they "
            "are damaged, or of another version of the class"
        ) from None
    return pattern


# ---- sparsifiers: selections and scores --------------------------------------------------------


@overload
def register_sparsifier(kind: type[Pattern] | str) -> Callable[[Function], Function]: ...
@overload
def register_sparsifier(kind: type[Pattern] | str, function: Function) -> Function: ...
def register_sparsifier(kind: type[Pattern] | str, function: Any = None) -> Any:
    """Register how the masks of a class of patterns are chosen, or a score by its name.

    A selection is a function of (score, pattern). `score` is a float tensor [rows / tile rows, cols
    / tile columns]: one number per tile, the sum of its entries' scores, of which larger ones are
    kept first and NaN before all (`gossamer.masks.top` does so). It returns a bool tensor of that
    shape, True = kept. A mask obeys the pattern if the selection, with the mask as its score,
    returns the mask; so it must keep the best allowed entries and depend on nothing but `score`.

    A score is a function of (name of the layer, weight [out_features, in_features]) that returns
    one number per entry; `sparsify(score=NAME)` then takes it.

    Args:
        kind: a registered class of patterns, or the name of a score.
        function: the selection or the score; without it, this is a decorator.

    Returns:
        The function.

    Raises:
        DTypeError: an argument is of another kind.
        PatternError: the name of a score is "magnitude" or "random".

    Example:
        >>> @register_sparsifier("signed")
        ... def signed(name, weight):
        ...     return weight
        >>> score_of("signed") is signed
        True
    """
    if function is None:
        return lambda given: register_sparsifier(kind, given)
    _check_function("register_sparsifier", function)
    if isinstance(kind, str):
        if kind in ("magnitude", "random"):
            raise PatternError(f"register_sparsifier got {kind!r}, a score of the package: rename")
        _SCORES[kind] = function
    else:
        _SELECTIONS[_kind("register_sparsifier", kind)] = function
    return function


def selection_of(pattern: Pattern) -> Selection:
    """Return the selection that is registered for a pattern.

    Raises:
        PatternError: there is none.
    """
    found = next((_SELECTIONS[c] for c in type(pattern).__mro__ if c in _SELECTIONS), None)
    if found is None:
        raise PatternError(
            f"pattern {pattern} has no selection: register one with gossamer.patterns."
            f"register_sparsifier({type(pattern).__name__})"
        )
    return found


def score_of(name: str) -> Score | None:
    """Return the score that is registered under a name; None if there is none."""
    return _SCORES.get(name)


# ---- operators ---------------------------------------------------------------------------------


@overload
def register_operator(kind: type[Pattern], verb: Verb) -> Callable[[Function], Function]: ...
@overload
def register_operator(kind: type[Pattern], verb: Verb, function: Function) -> Function: ...
def register_operator(kind: type[Pattern], verb: Verb, function: Any = None) -> Any:
    """Register an own kernel of a class of patterns, in the place of the kernels of panels.

    `spmm` is a function of (x [..., cols], weight) that returns x W^T, `spmm_t` of (grad_output
    [..., rows], weight) that returns G W, and `sddmm` of (grad_output, x, weight) that returns the
    gradient [nnz] of `weight.values`. Each is made of torch's operations, or of operators that are
    registered with torch (as `gossamer.ops.expand`, the dense matrix of a weight), so that autograd
    and torch.compile see into it; a bias is added after it.
    What is not registered runs on the kernels of panels. Shape and dtype of the result are checked.

    Where `spmm_t` or `sddmm` is registered, the gradients of a layer are these kernels, or those of
    panels for the one that is not; under torch.compile, torch.func and autocast, and where `spmm`
    alone is registered, autograd sees into it instead.

    Args:
        kind: a registered class of patterns.
        verb: "spmm", "spmm_t" or "sddmm".
        function: the kernel; without it, this is a decorator.

    Returns:
        The function.

    Raises:
        DTypeError: an argument is of another kind.
        PatternError: the verb is unknown.
    """
    if verb not in get_args(Verb):
        raise PatternError(f"register_operator got verb={verb!r}; choose spmm, spmm_t or sddmm")
    if function is None:
        return lambda given: register_operator(kind, verb, given)
    _check_function("register_operator", function)
    OPERATORS[_kind("register_operator", kind), verb] = function
    return function


def operator_of(pattern: Pattern, verb: str) -> Callable[..., Any] | None:
    """Return the own kernel that is registered for a pattern; None is the kernel of panels."""
    return OPERATORS.get((type(pattern), verb))


def _kind(who: str, kind: object) -> type[Pattern]:
    if not (isinstance(kind, type) and issubclass(kind, Pattern)):
        raise DTypeError(f"{who} got {shown(kind)}; it must be a class of patterns")
    if _KINDS.get(kind.__name__) is not kind:
        raise PatternError(
            f"{who} got {kind.__name__}, which is not registered: put "
            "@gossamer.patterns.register_pattern on it first"
        )
    return kind


def _check_function(who: str, function: object) -> None:
    if not callable(function):
        raise DTypeError(f"{who} got {shown(function)}; it must be a function")
