"""The house rules that a tool can check: short files, imports that go down, no dead code."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "stepagent"

LAYERS = (
    ("bounds", "console", "methods", "processes", "seeds", "statistics", "types"),
    ("files",),
    ("rendering", "trajectories"),
    ("formats", "model", "tasks"),
    ("chat", "inspection", "rollout"),
    ("algorithms", "detours", "evaluation"),
    ("practice", "scratch"),
    ("learners",),
    ("experiment",),
    ("report",),
    ("commands",),
    ("api",),
    ("cli",),
)
"""Lowest first: a module may import only from layers before its own. A folder is one name."""

INSIDE = {
    "formats": (
        ("records",),
        ("turns", "content", "tools"),
        ("dialogue", "chat", "field_aliases"),
        ("messages",),
    ),
    "tasks": (
        ("base", "deadline"),
        ("data", "playing", "tries"),
        ("episode",),
        ("demonstrations", "scienceworld", "alfworld", "mind2web", "qa", "webshop"),
        ("adapters",),
    ),
    "model": (
        ("prefix_tree", "weights", "products", "last_mlp", "chosen_attention"),
        ("adapter_files", "lean_layers", "sharding", "tree_attention"),
        ("lora", "device", "attention_masks", "masters"),
        ("forward",),
        ("kv_cache",),
    ),
}
"""Lowest first within a folder; its other modules come after these and may import each other."""

MAX_LINES = 300
MAX_ROOMS = 30
"""Files and folders on the top floor: as many as a reader can look through."""
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
EXEMPT = {"__init__", "__main__"}

CALLED_BY_OTHERS = {
    "contains": "gymnasium's spaces have it",
    "find_class": "pickle calls it",
    "forward": "torch calls it on functions with a gradient of their own",
    "model_config": "pydantic reads it",
    "readable": "io calls it on streams",
    "request_id": "clients of OpenEnv send it; other fields are refused",
    "subagent_trajectory_ref": "records in ATIF may have it; other fields are refused",
    "timeout_s": "clients of OpenEnv send it; other fields are refused",
}
"""Members of classes that our own code never names, and who does."""


@cache
def parsed(text: str) -> ast.Module:
    """The tree of a module, which most rules look at."""
    return ast.parse(text)


@cache
def sources() -> dict[str, str]:
    """Text of every source file by its name within the package, e.g. `tasks.base`."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {".".join(f.relative_to(PACKAGE).with_suffix("").parts): f.read_text() for f in files}


def shape_faults(files: dict[str, str]) -> list[str]:
    """Files that are too long, do not say what they are, or have a name that says nothing."""
    faults = []
    for name, text in files.items():
        if not ast.get_docstring(parsed(text)):
            faults.append(f"{name}: no docstring; say what the module is")
        if (lines := text.count("\n")) > MAX_LINES:
            faults.append(
                f"{name}: {lines} lines; split it by its nouns, {MAX_LINES} are the limit"
            )
        if VAGUE_NAMES & set(name.split(".")):
            faults.append(f"{name}: vague name; put the code where the noun it serves lives")
    return faults


def swallowed_errors(files: dict[str, str]) -> list[str]:
    """Places that hide errors: `except:`, and `except Exception` with only `pass` under it."""
    faults = []
    for name, text in files.items():
        for node in ast.walk(parsed(text)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = ast.unparse(node.type) if node.type else None
            silent = all(isinstance(line, ast.Pass) for line in node.body)
            if caught is None or (silent and caught in ("Exception", "BaseException")):
                faults.append(f"{name}:{node.lineno}: hides every error; name the error you expect")
    return faults


def imports(files: dict[str, str]) -> dict[str, set[str]]:
    """Modules of the package that each module imports, imports inside functions included."""
    found: dict[str, set[str]] = {}
    for name, text in files.items():
        # `from stepagent.types import Step` gives `types.Step`: cut it back to the module.
        paths = imported_paths(name, parsed(text))
        found[name] = {p if p in files else p.rpartition(".")[0] or p for p in paths} - {name}
    return found


def imported_paths(name: str, tree: ast.Module) -> set[str]:
    """All that a module imports from the package, e.g. `types.Step`."""
    paths: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            paths += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # The package that a relative import starts from.
            start = ("stepagent." + name).split(".")[: -node.level] if node.level else []
            source = ".".join([*start, node.module] if node.module else start)
            paths += [f"{source}.{alias.name}" for alias in node.names]
    return {p.removeprefix("stepagent.") for p in paths if p.startswith("stepagent.")}


def import_faults(files: dict[str, str]) -> list[str]:
    """Imports that do not go down the list, cycles within a folder, and modules not on the list."""
    layer_of = {module: layer for layer, modules in enumerate(LAYERS) for module in modules}
    graph = imports(files)
    faults = []
    for name, targets in graph.items():
        folder = name.split(".")[0]
        if name in EXEMPT:
            continue
        if folder not in layer_of:
            faults.append(f"{name}: not in LAYERS of {Path(__file__).name}; add it to its layer")
            continue
        for target in sorted(targets):
            target_folder = target.split(".")[0]
            if target_folder == folder:
                faults += [f"{name} imports {target}: goes up inside {folder}"] * (
                    _rank_inside(name) < _rank_inside(target)
                )
            elif layer_of.get(target_folder, len(LAYERS)) >= layer_of[folder]:
                faults.append(f"{name} imports {target}: imports only go down the list")
    return faults + [
        f"{name}: imports itself through others" for name in graph if _cyclic(name, graph)
    ]


def _rank_inside(name: str) -> int:
    """Place of a module within its folder; the folder's own `__init__` may import all of them."""
    folder, _, rest = name.partition(".")
    module = rest.partition(".")[0]
    order = INSIDE.get(folder, ())
    return next((rank for rank, modules in enumerate(order) if module in modules), len(order))


def _cyclic(name: str, graph: dict[str, set[str]]) -> bool:
    reached, waiting = set[str](), [name]
    while waiting:
        new = graph.get(waiting.pop(), set()) - reached
        reached |= new
        waiting += new
    return name in reached


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


def unused(files: dict[str, str], others: Mapping[str, str], words: set[str]) -> list[str]:
    """Functions, classes, constants and members that nothing names but tests.

    `others` are programs beside the package, `words` what templates name. Of what a module defines
    it is known who imports it; members count as used where anything has their name.
    """
    trees = {name: parsed(text) for name, text in (files | dict(others)).items()}
    imported, attributes = set[str](), dict[str, set[str]]()
    for name, tree in trees.items():
        paths = imported_paths(name, tree)
        imported |= paths
        for path in paths:
            attributes.setdefault(path, set()).update(_attributes(tree))
    members = set(words).union(*(_attributes(tree) for tree in trees.values()))
    faults = []
    for name in files:
        module = name.removesuffix(".__init__")
        names_in = [(node, set(_names(node))) for node in trees[name].body]
        for node, own in _definitions(trees[name]):
            outside = imported | {f"{module}.{word}" for word in attributes.get(module, ())}
            here = any(own in names for other, names in names_in if other is not node)
            is_command = name.startswith("commands.") and own == "main"  # `cli` finds it by name
            if not (here or is_command or f"{module}.{own}" in outside):
                faults.append(f"{name}: nothing but tests uses {own}; remove it")
            for _, member in _definitions(node) if isinstance(node, ast.ClassDef) else ():
                if not (member.startswith("_") or member in members | CALLED_BY_OTHERS.keys()):
                    faults.append(f"{name}: nothing but tests uses {own}.{member}; remove it")
    return faults


def _definitions(body: ast.Module | ast.ClassDef) -> Iterator[tuple[Definition, str]]:
    """Each definition and its name; names with two underscores have a meaning for Python."""
    for node in body.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        else:
            continue
        yield from ((node, name) for name in names if not name.startswith("__"))


def _names(node: ast.AST) -> Iterator[str]:
    """Names that are read, those in annotations that are texts included."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load):
            yield inner.id
        elif isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield from re.findall(r"\w+", inner.value) if len(inner.value) < 80 else ()


def _attributes(tree: ast.AST) -> Iterator[str]:
    """Names after a dot, of arguments, and in short texts, such as those of `getattr`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.MatchClass):
            yield from node.kwd_attrs
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from [node.value] if node.value.isidentifier() else ()


def programs() -> dict[str, str]:
    """What uses the package beside tests: benchmarks, examples, and Python in the documentation."""
    files = [*ROOT.glob("benchmarks/**/*.py"), *ROOT.glob("examples/*.py")]
    found = {f"{file.parent.name}/{file.stem}": file.read_text() for file in files}
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        text = page.read_text()
        for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)):
            typed = re.findall(r"^(?:>>>|\.\.\.) ?(.*)$", block, re.M)
            found[f"{page.name}/{number}"] = "\n".join(typed) if typed else block
        # The generator of the site puts the docstring of what follows there.
        referred = re.findall(r"^::: (stepagent[\w.]*)", text, re.M)
        found[page.name] = "\n".join(f"import {name}" for name in referred)
    return found


def template_words() -> set[str]:
    """Words in the templates of pages, which name what the page's data has."""
    return set(re.findall(r"\w+", " ".join(t.read_text() for t in PACKAGE.rglob("*.html"))))


def test_nothing_is_there_for_tests_only() -> None:
    assert unused(sources(), programs(), template_words()) == []


def test_all_that_others_call_is_there() -> None:
    members = {
        member
        for text in sources().values()
        for node in ast.walk(parsed(text))
        if isinstance(node, ast.ClassDef)
        for _, member in _definitions(node)
    }
    assert CALLED_BY_OTHERS.keys() <= members


def test_the_top_floor_has_few_rooms() -> None:
    hidden = ("__pycache__", ".")
    rooms = [room.name for room in PACKAGE.iterdir() if not room.name.startswith(hidden)]
    assert len(rooms) <= MAX_ROOMS, sorted(rooms)


def test_every_source_file_is_short_documented_and_clearly_named() -> None:
    assert shape_faults(sources()) == []


def test_no_source_file_hides_errors() -> None:
    assert swallowed_errors(sources()) == []


def test_imports_only_go_down_the_list() -> None:
    assert import_faults(sources()) == []


def loads(module: str, package: str) -> bool:
    """Whether importing a module, by itself, brings a package in."""
    code = f"import sys, {module}; print({package!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip() == "True"


def test_the_report_does_not_load_torch() -> None:
    assert not loads("stepagent.report.page", "torch")


def test_the_rule_on_torch_can_fail() -> None:
    assert loads("logging.config", "socketserver")


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("policy", "x = 1\n", "policy: no docstring"),
        ("policy", '"""A policy."""\n' + "\n" * 300, "policy: 301 lines"),
        ("tasks.utils", '"""Tasks."""\n', "tasks.utils: vague name"),
    ],
)
def test_the_shape_rules_can_fail(name: str, text: str, fault: str) -> None:
    faults = shape_faults({name: text})
    assert len(faults) == 1
    assert faults[0].startswith(fault)
    assert shape_faults({"policy": '"""A policy."""\n' + "\n" * 299}) == []


@pytest.mark.parametrize(
    "text",
    [
        "from stepagent.types import Step",
        "from stepagent import types\ntypes.Step",
        "import stepagent.types\nstepagent.types.Step",
    ],
)
def test_what_another_module_or_a_program_imports_is_used(text: str) -> None:
    step = {"types": "class Step: ...\n"}
    assert unused(step | {"rollout": text}, {}, set()) == []
    assert unused(step, {"benchmarks/speed": text}, set()) == []


def test_what_its_own_module_or_a_template_names_is_used() -> None:
    named = {"types": "class Step:\n    last = 1\nfirst: 'list[Step]'\nprint(first)"}
    assert unused(named, {}, {"last"}) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "class Step: ...",
        "from stepagent.elsewhere import Step",
        "from stepagent import elsewhere\nelsewhere.Step",
    ],
)
def test_the_rule_on_what_is_used_can_fail(text: str) -> None:
    recursive = (
        "class Step:\n    def next(self): return Step()\n    def last(self): return self.next()"
    )
    faults = unused({"types": recursive}, {"benchmarks/speed": text}, set())
    assert faults == [
        "types: nothing but tests uses Step; remove it",
        "types: nothing but tests uses Step.last; remove it",
    ]


@pytest.mark.parametrize("handler", ["except:", "except Exception:", "except BaseException as e:"])
def test_the_rule_on_hidden_errors_can_fail(handler: str) -> None:
    faults = swallowed_errors({"run": f"try:\n    f()\n{handler}\n    pass\n"})
    assert faults == ["run:3: hides every error; name the error you expect"]
    assert swallowed_errors({"run": "try:\n    f()\nexcept KeyError:\n    pass\n"}) == []
    assert swallowed_errors({"run": "try:\n    f()\nexcept Exception:\n    log()\n"}) == []


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("types", "from stepagent.rollout import rollout", "types imports rollout: imports only"),
        ("types", "import stepagent.rollout", "types imports rollout: imports only"),
        ("types", "from stepagent import rollout", "types imports rollout: imports only"),
        ("types", "def f():\n    import stepagent.rollout", "types imports rollout: imports only"),
        ("tasks.base", "from ..rollout import r", "tasks.base imports rollout: imports only"),
        ("tasks.base", "import stepagent.tasks.qa", "tasks.base imports tasks.qa: goes up"),
        (
            "tasks.data.sources",
            "from ..qa import Q",
            "tasks.data.sources imports tasks.qa: goes up",
        ),
        ("model.policy", "import stepagent.rollout", "model.policy imports rollout: imports only"),
        ("types", "import stepagent.missing", "types imports missing: imports only"),
        ("telepathy", "", "telepathy: not in LAYERS of test_house_rules.py; add it"),
    ],
)
def test_the_import_rule_can_fail(name: str, text: str, fault: str) -> None:
    others = ("tasks.qa", "tasks.base", "rollout", "types")
    faults = import_faults(dict.fromkeys(others, "") | {name: text})
    assert len(faults) == 1
    assert faults[0].startswith(fault)


def test_modules_of_one_folder_may_import_each_other_but_not_in_a_circle() -> None:
    straight = {"algorithms.ppo": "import stepagent.algorithms.sft", "algorithms.sft": ""}
    assert import_faults(straight) == []
    circle = straight | {"algorithms.sft": "from stepagent.algorithms import ppo"}
    assert len(import_faults(circle)) == 2


def test_imports_down_the_list_from_outside_and_by_the_package_itself_are_allowed() -> None:
    files = {
        "types": "import torch",
        "rollout": "from stepagent.types import Step\nfrom stepagent.tasks.base import Task",
        "tasks.base": "import stepagent.types",
        "tasks.qa": "from stepagent.tasks.base import Task",
        "__init__": "from stepagent.rollout import rollout",
    }
    assert import_faults(files) == []
