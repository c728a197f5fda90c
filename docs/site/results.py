"""MkDocs hook: links of all pages are written for the repository and translated for the site.

Results of bench and experiments, CONTRIBUTING, CHANGELOG and the readme of the core become pages. A
link to another file of the repository loses its target and keeps its text. A link to a file that
does not exist stays as it is, and the strict build refuses it.
"""

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "csrc/README.md": "core.md",
    "bench/README.md": "bench.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"^(```.*?^```$)", re.DOTALL | re.MULTILINE)


def extra_files() -> dict[str, str]:
    """Site path of each file of the repository that is shown beside `docs/`."""
    found = dict(PAGES)
    for top in ("bench/results", "experiments"):
        for path in sorted((ROOT / top).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            if path.suffix in {".md", ".png"}:
                found[name] = name.replace("bench/results/", "results/").replace("/README", "")
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures that do not lie in `docs/`."""
    for source, target in extra_files().items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Translate the links outside of fences."""
    shown = extra_files()
    here = next((s for s, t in shown.items() if t == page.file.src_uri), None)
    here = here or f"docs/{page.file.src_uri}"

    def translate(found: re.Match[str]) -> str:
        mark, text, link, anchor = found.groups()
        target = os.path.normpath(PurePosixPath(here).parent / link)
        site = shown.get(target) or (target[5:] if target.startswith("docs/") else None)
        if site is not None:
            relative = os.path.relpath(site, PurePosixPath(page.file.src_uri).parent)
            return f"{mark}[{text}]({relative}{anchor or ''})"
        return text if (ROOT / target).exists() else found[0]

    parts = FENCE.split(markdown)
    return "".join(p if p.startswith("```") else LINK.sub(translate, p) for p in parts)
