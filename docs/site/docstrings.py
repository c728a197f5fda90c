"""Griffe extension: gossamer's docstrings and penalties in the form that the site's tools read.

`Example:` becomes the section `Examples:` of Google style. A doctest without a heading gets a
fence, because Markdown reads `>>>` as a quotation. `Reference:` becomes a paragraph. A class
decorated with `@penalty` is a dataclass, whose fields are declared by `number`, `budget` and
`per_group`.
"""

import ast
import re
from typing import Any

import griffe

DOCTEST = re.compile(r"(?:^>>> .*\n?(?:^(?!\s*$).+\n?)*)", re.MULTILINE)
REFERENCE = re.compile(r"^References?:\n((?: {4}.*(?:\n|$))+)", re.MULTILINE)
FIELDS = {"number", "budget", "per_group"}


def rewritten(text: str) -> str:
    """The docstring in Google style."""
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    text = DOCTEST.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", text)
    return REFERENCE.sub(lambda found: f"**Reference:** {' '.join(found[1].split())}\n", text)


def default_of(value: Any) -> Any:
    """The default in `number(..., default=x)`; None without one."""
    if not isinstance(value, griffe.ExprCall) or str(value.function) not in FIELDS:
        return value
    keywords = [a for a in value.arguments if isinstance(a, griffe.ExprKeyword)]
    return next((a.value for a in keywords if a.name == "default"), None)


class Docstrings(griffe.Extension):
    """Rewrites docstrings before they are parsed, and penalties before their signature is made."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = rewritten(obj.docstring.value)

    def on_class_members(self, *, node: ast.AST, cls: griffe.Class, **kwargs: Any) -> None:
        """Called for each class when its members are known."""
        if not any(str(decorator.value) == "penalty" for decorator in cls.decorators):
            return
        dataclass = griffe.ExprName("dataclass", parent="dataclasses")  # type: ignore[arg-type]
        cls.decorators.append(griffe.Decorator(dataclass, lineno=None, endlineno=None))
        for member in cls.members.values():
            if isinstance(member, griffe.Attribute):
                member.value = default_of(member.value)
