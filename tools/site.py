"""What mkdocs calls while it builds the site: pages and pictures that live outside `docs` join it,
and links to them are rewritten. A link to any other file of the repository fails a strict build.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {
    "README.md": "readme.md",
    "configs/README.md": "configurations.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages outside `docs`, and what each is called in the site."""
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and pictures from outside `docs`."""
    pictures = sorted((ROOT / "configs" / "results").glob("*.png"))
    joined = {path.relative_to(ROOT).as_posix(): f"figures/{path.name}" for path in pictures}
    for source, target in {**PAGES, **joined}.items():
        if (ROOT / source).is_file():
            files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links of one page to where their targets are in the site."""
    place = page.file.src_uri
    sources = {target: source for source, target in PAGES.items()}
    home = ROOT / sources[place] if place in sources else DOCS / place

    def rewrite(match: re.Match[str]) -> str:
        target = match[2]
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = (home.parent / target).resolve()
        return f"{match[1]}{_to_site(path, place, target)}{match[3] or ''}{match[4]}"

    return LINK.sub(rewrite, markdown)


def _to_site(path: Path, place: str, target: str) -> str:
    """A file of the repository as a link from one page of the site; a folder as its first page."""
    if path.is_dir():
        path = min(path.glob("*.md"), default=path)
    name = _name_in_site(path)
    if name is None:
        return target
    return os.path.relpath(name, os.path.dirname(place) or ".")


def _name_in_site(path: Path) -> str | None:
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    if not path.is_relative_to(ROOT):
        return None
    if path.suffix == ".png":
        return f"figures/{path.name}"
    return PAGES.get(path.relative_to(ROOT).as_posix())
