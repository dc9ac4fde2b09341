"""README.md and docs/: commands parse, code compiles, links lead somewhere, terms are defined.

No command is run: the real parser of each reads its arguments, and nothing more happens.
What pages show of files and environments is run, since it is small.
"""

import ast
import importlib
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, wraps
from inspect import isclass, signature
from pathlib import Path
from typing import Any

import pytest
import tyro

import stepagent
from stepagent.cli import COMMANDS
from stepagent.commands import launching
from stepagent.experiment.config import TASKS, TrainConfig
from stepagent.formats.import_export import read_foreign
from stepagent.methods import METHODS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
LOG = DOCS / "lab-log.md"  # quotes old commands and output

LANGUAGES = {"sh", "python", "json", "text"}
PLACEHOLDERS = {
    "N": "1", "TASK": "scienceworld", "NAME": "implicit",
    **dict.fromkeys(("RECIPE", "RUN/config.json", "settings.py:MINE"), "scienceworld-demo"),
}  # fmt: skip
"""Words that stand for something narrower than a text; all others are parsed as they are."""
OTHER_PROGRAMS = {"cd", "git", "export", "other/bin/pip", "other/bin/pytest", "vllm", "."}
"""Programs of others whose arguments are not checked."""
OTHER_OPTIONS = {
    "--no-deps", "--api-key", "--max-model-len", "--context-length",
    "--gpu-memory-utilization", "--mem-fraction-static", "--enable-deterministic-inference",
    "--api-server-count", "--dp-size", "--max-num-batched-tokens",
}  # fmt: skip
"""Options of other programs."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    fence = re.compile(r"^```(\S*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
    text = page.read_text()
    for found in fence.finditer(text):
        yield Block(page, text.count("\n", 0, found.start()) + 1, found[1], found[2])


def python_of(page: Path) -> str:
    """All Python of a page."""
    return "\n".join(block.text for block in blocks_of(page) if block.language == "python")


def prose_of(page: Path) -> str:
    """A page without its fenced blocks; lines keep their numbers."""
    blank = re.compile(r"^```.*?^```$", flags=re.MULTILINE | re.DOTALL)
    return blank.sub(lambda m: "\n" * m[0].count("\n"), page.read_text())


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def of(language: str) -> list[Any]:
    return [pytest.param(b, id=b.place) for b in BLOCKS if b.language == language]


def each(pages: Iterable[Path]) -> pytest.MarkDecorator:
    """Runs a test for each page."""
    return pytest.mark.parametrize("page", [*pages], ids=lambda p: str(p.relative_to(ROOT)))


def test_every_block_names_its_language() -> None:
    assert [b.place for b in BLOCKS if b.language not in LANGUAGES] == []


# Commands


class Parsed(Exception):
    """The arguments are those of the command, which is not run."""


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    parse = tyro.cli

    def only_parse(command: Callable[..., Any], **settings: Any) -> None:
        if not isclass(command):

            @wraps(command)
            def nothing(*_: Any, **__: Any) -> None: ...

            parse(nothing, **settings)
        else:
            parse(command, **settings)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", only_parse)


def shell_commands(text: str) -> Iterator[list[str]]:
    """The words of each command; pipes and `&&` begin another one, comments are left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        for word in lexer:
            if set(word) <= set("|&;"):
                yield words
                words = []
            else:
                words.append(word)
        if words:
            yield words


def check_stepagent(args: list[str]) -> None:
    """Parses the arguments of `stepagent`; raises SystemExit if the command does not know them."""
    _, (command, *options) = launching.parsed([PLACEHOLDERS.get(word, word) for word in args])
    module = importlib.import_module(f"stepagent.commands.{COMMANDS[command][0]}")
    with pytest.raises(Parsed):
        module.main(options)


def check_other(words: list[str]) -> None:
    program, *args = words
    program = program.removeprefix(".venv/bin/")
    if program == "make":
        assert set(args) <= targets()
    elif program == "pip":
        known = extras()
        for wanted in re.findall(r"\[(.*?)\]", " ".join(args)):
            assert set(wanted.split(",")) <= known
    elif program == "python" and not args[0].startswith("-"):
        source = (ROOT / args[0]).read_text()
        assert [o for o in args[1:] if o.startswith("--") and o not in source] == []
    elif program == "pytest":
        assert all((ROOT / a).exists() for a in args if a.endswith(".py"))
    elif program == "torchrun":
        check_stepagent(args[args.index("stepagent") + 1 :])
    elif program.startswith(("STEPAGENT_", "VLLM_")) or program == "srun":
        check_other(args)
    else:
        assert program in OTHER_PROGRAMS | {"python"}, f"unknown program {program}"


@cache
def targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@cache
def extras() -> set[str]:
    table = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    return set(re.findall(r"^(\w+) = \[", table.partition("\n[")[0], re.MULTILINE))


@pytest.mark.parametrize("block", of("sh"))
def test_every_command_parses(
    block: Block, nothing_runs: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in shell_commands(block.text):
        if words[0].removeprefix(".venv/bin/") != "stepagent":
            check_other(words)
            continue
        try:
            check_stepagent(words[1:])
        except SystemExit:
            pytest.fail(f"{block.place}: {shlex.join(words)}\n{capsys.readouterr().err}")


def inline_commands() -> list[Any]:
    """Commands within sentences, with their place."""
    found = []
    for page in PAGES:
        if page != LOG:
            for code in re.finditer(r"`(stepagent [a-z][^`]*|make [a-z][^`]*)`", prose_of(page)):
                line = page.read_text().count("\n", 0, code.start()) + 1
                found.append(pytest.param(code[1], id=f"{page.relative_to(ROOT)}:{line}"))
    return found


@pytest.mark.parametrize("text", inline_commands())
def test_every_command_in_a_sentence_parses_or_only_lacks_its_output(
    text: str, nothing_runs: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in shell_commands(text):
        if words[0] != "stepagent":
            check_other(words)
        elif words == ["stepagent", "train", "own"] or len(words) == 2:
            assert words[1] in COMMANDS
        elif "--help" not in words:
            try:
                check_stepagent(words[1:])
            except SystemExit:
                check_stepagent([*words[1:], "--out", "OUT"])


def test_a_wrong_command_is_noticed(nothing_runs: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        check_stepagent(["sft", "--demonstrations", "FILE", "--outt", "novice"])
    with pytest.raises(SystemExit):
        check_stepagent(["train", "scienceworld-demo", "--out", "RUN", "--seed", "one"])
    with pytest.raises(AssertionError):
        check_other(["make", "telepathy"])
    with pytest.raises(AssertionError):
        check_other(["python", "benchmarks/env_speed.py", "--telepathy", "1"])


def test_shell_blocks_are_cut_into_commands() -> None:
    text = "make demo    # trains\na b \\\n  c | d 'e f' && g\n"
    assert [*shell_commands(text)] == [["make", "demo"], ["a", "b", "c"], ["d", "e f"], ["g"]]


@pytest.fixture(scope="module")
def known_options() -> set[str]:
    """Every option of every command, of `train` for each kind of task."""
    recipes = ("scienceworld-demo", "alfworld-results", "webshop-tiny", "mind2web-tiny")
    asked = [["train", recipe] for recipe in (*recipes, "musique-tiny", "own")]
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.setenv("COLUMNS", "400")
        for name, *args in asked + [[name] for name in COMMANDS if name != "train"]:
            main = importlib.import_module(f"stepagent.commands.{COMMANDS[name][0]}").main
            with pytest.raises(SystemExit):
                main([*args, "--help"])
    named = set(re.findall(r"--[a-z][\w.-]*", said.getvalue()))
    return named.union(launching.OPTIONS, *(paths_of(config) for config in TASKS.values()))


def paths_of(config: Any, prefix: str = "--") -> Iterator[str]:
    """Options of a task, which `collect` and others list behind its name."""
    for field in fields(config):
        yield (name := prefix + field.name.replace("_", "-"))
        if is_dataclass(value := getattr(config, field.name)):
            yield from paths_of(value, f"{name}.")


@each(PAGES)
def test_options_in_sentences_exist(page: Path, known_options: set[str]) -> None:
    named = re.findall(r"`(--[a-z][\w.-]*)", prose_of(page))
    assert [o for o in named if o not in known_options | OTHER_OPTIONS] == []


# Code


@pytest.mark.parametrize("block", of("python"))
def test_python_blocks_use_only_what_exists(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        match node:
            case ast.ImportFrom(module=str(name)) if name.startswith("stepagent"):
                module = importlib.import_module(name)
                assert [a.name for a in node.names if not hasattr(module, a.name)] == []
            case ast.Import(names=names):
                for alias in names:
                    if alias.name.startswith("stepagent"):
                        importlib.import_module(alias.name)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="stepagent"), attr=name)):
                keywords = {k.arg: None for k in node.keywords if k.arg}
                signature(getattr(stepagent, name)).bind(*node.args, **keywords)
            case ast.Attribute(value=ast.Name(id="stepagent"), attr=name):
                assert name in stepagent.__all__


def test_the_python_of_the_readme_and_of_the_api_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guess.py").write_text(python_of(DOCS / "own-environment.md"))
    demonstrations = stepagent.read_trajectories(ROOT / "examples" / "messages.jsonl")[:12]
    stepagent.write_trajectories(tmp_path / "demonstrations.jsonl", demonstrations)
    size = stepagent.TinyConfig(vocab_size=300, hidden_size=32, num_layers=1, num_heads=2)
    once = stepagent.SFTConfig(epochs=1)
    stages = stepagent.PretrainConfig(reading=once, copying=once)
    stepagent.from_scratch(demonstrations, size, pretraining=stages).save("MODEL")
    monkeypatch.setattr("stepagent.api.learning.choose_items", lambda *_, **__: ("seed/1",))
    code = python_of(DOCS / "api.md")
    assert python_of(README) in code
    exec(compile(code, "api.md", "exec"), {})
    assert (tmp_path / "agent" / "adapter_model.safetensors").exists()


def test_the_environment_and_the_expert_of_the_page_work(tmp_path: Path) -> None:
    (tmp_path / "guess.py").write_text(python_of(DOCS / "own-environment.md"))
    task = stepagent.open_environment(stepagent.EnvConfig(env=f"{tmp_path / 'guess.py'}:TASK"))
    (trajectory,) = stepagent.collect(task, ["seed/3"]).trajectories
    assert trajectory.success
    assert trajectory.steps[0].observation == "It is between 0 and 99."
    env = task.make_env()
    env.reset(options={"item": "seed/3"})
    assert env.step("no number")[:2] == ("That is not a number.", 0.0)


def test_the_messages_of_the_page_are_demonstrations(tmp_path: Path) -> None:
    (block,) = (b for b in blocks_of(DOCS / "own-data.md") if b.language == "json")
    (tmp_path / "orders.json").write_text(block.text)
    (trajectory,) = read_foreign(tmp_path / "orders.json").trajectories
    assert [step.action for step in trajectory.steps] == [
        "cancel 17", "reply The order is cancelled.",
    ]  # fmt: skip
    assert trajectory.instruction == "Cancel order 17."


@pytest.mark.parametrize("block", of("json"))
def test_json_blocks_are_json(block: Block) -> None:
    json.loads(block.text)


def option_tables() -> list[Any]:
    """Rows `| --option | default | meaning |` of tables that begin with `option`."""
    found = []
    for page in PAGES:
        for table in re.finditer(
            r"^\| option[^|]*\| default \|.*\n(?:\|.*\n)+", prose_of(page), re.M
        ):
            for row in table[0].splitlines()[2:]:
                names, default = (cell.strip() for cell in row.split("|")[1:3])
                if names.startswith("`--"):
                    found.append(pytest.param(names.strip("`"), default, id=names))
    return found


@pytest.mark.parametrize(("option", "default"), option_tables())
def test_tables_of_options_have_the_defaults_of_the_code(option: str, default: str) -> None:
    value: Any = TrainConfig(task=TASKS["scienceworld"])
    for name in option.removeprefix("--").replace("-", "_").split("."):
        value = getattr(value, name)
    assert str(value) == default or float(value) == float(default)


@pytest.mark.parametrize("name", ["alfworld", "mind2web", "webshop", "hotpotqa"])
def test_tables_of_a_task_have_the_defaults_of_the_code(name: str) -> None:
    page = DOCS / f"tasks-{'qa' if name == 'hotpotqa' else name}.md"
    table = prose_of(page).partition("| option | default |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", table, re.MULTILINE)
    known = {option: str(getattr(TASKS[name], option)) for option, _ in rows}
    # Words without marks of code describe a default that depends on the machine.
    told = {o: d.strip("`") if d[0] in "`0123456789" else known[o] for o, d in rows}
    assert told == known
    assert len(rows) > 3


def test_every_option_of_an_own_environment_is_on_its_page() -> None:
    text = (DOCS / "own-environment.md").read_text()
    assert [o for o in paths_of(stepagent.EnvConfig()) if f"`{o}`" not in text] == []


def test_there_are_tables_of_options() -> None:
    assert len(option_tables()) > 40


# Links


def github_slug(heading: str) -> str:
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip().lower()).replace("`", "")
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@cache
def anchors(page: Path) -> set[str]:
    return {github_slug(m[1]) for m in re.finditer(r"^#+ (.*)$", prose_of(page), re.MULTILINE)}


@each(PAGES)
def test_links_between_pages_lead_somewhere_on_github(page: Path) -> None:
    broken = []
    for link in re.findall(r"(?<!!)\]\(([^)\s]+)\)", prose_of(page)):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@each(p for p in PAGES if p != LOG)
def test_files_that_pages_name_exist(page: Path) -> None:
    named = re.findall(
        r"\b((?:src/stepagent|tests|benchmarks|examples)/[\w./-]*\w)", page.read_text()
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_readme_lists_every_room_of_the_top_floor() -> None:
    tree = README.read_text().partition("src/stepagent/\n")[2].partition("```")[0]
    listed = {n for m in re.finditer(r"^  (\S+(?:, \S+)*)  ", tree, re.M) for n in m[1].split(", ")}
    rooms = {p.name + "/" * p.is_dir() for p in (ROOT / "src" / "stepagent").iterdir()}
    assert listed == {r for r in rooms if not r.startswith("__") and r != "py.typed"}


def test_a_broken_link_can_be_noticed() -> None:
    assert github_slug("`results.json` and [summary.md](x)") == "resultsjson-and-summarymd"
    assert "telepathy" not in anchors(README)


# What pages promise


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_page_with_four_headings(name: str) -> None:
    page = DOCS / "methods" / ("prompting" if METHODS[name].kind == "prompt" else name)
    headings = re.findall(r"^## (.*)$", page.with_suffix(".md").read_text(), re.MULTILINE)
    assert headings == ["Usage", "Logged metrics", "Implementation details", "Results"]


@each(sorted((DOCS / "methods").glob("*.md")))
def test_metrics_that_a_page_names_are_logged_by_the_code(page: Path) -> None:
    section = prose_of(page).partition("## Logged metrics")[2].partition("\n## ")[0]
    fields = {name for row in re.findall(r"^\| (`.*?) \|", section, re.M) for name in row.split()}
    fields |= set(re.findall(r"`(?:[a-z]+_[a-z_]+|clipfrac|entropy|taken|refused)`", section))
    code = "".join(
        file.read_text()
        for folder in ("algorithms", "learners", "experiment", "model")
        for file in (ROOT / "src" / "stepagent" / folder).glob("*.py")
    )
    names = {field.strip("`,") for field in fields} - METHODS.keys()
    assert [n for n in names if f'"{n}"' not in code] == []


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 200


def code_messages() -> list[re.Pattern[str]]:
    """Texts in the code that are long enough to know, their values as wildcards."""
    found = []
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.JoinedStr(values=parts):
                    texts = [p.value if isinstance(p, ast.Constant) else None for p in parts]
                case ast.Constant(value=str(text)):
                    texts = [text]
                case _:
                    continue
            if sum(len(t) for t in texts if t) >= 12:
                pattern = "".join(".+?" if t is None else re.escape(str(t)) for t in texts)
                found.append(re.compile(pattern.removeprefix(".+?") + r"\Z", re.DOTALL))
    return found


def test_every_message_in_troubleshooting_is_one_of_the_code() -> None:
    known = code_messages()
    quoted = [b for b in blocks_of(DOCS / "troubleshooting.md") if b.language == "text"]
    assert len(quoted) > 20
    strange = []
    for block in quoted:
        text = block.text.strip()
        starts = [m.start() for pattern in known if (m := pattern.search(text))]
        # In front of a message may stand where it was found.
        if not any(re.fullmatch(r"([A-Z]+[.\w]*(:\d+)?:? ?)*", text[:start]) for start in starts):
            strange.append(f"{block.place}: {text}")
    assert strange == []


TERMS = {
    "inspection": r"inspection", "reflection": r"reflection", "practised-step": r"practised steps?",
    "detour": r"detours?", "novice": r"novices?", "round": r"rounds?", "unit": r"units?",
    "panel": r"panels?", "prefix-tree": r"prefix trees?", "step-reward": r"step rewards?",
    "likeness": r"likeness", "js-estimate": r"JS estimates?", "anchor": r"anchors?",
    "held-out": r"held-out",
}  # fmt: skip
"""Own terms by their anchor in the glossary, as they are written in sentences."""


def first_use(page: Path, term: str) -> re.Match[str] | None:
    """Where a page first uses a term in a sentence; headings, tables and code do not count."""

    def blank(found: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", found[0])

    text = re.sub(r"^```.*?^```$", blank, page.read_text(), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`]*`", blank, text)
    text = re.sub(r"^(#|\||    |<!--).*$", blank, text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", blank, text)
    return re.search(rf"(?<![\w-])({term})(?![\w-])", text, flags=re.IGNORECASE)


@each(p for p in PAGES if p.name not in {"glossary.md", "lab-log.md"})
def test_the_first_use_of_a_term_is_explained(page: Path) -> None:
    text, plain = page.read_text(), []
    for anchor, term in TERMS.items():
        if found := first_use(page, term):
            # Linked, to the glossary or to the place that explains it.
            links = re.finditer(r"\[[^\[\]]*\]\([^)]+\)", text)
            if not any(m.start() < found.start() < m.end() for m in links):
                plain.append(f"{found[0]} (glossary.md#{anchor})")
    assert plain == []


def test_the_terms_are_in_the_glossary() -> None:
    assert TERMS.keys() <= anchors(DOCS / "glossary.md")


def test_the_page_of_the_api_lists_every_public_name_and_no_other() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(stepagent.__all__)


@pytest.mark.parametrize("name", stepagent.__all__)
def test_every_public_name_has_a_docstring(name: str) -> None:
    assert (getattr(stepagent, name).__doc__ or "").strip()


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir"]
    done = subprocess.run([*command, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loads = re.compile(
        r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=[\"']?(?:https?:)?//[^>]*>"
    )
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    assert {m[0] for p in pages for m in loads.finditer(p.read_text())} == set()
    reference = (tmp_path / "api.html").read_text()
    assert [n for n in stepagent.__all__ if f'id="stepagent.{n}"' not in reference] == []
