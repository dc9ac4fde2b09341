"""A MkDocs hook: CONTRIBUTING.md and SECURITY.md are pages of the site without a second copy.

On GitHub the pages link to `../CONTRIBUTING.md`; on the site the same link leads to the page that
is made here from that file.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages; their links into docs/ become links beside them."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        for other, target in PAGES.items():
            text = text.replace(f"]({other}", f"]({target}")
        files.append(File.generated(config, page, content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Leads links out of docs/ to the pages that stand for these files."""

    def led(link: re.Match[str]) -> str:
        return f"]({link['up']}{PAGES[link['name']]}"

    names = "|".join(map(re.escape, PAGES))
    return re.sub(rf"\]\((?P<up>(?:\.\./)*)\.\./(?P<name>{names})", led, markdown)
