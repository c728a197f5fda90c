"""Globs: the texts by which a caller chooses modules of a model, such as "layers.*.fc1"."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import nn

from gossamer.errors import DTypeError, PatternError

Globs: TypeAlias = str | Sequence[str]

_SHOWN = 3  # names in a note on many layers


def as_globs(globs: Globs, what: str = "globs") -> Sequence[str]:
    """Return one glob or several as a list.

    Raises:
        DTypeError: not a text, and not several texts.
    """
    if isinstance(globs, str):
        return [globs]
    found = list(globs) if isinstance(globs, Iterable) else [None]
    if all(isinstance(glob, str) for glob in found):
        return found
    raise DTypeError(
        f"{what}={globs!r:.80}; a glob or several are needed: pass a text such as 'layers.*', or "
        "a list of them"
    )


def covers(glob: str, name: str) -> bool:
    """Return whether a glob matches a module or a module that contains it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:i]), glob) for i in range(1, len(parts) + 1))


def check_globs(
    model: nn.Module,
    globs: Mapping[str, Sequence[str]],
    kind: str,
    names: Sequence[str],
    also: Collection[str] = (),
) -> None:
    """Check that each glob matches a module.

    Args:
        model: the model.
        globs: globs by the argument that they were given in.
        kind: what the globs choose from.
        names: the names of these.
        also: names that a glob may match beside those of the modules.

    Raises:
        PatternError: a glob matches nothing.
    """
    everything = [name for name, _ in model.named_modules(remove_duplicate=False)]
    everything += also
    for what, given in globs.items():
        for glob in given:
            if not any(fnmatchcase(name, glob) for name in everything):
                raise PatternError(
                    f"{what}={glob!r} matches no module of the model; its {kind} are "
                    f"{', '.join(names) or 'none'}: correct the glob or drop it"
                )


def listed(names: Sequence[str]) -> str:
    """Return the first names and how many more there are, for a message."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
