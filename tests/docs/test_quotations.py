"""What the pages quote and link exists. `make docs` would fail otherwise, but runs less often."""

import re

import pytest

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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_linked_files_exist(page: object) -> None:
    assert not broken_links(ROOT / str(page))
