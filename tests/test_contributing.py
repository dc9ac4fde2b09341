"""CONTRIBUTING is right: what to run, where things are, and which files an addition touches."""

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from test_house_rules import PACKAGE, ROOT, imported_paths, parsed, sources

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
MAX_LINES = 80

NAMED_OTHERWISE = {
    "contributing": "this file",
    "docs": "the pages of documentation",
    "examples": "the programs in examples/",
    "house_rules": "rules for all of the code",
    "own_environment": "environments of the user's own, by every way to name them",
    "openenv_package": "against OpenEnv's own package, in an environment that has it",
    "ray": "processes that Ray starts, and the options for it",
    "task_contract": "what every task promises; a new task adds one line",
    "transformers_serve": "the chat client against a real server",
    "vllm": "the inference client against a real server, in an environment that has it",
    "webshop_published": "against the benchmark's own products, where they are at hand",
}
"""Test files that are not named after a module, a folder or a program, and what they are about."""

CHOICES = {"experiment.defaults", "experiment.recipes"}
"""Settings for methods and tasks that suit a purpose; nothing has to have any."""


def names() -> set[str]:
    """What a test file may be named after: a module, a folder, or the end of its path.

    `tasks.qa.data`, for example, in `test_data`, `test_qa_data` or `test_tasks_qa_data`.
    """
    paths = [*PACKAGE.rglob("*.py"), *(path for path in PACKAGE.rglob("*") if path.is_dir())]
    parts = [path.relative_to(PACKAGE).with_suffix("").parts for path in paths]
    ends = {"_".join(p[start:]).removesuffix("_") for p in parts for start in range(len(p))}
    return ends | {program.stem for program in ROOT.glob("benchmarks/*")}


def section(title: str, text: str = TEXT) -> str:
    """What stands under a heading."""
    found = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", text, re.S | re.M)
    assert found, f"CONTRIBUTING.md has no section {title!r}"
    return found[1]


def touched(kind: str, text: str = TEXT) -> set[str]:
    """Modules that CONTRIBUTING names as those that an addition touches besides its own."""
    found = re.search(
        r"Besides\s+its\s+own\s+files\s+it\s+touches\s(.*?)\.(?=\s)",
        section(f"Add a {kind}", text),
        re.S,
    )
    assert found, f"section 'Add a {kind}' does not say what it touches besides its own files"
    return {path.replace("/", ".") for path in re.findall(r"`([\w/]+)\.py`", found[1])}


@cache
def words(text: str) -> set[str]:
    """All names, attributes and arguments in a module, and all its texts."""

    def found(node: ast.AST) -> Iterator[str]:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name):
                yield inner.id
            elif isinstance(inner, ast.Attribute):
                yield inner.attr
            elif isinstance(inner, ast.keyword):
                yield inner.arg or ""
            elif isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                yield inner.value

    return set(found(parsed(text)))


def who_names(word: str) -> set[str]:
    """Modules whose code has a word, as a name or as a text."""
    return {name for name, text in sources().items() if word in words(text)}


def who_imports(folder: str) -> set[str]:
    """Modules that import a folder, or something in it."""
    paths = {name: imported_paths(name, parsed(text)) for name, text in sources().items()}
    return {name for name, own in paths.items() if any(f"{p}.".startswith(folder) for p in own)}


@pytest.mark.parametrize("kind", ["task", "method", "format"])
def test_an_addition_touches_at_most_two_files_besides_its_own(kind: str) -> None:
    assert 1 <= len(touched(kind)) <= 2


@pytest.mark.parametrize("method", ["rft", "grpo", "dagger"])
def test_methods_are_named_where_it_is_said(method: str) -> None:
    own = ("algorithms.", "learners.")
    others = {name for name in who_names(method) if not name.startswith(own)}
    assert others - CHOICES == touched("method")


@pytest.mark.parametrize("task", ["alfworld", "mind2web", "qa", "webshop"])
def test_tasks_are_used_where_it_is_said(task: str) -> None:
    others = {
        name for name in who_imports(f"tasks.{task}.") if not name.startswith(f"tasks.{task}.")
    }
    assert others - CHOICES == touched("task")


@pytest.mark.parametrize("format", ["knowagent", "atif"])
def test_formats_are_named_where_it_is_said(format: str) -> None:
    mentioned = {
        name
        for name, text in sources().items()
        if re.search(rf"\b{format}\b", text) and not name.startswith(f"formats.{format}")
    }
    assert mentioned == touched("format")


def test_it_is_short() -> None:
    assert TEXT.count("\n") <= MAX_LINES


def test_all_that_it_names_is_there() -> None:
    found = re.findall(r"`([\w./]*\w/|[\w./]+\.(?:py|md))`", TEXT)
    paths = [path for path in found if "NAME" not in path]
    assert len(paths) > 10
    bases = (ROOT, PACKAGE, ROOT / "tests")
    assert [path for path in paths if not any((base / path).exists() for base in bases)] == []
    targets = {target for line in re.findall(r"`make ([\w ]+)`", TEXT) for target in line.split()}
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    assert [t for t in sorted(targets) if not re.search(rf"^{t}:", makefile, re.M)] == []


def test_every_test_file_is_named_after_what_it_tests() -> None:
    files = {file.stem.removeprefix("test_") for file in ROOT.glob("tests/test_*.py")}
    assert sorted(files - names() - NAMED_OTHERWISE.keys()) == []
    assert "telepathy" not in names()


def test_what_it_says_can_be_wrong() -> None:
    for wrong in (TEXT.replace("experiment/config.py", "experiment/run.py"), ""):
        with pytest.raises(AssertionError):
            assert touched("task", wrong) == touched("task")
