"""A user's own environment as a task: how it is named, its options, and what can be wrong."""

import math
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro

from corridor import CorridorEnv, corridor_task, explorer, running
from stepagent.bounds import OutOfBounds
from stepagent.tasks.adapters.agentgym import AgentGymTask
from stepagent.tasks.adapters.gymnasium import GymTask
from stepagent.tasks.adapters.openenv import OpenEnvTask
from stepagent.tasks.adapters.python_names import CannotLoad
from stepagent.tasks.adapters.remote import ServerError
from stepagent.tasks.adapters.scoring import Scoring
from stepagent.tasks.base import EnvironmentFailed, EnvironmentLost, ExpertFailed, Task
from stepagent.tasks.demonstrations import demonstrate
from stepagent.tasks.environment_check import check_environment
from stepagent.tasks.own import EnvConfig, item_of, open_environment
from stepagent.tasks.serving.server import serving
from stepagent.types import Step, Trajectory

GAME = '''
"""A game that is won by saying the number."""
import gymnasium as gym


class Guess(gym.Env):
    instruction = "Say the number."

    def __init__(self, top=3):
        self.top = top

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.number = seed % self.top
        return f"A number below {self.top}.", {}

    def step(self, action):
        won = action == str(self.number)
        return "Yes." if won else "No.", float(won), won, False, {}


class Sized(Guess):
    def __init__(self, top, *, name):
        super().__init__(top)


def easy():
    return Guess(1)


def solver(item):
    numbers = iter("012")
    return lambda observation: next(numbers)


def task():
    from stepagent.tasks.adapters.gymnasium import GymTask

    return GymTask("guess", Guess, expert=solver)


one = Guess()
ready = task()
number = 3


def nothing():
    return None


def broken():
    return {}["key"]


class HalfEnv:
    def step(self, action):
        return None


class HalfTask:
    name = "half"

    def items(self, split):
        return []

    def make_env(self):
        return Guess()
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with a file of environments; what is imported of it is forgotten."""
    (tmp_path / "own_game.py").write_text(GAME)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    "place", ["own_game:Guess", "own_game.py:Guess", "./own_game.py:Guess", "own_game:easy"]
)
def test_a_class_or_a_function_is_a_task_whose_items_are_seeds(folder: Path, place: str) -> None:
    task = EnvConfig(env=place, step_limit=4).make_task()
    assert isinstance(task, GymTask)
    assert list(task.items("train"))[:2] == ["seed/0", "seed/1"]
    env = task.make_env()
    assert env.reset(options={"item": "seed/0"})[1]["instruction"] == "Say the number."
    assert env.step("7")[0] == "No."
    _, _, terminated, _, info = env.step("0")
    assert (terminated, info["score"], info["success"]) == (True, 100, True)
    with pytest.raises(ExpertFailed, match="was given no expert"):
        task.expert("seed/0")


def test_an_episode_that_does_not_end_is_cut_off_at_the_step_limit(folder: Path) -> None:
    env = open_environment(EnvConfig(env="own_game:Guess", step_limit=3)).make_env()
    env.reset(options={"item": "seed/0"})
    assert [env.step("no")[2:4] for _ in range(3)] == [(False, False)] * 2 + [(False, True)]


@pytest.mark.parametrize("place", ["own_game:task", "own_game:ready"])
def test_a_task_keeps_its_expert(folder: Path, place: str) -> None:
    task = open_environment(EnvConfig(env=place))
    found = task.expert("seed/2")
    assert ([step.action for step in found.steps], found.score) == (["0", "1", "2"], 100)
    assert item_of(task, found) == "seed/2"


def test_the_options_say_what_the_environment_does_not(folder: Path) -> None:
    config = EnvConfig(
        env="own_game:Guess", instruction="Guess.", score="info", score_key="points", worst=-1,
        best=3, success_key="won", train_items="7", dev_items="8-9", test_items="10-12",
    )  # fmt: skip
    task = open_environment(config)
    assert isinstance(task, GymTask)
    assert task.scoring == Scoring(of="info", key="points", worst=-1, best=3, success="won")
    assert [len(task.items(split)) for split in ("train", "dev", "test")] == [1, 2, 3]
    assert task.make_env().reset(options={"item": "seed/7"})[1]["instruction"] == "Guess."


def test_the_imports_of_a_file_are_found_in_its_folder(folder: Path) -> None:
    games = folder / "games"
    games.mkdir()
    (games / "own_rules.py").write_text("TOP = 3\n")
    (games / "other_game.py").write_text(
        "import own_rules\nimport own_game\n\n\nclass G(own_game.Guess):\n    pass\n"
    )
    assert open_environment(EnvConfig(env="games/other_game.py:G")).name == "G"


def test_a_file_called_like_a_module_in_use_does_not_take_its_place(folder: Path) -> None:
    import random

    (folder / "random.py").write_text(GAME)
    assert open_environment(EnvConfig(env="random.py:Guess")).name == "Guess"
    assert sys.modules["random"] is random


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("own_gane:Guess", "own_gane: no such module in this folder or among the installed "
         "packages; did you mean own_game?"),
        ("games/none.py:Guess", "games/none.py: no such Python file"),
        ("own_gane.py:Guess", "own_gane.py: no such Python file; did you mean own_game.py?"),
        ("own_game:Gues", "own_game has no Gues; did you mean Guess?"),
        ("own_game:zzz", "own_game has no zzz; it has: Guess, Sized, easy, solver, task, one, "
         "ready, number, nothing, broken"),
        ("own_game", "own_game: expected MODULE:NAME, FILE.py:NAME, openenv:URL or "
         "agentgym:NAME@URL"),
        ("own_game:", "own_game:: expected MODULE:NAME or FILE.py:NAME"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000: an address does not say what "
         "server it is; expected MODULE:NAME, FILE.py:NAME, openenv:URL or agentgym:NAME@URL"),
        ("own_game:Sized", "own_game:Sized needs arguments (top, name); name a function without "
         "any that gives them: def make(): return Sized(top=...)"),
        ("own_game:solver", "own_game:solver needs arguments (item); name a function without any "
         "that gives them: def make(): return solver(item=...)"),
        ("own_game:one", "own_game:one is one environment, but several are played at the same "
         "time; name its class, or a function that returns a new one"),
        ("own_game:number", "own_game:number is an object of type int, not an environment; "
         "expected a gymnasium.Env class, a function that returns an environment, or a Task"),
        ("own_game:nothing", "own_game:nothing returned None, not an environment; expected a "
         "gymnasium.Env class, a function that returns an environment, or a Task"),
        ("own_game:broken", "own_game:broken() raised KeyError: 'key' (own_game.py:52)"),
        ("own_game:HalfEnv", "own_game:HalfEnv is a class without reset, not an environment; "
         "expected a gymnasium.Env class, a function that returns an environment, or a Task"),
        ("own_game:HalfTask", "HalfTask is not a complete Task: it lacks group, expert, metrics, "
         "facts, close"),
        ("agentgym:webshop", "agentgym:webshop: expected agentgym:NAME@URL"),
    ],
)  # fmt: skip
def test_what_cannot_be_opened_is_one_line(folder: Path, place: str, said: str) -> None:
    with pytest.raises((CannotLoad, EnvironmentFailed)) as refused:
        open_environment(EnvConfig(env=place))
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import gymnasium\nimport numpi\n", "importing it raised ModuleNotFoundError: No module "
         "named 'numpi' (bad_game.py:2)"),
        ("x = 1\n1 / 0\n", "importing it raised ZeroDivisionError: division by zero "
         "(bad_game.py:2)"),
        ("def f(:\n", "importing it raised SyntaxError: invalid syntax "
         "(bad_game.py:1)"),
        ("raise SystemExit('bye\\x1b[2J')\n", "importing it raised SystemExit: bye\\x1b[2J "
         "(bad_game.py:1)"),
        ("def f():\n    return int('x')\n\n\nf()\n", "importing it raised ValueError: invalid "
         "literal for int() with base 10: 'x' (bad_game.py:2)"),
    ],
)  # fmt: skip
def test_a_module_that_raises_is_one_line_with_the_place(
    folder: Path, text: str, said: str
) -> None:
    (folder / "bad_game.py").write_text(text)
    for place, start in (("bad_game:Env", "bad_game: "), ("bad_game.py:Env", "bad_game.py: ")):
        with pytest.raises(CannotLoad) as refused:
            open_environment(EnvConfig(env=place))
        assert str(refused.value).startswith(start + said)
        assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"env": "own_game:task", "step_limit": 9}, "--step-limit has no effect: own_game:task is "
         "a Task, which decides that itself"),
        ({"env": "openenv:http://127.0.0.1:9", "best": 3.0}, "--best has no effect: without "
         "--score an OpenEnv server decides that itself"),
        ({"env": "agentgym:maze@http://127.0.0.1:9", "score": "sum"}, "--score has no effect: an "
         "AgentGym server decides that itself"),
        ({"env": "agentgym:maze@http://127.0.0.1:9", "dev_items": "5000"}, "agentgym:maze@"
         "http://127.0.0.1:9: the server does not list its items; give their numbers with "
         "--train-items, --test-items"),
        ({}, "no environment is named; expected MODULE:NAME, FILE.py:NAME, openenv:URL or "
         "agentgym:NAME@URL"),
    ],
)  # fmt: skip
def test_options_that_do_not_apply_are_refused(
    folder: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(CannotLoad) as refused:
        open_environment(EnvConfig(**options))
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"step_limit": 0}, "^step_limit must be at least 1, not 0$"),
        ({"best": 0.0}, "^best must be finite and above worst, 0, not 0$"),
        ({"worst": -math.inf}, "^worst must be finite, not -inf$"),
        ({"best": math.inf}, "^best must be finite and above worst, 0, not inf$"),
        ({"train_items": "9-3"}, "^train_items must be FIRST-LAST such as 0-999, at most 100,000 "),
        ({"train_items": "many"}, "^train_items must be FIRST-LAST .*, not 'many'$"),
        ({"dev_items": "5-2000"}, "^dev_items must have no number in common with train_items, not"),
        ({"test_items": "0-100000"}, "^test_items must be FIRST-LAST"),
    ],
)
def test_options_that_cannot_be_are_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OutOfBounds, match=said):
        EnvConfig(**options)


def test_the_fields_are_options_of_a_command() -> None:
    found = tyro.cli(
        EnvConfig,
        args=[
            "--env",
            "g:E",
            "--step-limit",
            "9",
            "--score",
            "last",
            "--best",
            "2",
            "--dev-items",
            "5-6",
            "--train-items",
            "1",
        ],
    )
    assert found == EnvConfig(
        env="g:E", step_limit=9, score="last", best=2.0, dev_items="5-6", train_items="1"
    )


def test_an_openenv_server_is_opened_by_its_address() -> None:
    with serving(corridor_task()) as url:
        task = open_environment(EnvConfig(env=f"openenv:{url}", step_limit=2))
        assert isinstance(task, OpenEnvTask)
        assert list(task.items("dev")) == ["dev/0", "dev/1", "dev/2"]
        assert check_environment(task) == ()
        task.close()


def test_an_openenv_server_that_lists_no_items_can_be_given_seeds() -> None:
    config = EnvConfig(env="openenv:http://127.0.0.1:9", score="sum", best=3, train_items="0-4")
    task = open_environment(config)
    assert isinstance(task, OpenEnvTask)
    assert task.arguments("seed/4") == {"seed": 4}
    assert task.scoring == Scoring(of="sum", best=3)
    with pytest.raises(EnvironmentLost, match=r"cannot be reached .*; is the server running\?$"):
        check_environment(task)


def test_an_agentgym_server_is_opened_by_name_and_address() -> None:
    from agentgym_server import PLAIN

    with running(PLAIN["maze"]()) as url:
        config = EnvConfig(
            env=f"agentgym:maze@{url}", train_items="0-3", dev_items="4", test_items="5-6"
        )
        task = open_environment(config)
        assert isinstance(task, AgentGymTask)
        assert list(task.items("test")) == ["maze_5", "maze_6"]
        assert check_environment(task) == ()
        task.close()
    with pytest.raises(ServerError, match=r"^AgentGym has no environment 'chess'; it has: "):
        open_environment(
            EnvConfig(env="agentgym:chess@http://a", train_items="1", dev_items="2", test_items="3")
        )


def demonstration(id: str = "a", **fields: Any) -> Trajectory:
    return Trajectory.model_validate(
        {"id": id, "task": "t", "instruction": "i", "steps": (Step(observation="o", action="a"),)}
        | fields
    )


@pytest.mark.parametrize(
    ("found", "item"),
    [
        (demonstration("seed/17"), "seed/17"),
        (demonstration("seed/17", metadata={"seed": 18}), "seed/17"),
        (demonstration(metadata={"seed": 17}), "seed/17"),
        (demonstration(metadata={"seed": 2_000_003}), "seed/2000003"),
        (demonstration(metadata={"seed": 5000}), None),
        (demonstration(metadata={"seed": True}), None),
        (demonstration(metadata={"seed": "17"}), None),
        (demonstration(), None),
    ],
)
def test_a_demonstration_belongs_to_an_item_by_its_id_or_its_seed(
    found: Trajectory, item: str | None
) -> None:
    assert item_of(GymTask("corridor", CorridorEnv), found) == item


def test_a_seed_says_nothing_to_a_task_with_other_items() -> None:
    assert item_of(corridor_task(), demonstration(metadata={"seed": 1})) is None
    assert item_of(corridor_task(), demonstration("train/1")) == "train/1"


# The check before training.


class Talking:
    """An environment that says what it is told to."""

    instruction = "Go."
    seen = "A room."

    def reset(self, *, seed: int | None = None) -> Any:
        return self.seen, {}

    def step(self, action: str) -> Any:
        return "On.", 0.0, False, False, {}


def check(kind: Callable[[], Any], *demonstrations: Trajectory) -> tuple[str, ...]:
    return check_environment(GymTask("talk", kind), demonstrations)


def test_an_environment_without_faults_passes_the_check() -> None:
    assert check(Talking) == ()
    assert check_environment(corridor_task(), [corridor_task().expert("dev/1")]) == ()


def test_an_environment_that_raises_for_odd_actions_is_found_before_training() -> None:
    class Picky(Talking):
        def step(self, action: str) -> Any:
            return "On.", 0.0, action.split()[0] == "go", False, {}

    with pytest.raises(EnvironmentFailed, match=r"^seed/0: step\(''\) raised IndexError: list ind"):
        check(Picky)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"seen": 3}, "^seed/0: the observation is not text but int; wrap the environment so that"),
        ({"instruction": None}, "^seed/0: the environment has no instruction: return it from rese"),
        ({"instruction": 3}, "^seed/0: the instruction is not text but int$"),
        (
            {"step": lambda self, action: ("On.", 2.0, True, False, {})},
            "^seed/0: the sum of rewards is 2, above the best value, 1; set best to the highest",
        ),
        (
            {"step": lambda self, action: ("On.", 0.0, True, False, {"success": "yes"})},
            "^seed/0: 'success' in the info is neither true nor false: 'yes'; return a bool, or",
        ),
        ({"__init__": lambda self: 1 / 0}, "^seed/0: the environment cannot be made: ZeroDivision"),
        ({"__init__": lambda self: sys.exit(1)}, "^seed/0: the environment cannot be made: System"),
        ({"step": lambda self, action: sys.exit("bye")}, r"^seed/0: step\('look'\) raised SystemE"),
        (
            {"step": lambda self, action: next(iter(()))},
            r"^seed/0: step\('look'\) raised StopItera",
        ),
    ],
)
def test_the_first_fault_is_one_line(fault: dict[str, Any], said: str) -> None:
    with pytest.raises(EnvironmentFailed, match=said) as failed:
        check(type("Faulty", (Talking,), fault))
    assert str(failed.value).isprintable()


def test_an_environment_that_hangs_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from stepagent.tasks.adapters import patience

    monkeypatch.setattr(patience, "PATIENCE", 0.01)
    is_told = threading.Event()
    caplog.handler.addFilter(lambda record: is_told.set() or True)

    class Sleeping(Talking):
        def close(self) -> None:
            assert is_told.wait(60)

    with caplog.at_level("WARNING"):
        check(Sleeping)
    assert caplog.messages[0].startswith("talk: close() has not returned for 0.01 s, and ")


def test_a_reset_that_does_not_obey_the_seed_is_a_warning() -> None:
    class Random(Talking):
        count = 0

        def reset(self, *, seed: int | None = None) -> Any:
            self.count += 1
            return f"Room {self.count}.", {}

    assert check(Random) == (
        "seed/0: the first observation is 'Room 2.' after another reset, not 'Room 1.'; detours "
        "and comparisons of policies need the same episode for the same seed",
    )


def test_a_replay_that_is_not_solved_questions_the_scoring() -> None:
    class Points(Talking):
        def step(self, action: str) -> Any:
            return "On.", float(action == "go"), action == "go", False, {}

    steps = (Step(observation="A room.", action="go"),)
    solved = demonstration("seed/0", instruction="Go.", steps=steps, success=True)
    assert check(Points, solved) == ()
    task = GymTask("talk", Points, scoring=Scoring(of="sum", best=9))
    (said,) = check_environment(task, [solved])
    assert said.startswith("seed/0: its replay ends with score 11.1111 of 100, not solved; is ")
    assert check_environment(task, [solved.model_copy(update={"success": False})]) == ()


OFF = Step(observation="Off.", action="a")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"instruction": "Leave."}, "seed/0: the environment's instruction is 'Go.', the "
         "demonstration's 'Leave.'; the agent learns with one and plays with the other"),
        ({"steps": (Step(observation="A room.", action="go"), OFF)},
         "seed/0: at step 2 the environment shows 'On.', the demonstration 'Off.'; detours need an "
         "environment that repeats its demonstrations"),
    ],
)  # fmt: skip
def test_a_demonstration_that_the_environment_does_not_repeat_is_a_warning(
    fields: dict[str, Any], said: str
) -> None:
    steps = (Step(observation="A room.", action="go"),)
    good = demonstration("seed/0", instruction="Go.", steps=steps, success=False)
    assert check(Talking, demonstration("elsewhere"), good) == ()
    assert check(Talking, good.model_copy(update=fields)) == (said,)


def test_a_task_without_training_items_is_refused() -> None:
    task = GymTask("talk", Talking, {"test": {"a": {}}})
    with pytest.raises(EnvironmentFailed, match=r"^talk has no training items$"):
        check_environment(task)


# Tasks that a user wrote without our adapters.


class OwnTask:
    """A complete task of a user's, whose parts a test may replace."""

    name = "own"

    def items(self, split: str) -> list[Any]:
        return ["a"] if split == "train" else []

    def group(self, item: str) -> str:
        return "all"

    def make_env(self) -> Any:
        return OwnEnv()

    def expert(self, item: str) -> Trajectory:
        raise ExpertFailed("nobody knows")

    def metrics(self, episodes: Any) -> dict[str, float]:
        return {}

    def facts(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


class OwnEnv:
    first: Any = ("A room.", {"instruction": "Go."})
    then: Any = ("On.", 0.0, False, False, {"score": 5, "success": False})

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.first

    def step(self, action: str) -> Any:
        return self.then

    def close(self) -> None:
        pass


def test_a_complete_task_of_a_users_passes_the_check() -> None:
    assert check_environment(own_task()) == ()


def own_task(env: dict[str, Any] | None = None, **parts: Any) -> Task:
    made = type("Env", (OwnEnv,), env or {})
    return type("Own", (OwnTask,), {"make_env": lambda self: made(), **parts})()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"first": "A room."}, "a: reset has to return an observation and an info"),
        ({"first": (3, {"instruction": "Go."})}, "a: the observation is not text but int"),
        ({"first": ("A room.", {})}, "a: the info of reset has no 'instruction'"),
        ({"first": ("A room.", None)}, "a: the info is not a dict but NoneType"),
        ({"then": ("On.", 0, True)}, "a: step has to return observation, reward, terminated, "),
        ({"then": ("On.", 0, True, False, {"success": True})}, "a: the info of step has no 'scor"),
        (
            {"then": ("On.", 0, True, False, {"success": True, "score": 101})},
            "a: the score is 101; expected 0 to 100",
        ),
        (
            {"then": ("On.", 0, True, False, {"success": "no", "score": 1})},
            "a: 'success' in the info is neither true nor false: 'no'",
        ),
        ({"step": lambda self, action: {}[action]}, "a: step('look') raised KeyError: 'look' ("),
        ({"step": lambda self, action: sys.exit(1)}, "a: step('look') raised SystemExit: 1 ("),
        ({"step": lambda self, action: next(iter(()))}, "a: step('look') raised StopIteration ("),
        ({"reset": lambda self, **_: 1 / 0}, "a: reset(options={'item': 'a'}) raised ZeroDivi"),
    ],
)
def test_a_fault_of_a_users_task_is_one_line(env: dict[str, Any], said: str) -> None:
    with pytest.raises(EnvironmentFailed) as failed:
        check_environment(own_task(env))
    assert str(failed.value).startswith(said)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"items": lambda self, split: [split, 3]}, "^Own: item 3 of train is not text$"),
        ({"items": lambda self, split: ["a"]}, "^Own: item 'a' is in train and dev$"),
        ({"items": lambda self, split: ["a", "a"]}, "^Own: item 'a' is in train twice$"),
        ({"items": lambda self, split: 1 / 0}, r"^items\('train'\) raised ZeroDivisionError: div"),
        ({"name": None}, "^Own is not a complete Task: it needs a text `name`$"),
        ({"facts": None}, "^Own is not a complete Task: it lacks facts$"),
    ],
)
def test_a_task_that_is_not_complete_is_one_line(parts: dict[str, Any], said: str) -> None:
    with pytest.raises(EnvironmentFailed, match=said):
        check_environment(own_task(**parts))


def test_the_expert_of_a_users_task_is_checked(folder: Path) -> None:
    sys.modules["own_task_of_a_test"] = type(sys)("own_task_of_a_test")
    sys.modules["own_task_of_a_test"].task = own_task  # type: ignore[attr-defined]

    def opened(**parts: Any) -> Task:
        sys.modules["own_task_of_a_test"].made = own_task(**parts)  # type: ignore[attr-defined]
        return open_environment(EnvConfig(env="own_task_of_a_test:made"))

    with pytest.raises(ExpertFailed, match="nobody knows"):
        opened().expert("a")
    with pytest.raises(EnvironmentFailed, match=r"^expert\('a'\) raised KeyError: 'a' \("):
        opened(expert=lambda self, item: {}[item]).expert("a")
    with pytest.raises(EnvironmentFailed, match=r"^a: expert returned list; expected a Trajectory"):
        opened(expert=lambda self, item: []).expert("a")


def test_a_users_environment_that_never_ends_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from stepagent.tasks.adapters import guarded

    monkeypatch.setattr(guarded, "LONGEST", 3)
    env = guarded.guarded(own_task()).make_env()
    env.reset(options={"item": "a"})
    assert [env.step("x")[3] for _ in range(3)] == [False, False, True]


def test_the_demonstrations_of_other_items_come_before_the_error_of_one() -> None:
    def expert(item: str) -> Any:
        if item == "train/1":
            raise LookupError("no plan")
        return explorer(item)

    task = corridor_task()
    task._expert = expert
    found = list[str]()
    with pytest.raises(
        EnvironmentFailed, match=r"^train/1: the expert raised LookupError: no plan"
    ):
        for outcome in demonstrate(task, task.items("train")[:4], num_parallel=2):
            assert isinstance(outcome, Trajectory)
            found.append(outcome.id)
    assert sorted(found) == ["train/0", "train/2", "train/3"]


def test_an_expert_is_what_a_gym_task_is_given() -> None:
    task = GymTask("corridor", CorridorEnv, scoring=Scoring(of="last"), instruction="Take it.",
                   expert=explorer)  # fmt: skip
    assert task.expert("seed/3").success
