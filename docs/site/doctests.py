"""Griffe extension: docstrings of gossamer in the form that the reader of Google style expects.

`Example:` becomes its section `Examples:`; a doctest without a heading gets a fence, because
Markdown reads `>>>` as a quotation; `Reference:` becomes a paragraph.
"""

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"(?:^>>> .*\n?(?:^(?!\s*$).+\n?)*)", re.MULTILINE)
REFERENCE = re.compile(r"^References?:\n((?: {4}.*(?:\n|$))+)", re.MULTILINE)


def rewritten(text: str) -> str:
    """The docstring in Google style."""
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    text = DOCTEST.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", text)
    return REFERENCE.sub(lambda found: f"**Reference:** {' '.join(found[1].split())}\n", text)


class Doctests(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = rewritten(obj.docstring.value)
