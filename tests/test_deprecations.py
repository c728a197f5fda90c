"""What is deprecated goes with the version that was promised."""

import ast

import pytest

import gossamer
from test_architecture import PYTHON, tracked


def number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def overdue(source: str, version: str) -> list[str]:
    """Calls of `deprecated` whose version is reached, or that do not name one."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "deprecated"):
            continue
        given = {word.arg: ast.literal_eval(word.value) for word in node.keywords}
        if number(given.get("removed", "0")) <= number(version):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def test_nothing_stays_longer_than_promised() -> None:
    found = [
        f"{path.relative_to(PYTHON)}, {call}"
        for path in tracked(".py")
        if path.is_relative_to(PYTHON)
        for call in overdue(path.read_text(), gossamer.__version__)
    ]
    assert not found, "remove what is deprecated:\n" + "\n".join(found)


@pytest.mark.parametrize(("version", "count"), [("0.2.9", 0), ("0.3.0", 1), ("1.0", 1)])
def test_an_overdue_call_is_seen(version: str, count: int) -> None:
    source = "def f(old):\n    deprecated('old', 'new', removed='0.3')"
    assert len(overdue(source, version)) == count


def test_a_call_without_a_version_is_seen() -> None:
    assert overdue("deprecated('old', 'new')", "0.1.0")
