"""A MkDocs hook: pages of the site that are made from files elsewhere in the repository.

CONTRIBUTING.md and SECURITY.md become pages. On GitHub the pages of docs/ link to
`../CONTRIBUTING.md`; on the site the same link leads to the page that is made from that file.
api.md gets a reference of every public name, from its docstring.
"""

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

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


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Leads links out of docs/ to the pages that stand for these files; fills api.md."""

    def led(link: re.Match[str]) -> str:
        return f"]({link['up']}{PAGES[link['name']]}"

    names = "|".join(map(re.escape, PAGES))
    text = re.sub(rf"\]\((?P<up>(?:\.\./)*)\.\./(?P<name>{names})", led, markdown)
    if page.file.src_uri == "api.md":
        text += "".join(f"\n::: stepagent.{name}\n" for name in public_names())
    return text


def public_names() -> list[str]:
    """`__all__` of the package, without importing it."""
    source = (ROOT / "src" / "stepagent" / "__init__.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []
