"""What the pages quote and link exists. `make docs` would fail otherwise, but runs less often."""

import re

import pytest

from gossamer import errors
from support.fences import ROOT, broken_links

PAGES = sorted((ROOT / "docs").rglob("*.md"))
QUOTED = sorted(
    {
        quoted
        for page in PAGES
        for quoted in re.findall(r'^--8<-- "([^"]+)"$', page.read_text("utf-8"), re.MULTILINE)
    }
)


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_section_exists(quoted: str) -> None:
    path, _, section = quoted.partition(":")
    text = (ROOT / path).read_text(encoding="utf-8")
    start, end = (text.find(f"--8<-- [{edge}:{section}]") for edge in ("start", "end"))
    assert 0 <= start < end, f"{path} has no section between markers named {section}"


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs" / "how-to").glob("*.md")), ids=lambda page: page.stem
)
def test_a_how_to_quotes_in_every_titled_fence(page: object) -> None:
    text = (ROOT / str(page)).read_text(encoding="utf-8")
    titled = re.findall(r'^```\w+ title="([^"]+)"\n(.*)$', text, re.MULTILINE)
    assert titled
    for title, line in titled:
        assert line.startswith(f'--8<-- "{title}:')


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_linked_files_exist(page: object) -> None:
    assert not broken_links(ROOT / str(page))


NAMED = re.compile(r"\b(?:python|csrc|tests|docs|examples|bench|experiments)/[\w./-]+\.\w+\b")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_named_files_exist(page: object) -> None:
    named = NAMED.findall((ROOT / str(page)).read_text(encoding="utf-8"))
    assert not [name for name in named if "NAME" not in name and not (ROOT / name).is_file()]


def test_the_page_on_errors_names_every_class() -> None:
    text = (ROOT / "docs" / "nan-and-errors.md").read_text(encoding="utf-8")
    assert not [name for name in errors.__all__ if f"`{name}`" not in text]


def test_the_page_on_errors_names_what_each_class_derives_from() -> None:
    text = (ROOT / "docs" / "nan-and-errors.md").read_text(encoding="utf-8")
    for name, base in re.findall(r"^\| `(\w+)` \| `(\w+)` \|", text, re.MULTILINE):
        assert base in [kind.__name__ for kind in getattr(errors, name).__mro__], name
