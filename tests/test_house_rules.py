"""The house rules that a tool can check: short documented files, and imports that only go down."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "stepagent"

LAYERS = (
    ("bounds", "console", "methods", "processes", "statistics", "types"),
    ("actions", "files"),
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
        ("data", "episode", "tries"),
        ("demonstrations", "scienceworld", "alfworld", "mind2web", "qa", "webshop"),
        ("adapters",),
    ),
    "model": (
        ("prefix_tree", "weights"),
        ("adapter_files",),
        ("lora", "device", "attention_masks"),
        ("forward",),
        ("kv_cache",),
    ),
}
"""Lowest first within a folder; its other modules come after these and may import each other."""

MAX_LINES = 300
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
EXEMPT = {"__init__", "__main__"}


def sources() -> dict[str, str]:
    """Text of every source file by its name within the package, e.g. `tasks.base`."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {".".join(f.relative_to(PACKAGE).with_suffix("").parts): f.read_text() for f in files}


def shape_faults(files: dict[str, str]) -> list[str]:
    """Files that are too long, do not say what they are, or have a name that says nothing."""
    faults = []
    for name, text in files.items():
        if not ast.get_docstring(ast.parse(text)):
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
        for node in ast.walk(ast.parse(text)):
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
        paths: list[str] = []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                paths += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                # The package that a relative import starts from.
                start = ("stepagent." + name).split(".")[: -node.level] if node.level else []
                source = ".".join([*start, node.module] if node.module else start)
                paths += [f"{source}.{alias.name}" for alias in node.names]
        # `from stepagent.types import Step` gives `types.Step`: cut it back to the module.
        inner = [p.removeprefix("stepagent.") for p in paths if p.startswith("stepagent.")]
        found[name] = {p if p in files else p.rpartition(".")[0] or p for p in inner} - {name}
    return found


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


def test_every_source_file_is_short_documented_and_clearly_named() -> None:
    assert shape_faults(sources()) == []


def test_no_source_file_hides_errors() -> None:
    assert swallowed_errors(sources()) == []


def test_imports_only_go_down_the_list() -> None:
    assert import_faults(sources()) == []


def loads_torch(module: str) -> bool:
    """Whether importing a module, by itself, brings torch in."""
    code = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip() == "True"


@pytest.mark.skipif("report.page" not in sources(), reason="there is no report yet")
def test_the_report_does_not_load_torch() -> None:
    assert not loads_torch("stepagent.report.page")


def test_the_rule_on_torch_can_fail() -> None:
    assert loads_torch("torch.nn")


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
