"""Griffe extension: doctests in docstrings become highlighted code.

Google style knows a section `Examples:`; the docstrings of gossamer say `Example:`, and some hold a
doctest without a heading. Markdown would read its `>>>` as a quotation.
"""

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"(?:^>>> .*\n?(?:^(?!\s*$).+\n?)*)", re.MULTILINE)


def with_fences(text: str) -> str:
    """The docstring with `Examples:` for `Example:` and a fence around a bare doctest."""
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    return DOCTEST.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", text)


class Doctests(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = with_fences(obj.docstring.value)
