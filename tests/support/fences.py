"""The Python code of a Markdown page, by the name of its fence."""

import re
import runpy
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent

FENCE = re.compile(r'^```python title="([^"]+)"\n(.*?)^```$', re.DOTALL | re.MULTILINE)


def run_fence(page: str, name: str, folder: Path) -> dict[str, Any]:
    """Run the fence `title="name"` of a page as a script of its own; return its globals."""
    fences = dict(FENCE.findall((ROOT / page).read_text(encoding="utf-8")))
    script = folder / name
    script.write_text(fences[name], encoding="utf-8")
    return runpy.run_path(str(script))


def broken_links(path: Path) -> list[str]:
    """Relative links of a Markdown page whose file does not exist."""
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)", path.read_text(encoding="utf-8"))
    return [link for link in links if not (path.parent / link).exists()]
