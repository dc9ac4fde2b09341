import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import pytest

from alfworld_rooms import KINDS, game, write, write_all
from stepagent.tasks.alfworld import task as alfworld
from stepagent.tasks.alfworld.expert import Goal
from stepagent.tasks.alfworld.games import (
    INDEX,
    TASK_TYPES,
    Generation,
    prepare,
    read_index,
)
from stepagent.tasks.alfworld.task import (
    Alfworld,
    AlfworldConfig,
    first_texts,
    goal_of,
    is_dev,
    shown,
)
from stepagent.tasks.base import EngineLimits, EnvironmentLost, ExpertFailed, TaskDataError
from stepagent.types import Step, Trajectory

DATA = Path(os.environ.get("STEPAGENT_DATA") or Path(__file__).parents[2] / "shared" / "data")
GENERATIONS = get_args(Generation)
HEAT = f"{KINDS['heat']}/trial_test"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared games of both generations."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    for generation in GENERATIONS:
        write_all(source / generation, generation)
    prepare(source, out, skip_invalid=False)
    return out


@pytest.fixture(scope="module", params=GENERATIONS)
def task(folder: Path, request: pytest.FixtureRequest) -> Iterator[Alfworld]:
    task = Alfworld(AlfworldConfig(grammar=request.param, workers=1), folder=folder)
    yield task
    task.close()


def prepared(tmp_path: Path, data: dict[str, Any] | bytes, item: str = HEAT) -> Path:
    """The folder of a single game."""
    write(tmp_path / "source", "valid_seen", item, data)
    out = tmp_path / "out"
    out.mkdir()
    prepare(tmp_path / "source", out, skip_invalid=False)
    return out


# Texts and goals


def test_the_banner_and_the_task_are_not_part_of_the_first_observation() -> None:
    text = "-= Welcome =-\n\nYou are in a room.\n\nYour task is to: heat some egg."
    assert first_texts(text) == ("Your task is to: heat some egg.", "You are in a room.")


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (
            "You arrive at loc 12. On the shelf 1, you see a cd 2.",
            "On the shelf 1, you see a cd 2.",
        ),
        ("You arrive at shelf 1. On the shelf 1, you see nothing.", None),
        ("Nothing happens.", None),
        ("", "(nothing)"),
    ],
)
def test_the_name_of_a_location_is_not_shown(text: str, seen: str | None) -> None:
    assert shown(text) == (text if seen is None else seen)


def test_only_items_have_a_group() -> None:
    with pytest.raises(ValueError, match="unknown item 'boil/3'"):
        Alfworld(AlfworldConfig()).group("boil/3")


def test_the_goal_is_in_the_name() -> None:
    item = "pick_cool_then_place_in_recep-Lettuce-None-CounterTop-1/trial_T1"
    assert goal_of(item) == Goal(kind="cool", thing="lettuce", place="countertop")


def test_about_a_twentieth_of_training_is_dev() -> None:
    share = sum(is_dev(f"task/trial_{number}") for number in range(10_000)) / 10_000
    assert 0.04 < share < 0.06


def test_success_is_counted_for_each_type() -> None:
    outcomes = [("heat", True), ("heat", False), ("cool", True), ("heat", False)]
    episodes = [
        Trajectory(
            id=str(number), task="alfworld", instruction="x",
            steps=(Step(observation="o", action="a"),),
            metadata={"details": {"won": won, "task_type": kind}},
        )
        for number, (kind, won) in enumerate(outcomes)
    ]  # fmt: skip
    assert Alfworld(AlfworldConfig()).metrics(episodes) == {
        "success_rate": 50.0,
        "success_rate_heat": pytest.approx(100 / 3),
        "success_rate_cool": 100.0,
    }
    assert Alfworld(AlfworldConfig()).metrics([]) == {}


@pytest.mark.parametrize("option", ["step_limit", "workers"])
def test_invalid_settings_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=option):
        AlfworldConfig(**{option: 0})


def test_a_walkthrough_of_games_that_have_none_is_refused() -> None:
    with pytest.raises(ValueError, match="own_expert='walkthrough' needs grammar='move'"):
        AlfworldConfig(own_expert="walkthrough", grammar="put")


# Games as files


def test_folders_zips_and_tars_give_the_same_games(tmp_path: Path) -> None:
    write_all(tmp_path / "plain")
    files = sorted((tmp_path / "plain").rglob("game.tw-pddl"))
    (tmp_path / "zip").mkdir()
    with zipfile.ZipFile(tmp_path / "zip" / "games.zip", "w") as archive:
        for file in files:
            archive.write(file, file.relative_to(tmp_path / "plain"))
    (tmp_path / "tar").mkdir()
    with tarfile.open(tmp_path / "tar" / "games.tar.xz", "w:xz") as tar:
        tar.add(tmp_path / "plain" / "json_2.1.1", "json_2.1.1")
    indexes = []
    for form in ("plain", "zip", "tar"):
        out = tmp_path / f"out-{form}"
        out.mkdir()
        result = prepare(tmp_path / form, out, skip_invalid=False)
        assert result.counts == {"train (move)": 10, "valid_seen (move)": 6}
        assert result.skipped == {}
        indexes.append(read_index(out / INDEX))
        written = out / "move" / "json_2.1.1" / "valid_seen" / HEAT / "game.tw-pddl"
        assert json.loads(written.read_bytes()) == game("heat")
    assert indexes[0] == indexes[1] == indexes[2]


def test_generations_are_kept_apart(folder: Path) -> None:
    index = read_index(folder / INDEX)
    assert set(index) == {"move", "put"}
    assert index["move"]["valid_seen"].keys() == index["put"]["valid_seen"].keys()
    assert index["move"] != index["put"]


def test_games_that_alfworld_leaves_out_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "in", "train", f"{KINDS['pick']}/a", game("pick"))
    write(tmp_path / "in", "train", f"{KINDS['pick']}/b", game("pick", solvable=False))
    movable = "pick_and_place_with_movable_recep-Apple-Bowl-Shelf-1/c"
    write(tmp_path / "in", "train", movable, b"not even JSON")
    sliced = "pick_and_place_simple-AppleSliced-None-Shelf-1/e"
    write(tmp_path / "in", "train", sliced, game(solvable=None))
    unchecked = game("pick", grammar="of neither generation")
    del unchecked["solvable"]
    write(tmp_path / "in", "train", f"{KINDS['pick']}/f", unchecked)
    write(tmp_path / "in", "valid_train", f"{KINDS['pick']}/d", game("pick"))
    (tmp_path / "out").mkdir()
    result = prepare(tmp_path / "in", tmp_path / "out", skip_invalid=False)
    assert result.counts == {"train (move)": 1}
    assert result.skipped == {
        "unsolvable": 1,
        "other kind of task": 2,
        "not known to be solvable": 1,
    }


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (json.dumps(game()).encode()[:900], "invalid JSON \\(incomplete file\\?\\):"),
        (b"\xff\xfe", "invalid JSON"),
        (b"[]", "expected an object, got list"),
        (game(pddl_problem=3), "expected text under 'pddl_problem'"),
        (
            game(pddl_problem=game()["pddl_problem"].rstrip()[:-1]),
            "expected a complete PDDL definition",
        ),
        (game(grammar="grammar"), "expected a grammar with either"),
        (game(solvable="yes"), "'solvable'"),
        (game(walkthrough=[1]), "'walkthrough'"),
    ],
)
def test_damaged_games_are_named_or_skipped(
    tmp_path: Path, data: dict[str, Any] | bytes, fault: str
) -> None:
    file = write(tmp_path / "in", "train", f"{KINDS['heat']}/bad", data)
    write(tmp_path / "in", "train", f"{KINDS['heat']}/good", game())
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    with pytest.raises(TaskDataError, match=fault) as caught:
        prepare(tmp_path / "in", tmp_path / "first", skip_invalid=False)
    assert str(file) in str(caught.value)
    result = prepare(tmp_path / "in", tmp_path / "second", skip_invalid=True)
    assert result.counts == {"train (move)": 1}
    assert result.skipped == {"invalid": 1}


def test_two_releases_at_once_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", "train", HEAT, game(cabinets=2))
    write(tmp_path / "b", "train", HEAT, game(cabinets=3))
    (tmp_path / "out").mkdir()
    with pytest.raises(TaskDataError, match="differs from another file of the same name"):
        prepare(tmp_path, tmp_path / "out", skip_invalid=True)


def test_names_in_archives_cannot_leave_the_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "games.zip", "w") as archive:
        for name in ("train/../../x/game.tw-pddl", "train/x/../game.tw-pddl", "/train//x"):
            archive.writestr(name, json.dumps(game()))
        archive.writestr(f"../../json_2.1.1/train/{HEAT}/game.tw-pddl", json.dumps(game()))
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    prepare(tmp_path / "games.zip", out, skip_invalid=False)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    game_file = out / "move" / "json_2.1.1" / "train" / HEAT / "game.tw-pddl"
    assert set(files) == {tmp_path / "games.zip", out / INDEX, game_file}


def test_a_truncated_archive_and_an_empty_folder_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(TaskDataError, match="no games of ALFWorld; expected json"):
        prepare(tmp_path, tmp_path, skip_invalid=True)
    write(tmp_path / "in", "train", HEAT, game())
    with tarfile.open(tmp_path / "games.tar.xz", "w:xz") as tar:
        tar.add(tmp_path / "in", "in")
    whole = (tmp_path / "games.tar.xz").read_bytes()
    (tmp_path / "games.tar.xz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        TaskDataError, match=r"games\.tar\.xz: cannot be read \(incomplete file\?\):"
    ):
        prepare(tmp_path / "games.tar.xz", tmp_path, skip_invalid=True)


def test_an_index_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    record = {"generation": "move", "split": "train", "sha256": "0"}
    for item in ("../../etc/passwd", "a/../b", "../x/train/a/b", "a", "a/b/c"):
        (tmp_path / "games.jsonl").write_text(json.dumps(record | {"item": item}))
        with pytest.raises(TaskDataError, match=r"games\.jsonl:1: not a game"):
            read_index(tmp_path / "games.jsonl")


def test_facts_distinguish_the_games_of_each_split(tmp_path: Path) -> None:
    def facts(name: str, test: Literal["valid_seen", "valid_unseen"] = "valid_seen") -> Any:
        (tmp_path / f"out {name}").mkdir()
        prepare(tmp_path / "in", tmp_path / f"out {name}", skip_invalid=False)
        config = AlfworldConfig(test=test)
        found = Alfworld(config, folder=tmp_path / f"out {name}").facts()
        return found["games"], found["games_sha256"]

    write(tmp_path / "in", "valid_seen", HEAT, game())
    counts, test_only = facts("test")
    assert counts == {"test": 1}
    assert test_only.keys() == {"test"}
    write(tmp_path / "in", "train", HEAT, game(cabinets=3))
    counts, both = facts("both")
    assert counts == {"train+dev": 1, "test": 1}
    assert both["test"] == test_only["test"] != both["train+dev"]
    write(tmp_path / "in", "valid_unseen", HEAT, game(cabinets=4))
    assert facts("unused") == (counts, both)
    assert facts("other", "valid_unseen")[1]["test"] != both["test"]
    write(tmp_path / "in", "valid_seen", HEAT, game(cabinets=5))
    changed = facts("changed")[1]
    assert changed["test"] != both["test"]
    assert changed["train+dev"] == both["train+dev"]


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskDataError, match=INDEX):
        Alfworld(AlfworldConfig(), folder=tmp_path).items("train")
    out = prepared(tmp_path, game())
    with pytest.raises(TaskDataError, match="no games of the 'put' generation, only 'move'"):
        Alfworld(AlfworldConfig(grammar="put"), folder=out).items("test")
    with pytest.raises(TaskDataError, match=r"no train games .* installed splits: valid_seen"):
        Alfworld(AlfworldConfig(), folder=out).items("train")


# Games as they are played


@pytest.mark.parametrize("kind", KINDS)
def test_the_expert_does_every_kind_of_chore(task: Alfworld, kind: str) -> None:
    item = f"{KINDS[kind]}/trial_test"
    demonstration = task.expert(item)
    assert demonstration.success
    assert demonstration.metadata["expert"] == "handcoded"
    assert task.group(item) == kind
    verb = "put apple 1 in/on" if task.config.grammar == "put" else "move apple 1 to"
    assert (f"{verb} shelf 1" in [s.action for s in demonstration.steps]) == (kind != "examine")


def test_details_say_what_was_played(task: Alfworld) -> None:
    env = task.make_env()
    _, info = env.reset(options={"item": HEAT})
    assert info["instruction"] == "Your task is to: heat some apple."
    observation, reward, *_, info = env.step("go to shelf 1")
    place = "You arrive at shelf 1. " if task.config.grammar == "move" else ""
    assert (observation, reward) == (f"{place}On the shelf 1, you see nothing.", 0)
    assert info["details"] == {
        "won": False,
        "task_type": "heat",
        "split": "valid_seen",
        "grammar": task.config.grammar,
    }
    assert env.step("put shelf 1 in/on shelf 1")[0] == "Nothing happens."
    env.close()


def test_a_command_too_long_to_be_one_does_nothing(task: Alfworld) -> None:
    env = task.make_env()
    env.reset(options={"item": HEAT})
    assert env.step("look" + " " * 10_000)[0].startswith("You are in the middle of a room.")
    for command in ("look" + " " * 5_000 + "x", "温" * 1_000_000):
        assert env.step(command)[0] == "Nothing happens."
    env.close()


def test_dev_is_the_same_part_of_training_for_all(task: Alfworld) -> None:
    assert task.items("dev") == [f"{KINDS['heat']}/trial_2"]
    assert len(task.items("train")) == 9
    assert len(task.items("test")) == 6


def test_texts_are_those_of_textworld_itself(task: Alfworld) -> None:
    """Random commands, valid and invalid, in two games of each generation."""
    files = [task.file(f"{KINDS[kind]}/trial_test") for kind in ("pick_two", "clean")]
    for file in files:
        plays_as_textworld(task, file, commands=40)


def plays_as_textworld(task: Alfworld, file: Path, commands: int) -> None:
    """Asserts that our process gives the same texts as the unchanged engine in this one."""
    textworld = pytest.importorskip("textworld")
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
    from textworld.envs.pddl import PddlEnv

    original = AlfredDemangler(PddlEnv(textworld.EnvInfos()), shuffle=False)
    original.load(str(file))
    state, choose = original.reset(), random.Random(0)
    game = task.workers.take()
    assert game.begin(file) == state.feedback
    for number in range(commands):
        command = choose.choice([*state["admissible_commands"], "frobnicate"])
        if number % 3 == 0:  # objects would rarely be moved otherwise
            moving = [c for c in state["admissible_commands"] if c.split()[0] in ("take", "open")]
            command = choose.choice(moving or [command])
        state, _, done = original.step(command)
        assert game.step(command) == (state.feedback, done)
        if done:
            break
    game.free()


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("{r.indefinite} ", "{TRAP}"),
        ('"open {r}"', '"open {TRAP}"'),
        ('"open {r}"', '"open [{TRAP | opened(r:receptacle)}]"'),
        ("You open the {r.name}.", "You open the {TRAP}."),
        ("{o.indefinite + ' ' + o.name |", "{TRAP |"),
    ],
    ids=["rule", "template", "list in a template", "feedback", "list in a rule"],
)
def test_an_expression_in_a_game_is_never_run(tmp_path: Path, text: str, instead: str) -> None:
    trap = tmp_path / "trap"
    codes = (
        f"open('{trap}', 'w')",
        "r.__class__",
        "r.name.format",
        "().__class__",
        "r.name * 1000000000",
        "r.name +",
    )
    for number, code in enumerate(codes):
        data = game()
        assert text in data["grammar"]
        data["grammar"] = data["grammar"].replace(text, instead.replace("TRAP", code))
        write(tmp_path / "source", "valid_seen", f"{KINDS['heat']}/trap_{number}", data)
    out = prepared(tmp_path, game())
    task = Alfworld(AlfworldConfig(workers=1), folder=out)
    env = task.make_env()
    for number in range(len(codes)):
        with pytest.raises(TaskDataError, match=r"(forbidden|invalid) expression in the grammar"):
            env.reset(options={"item": f"{KINDS['heat']}/trap_{number}"})
    env.reset(options={"item": HEAT})
    task.close()
    assert not trap.exists()


def test_a_game_that_does_not_load_is_named_and_others_go_on(tmp_path: Path) -> None:
    write(tmp_path / "in", "valid_seen", HEAT, game())
    broken = game(pddl_problem=game()["pddl_problem"].replace("(:goal ", "(:purpose "))
    bad = f"{KINDS['heat']}/bad"
    write(tmp_path / "in", "valid_seen", bad, broken)
    (tmp_path / "out").mkdir()
    prepare(tmp_path / "in", tmp_path / "out", skip_invalid=False)
    task = Alfworld(AlfworldConfig(workers=1), folder=tmp_path / "out")
    env = task.make_env()
    with pytest.raises(TaskDataError, match="game does not load") as caught:
        env.reset(options={"item": bad})
    assert str(task.file(bad)) in str(caught.value)
    worker = env._game and env._game.worker
    env.reset(options={"item": HEAT})
    assert env._game and env._game.worker is worker
    task.close()


@pytest.mark.parametrize(
    ("text", "instead", "fault"),
    [
        ("You are not carrying anything.", "#carried#", "RecursionError"),
        (
            '"condition": ""',
            '"condition": "busy(a:agent)"',
            "no rule of the grammar for #carried# applies",
        ),
    ],
)
def test_a_game_that_fails_at_a_step_is_named_and_others_go_on(
    tmp_path: Path, text: str, instead: str, fault: str
) -> None:
    bad, data = f"{KINDS['heat']}/bad", game()
    data["grammar"] = data["grammar"].replace(text, instead)
    write(tmp_path / "source", "valid_seen", bad, data)
    task = Alfworld(AlfworldConfig(workers=1), folder=prepared(tmp_path, game()))
    env, beside = task.make_env(), task.make_env()
    env.reset(options={"item": bad})
    beside.reset(options={"item": HEAT})
    with pytest.raises(TaskDataError, match=f"the game fails at 'inventory': .*{fault}") as caught:
        env.step("inventory")
    assert str(task.file(bad)) in str(caught.value)
    assert beside.step("inventory")[0] == "You are not carrying anything."
    env.reset(options={"item": HEAT})
    assert env.step("inventory")[0] == "You are not carrying anything."
    task.close()


@pytest.mark.parametrize(
    ("text", "instead", "rule"),
    [
        ("You are not carrying anything.", "#nothing#", "nothing"),
        ("{#thing(r)# |", "{#thing# |", "thing"),
        ("#arrived#", "#left#", "left"),
        ("list_last_separator", "list_end", "list_last_separator"),
    ],
)
def test_a_game_that_refers_to_a_missing_rule_does_not_load(
    tmp_path: Path, text: str, instead: str, rule: str
) -> None:
    data = game()
    assert text in data["grammar"]
    data["grammar"] = data["grammar"].replace(text, instead)
    task = Alfworld(AlfworldConfig(workers=1), folder=prepared(tmp_path, data))
    with pytest.raises(TaskDataError, match=rf"does not load: .* no rule for #{rule}#"):
        task.make_env().reset(options={"item": HEAT})
    task.close()


def test_a_game_that_changed_since_it_was_prepared_is_not_played(tmp_path: Path) -> None:
    task = Alfworld(AlfworldConfig(workers=1), folder=prepared(tmp_path, game()))
    env = task.make_env()
    env.reset(options={"item": HEAT})
    task.file(HEAT).write_text(json.dumps(game(cabinets=1)))
    with pytest.raises(TaskDataError, match="changed after it was installed; install the data"):
        env.reset(options={"item": HEAT})
    task.close()


def test_a_dead_and_a_silent_process_are_lost_and_replaced(folder: Path) -> None:
    for sent, reason in ((signal.SIGKILL, "ended|died"), (signal.SIGSTOP, "gave no answer")):
        task = Alfworld(AlfworldConfig(workers=1), folder=folder)
        env, beside = task.make_env(), task.make_env()
        first = env.reset(options={"item": HEAT})
        assert beside.reset(options={"item": HEAT}) == first
        assert env._game and beside._game and env._game.worker is beside._game.worker
        process = env._game.worker.process
        env._game.worker.limits = EngineLimits(timeout_seconds=0.5)
        os.kill(process.pid, sent)
        with pytest.raises(EnvironmentLost, match=reason):
            env.step("look")
        with pytest.raises(EnvironmentLost):
            beside.step("look")
        assert process.poll() is not None
        assert env.reset(options={"item": HEAT}) == first
        task.close()


def test_a_process_that_computes_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    doubling = {f"d{depth}": [{"rhs": f"#d{depth + 1}##d{depth + 1}#"}] for depth in range(60)}
    rules = json.dumps(doubling | {"d60": [{"rhs": "x"}]})[1:-1]
    data = game()
    data["grammar"] = data["grammar"].replace("You are not carrying anything.", "#d0#")
    data["grammar"] = data["grammar"].replace('"intro":', f'{rules}, "intro":')
    file = write(tmp_path, "valid_seen", HEAT, data)
    code = """
import sys
from pathlib import Path
from stepagent.tasks.alfworld.workers import Workers
from stepagent.tasks.base import EngineLimits
game = Workers(Path(sys.argv[1]), 1, EngineLimits()).take()
game.begin(Path(sys.argv[2]))
print(game.worker.process.pid, flush=True)
game.step("inventory")
"""
    command = [sys.executable, "-c", code, str(tmp_path / "translated"), str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        engine = int(parent.stdout.readline())
        time.sleep(0.2)  # until it computes
        assert runs(engine)
        parent.kill()
    deadline = time.monotonic() + 10
    while runs(engine) and time.monotonic() < deadline:
        time.sleep(0.1)
    try:
        assert not runs(engine)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(engine, signal.SIGKILL)


def runs(process: int) -> bool:
    """Whether a process exists and is not a zombie."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True)
    return done.stdout.strip() != "" and not done.stdout.startswith("Z")


def test_printed_text_and_stray_files_do_not_disturb_the_process(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text("print('hello')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    (tmp_path / "gzip.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    task = Alfworld(AlfworldConfig(workers=1), folder=folder)
    env = task.make_env()
    env.reset(options={"item": HEAT})
    assert env.step("inventory")[0] == "You are not carrying anything."
    task.close()


def test_a_process_that_does_not_start_in_time_is_lost(folder: Path) -> None:
    limits = EngineLimits(timeout_seconds=0.05, start_timeout_seconds=0.05)
    task = Alfworld(AlfworldConfig(workers=1, engine=limits), folder=folder)
    env = task.make_env()
    with pytest.raises(EnvironmentLost, match=r"gave no answer in 0\.1 seconds"):
        env.reset(options={"item": HEAT})
    assert env._game is not None and not env._game.worker.alive
    task.close()


def test_an_invalid_answer_means_that_the_process_is_lost(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Alfworld(AlfworldConfig(workers=1), folder=folder)
    env = task.make_env()
    env.reset(options={"item": HEAT})
    assert env._game
    monkeypatch.setattr(env._game.worker._lines, "next", lambda _: b"Segmentation fault")
    with pytest.raises(EnvironmentLost, match="died"):
        env.step("look")
    assert not env._game.worker.alive
    task.close()


def test_closing_ends_every_process(folder: Path) -> None:
    task = Alfworld(AlfworldConfig(workers=2), folder=folder)
    envs = [task.make_env() for _ in range(3)]
    for env in envs:
        env.reset(options={"item": HEAT})
    processes = {env._game.worker.process for env in envs if env._game}
    assert len(processes) == 2
    task.close()
    assert all(process.poll() is not None for process in processes)


def test_facts_of_past_games_are_forgotten(folder: Path) -> None:
    code = """
import sys
from pathlib import Path
from mementos.core import _memento_cache
from stepagent.tasks.alfworld.engine import Engine
cache, *files = sys.argv[1:]
sys.argv = ["translate.py", "domain", "task"]
engine = Engine(Path(cache))
for file in files:
    assert "text" in engine.answer({"begin": file, "sha256": None, "slot": 0})
    print(len(_memento_cache), file=sys.stderr)
"""
    task = Alfworld(AlfworldConfig(), folder=folder)
    one, other = (str(task.file(f"{KINDS['heat']}/trial_{number}")) for number in (1, 9))
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "translated"), one, other, one],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    first, bigger, again = map(int, done.stderr.split()[-3:])
    assert again <= first < bigger


def test_a_game_continues_while_others_begin(folder: Path) -> None:
    task = Alfworld(AlfworldConfig(workers=1), folder=folder)
    env, beside = task.make_env(), task.make_env()
    observation, info = env.reset(options={"item": HEAT})
    for number, step in enumerate(task.expert(HEAT).steps):
        assert observation == step.observation
        beside.reset(options={"item": f"{KINDS['heat']}/trial_{number}"})
        observation, *_, info = env.step(step.action)
    assert info["success"]
    task.close()


@pytest.mark.parametrize("size", [0, 100])
def test_a_damaged_translation_is_made_again(tmp_path: Path, size: int) -> None:
    out = prepared(tmp_path, game())
    answers, whole = [], b""
    for _ in range(3):
        task = Alfworld(AlfworldConfig(workers=1), folder=out)
        env = task.make_env()
        answers.append((env.reset(options={"item": HEAT}), env.step("look")))
        task.close()
        kept = list((out / "translated").rglob("*.sas.gz"))
        assert len(kept) == 1
        if len(answers) == 1:
            whole = kept[0].read_bytes()
            kept[0].write_bytes(whole[:size])
        assert len(answers) == 1 or kept[0].read_bytes() == whole
    assert answers[0] == answers[1] == answers[2]


def test_the_walkthrough_is_an_expert_where_there_is_one(tmp_path: Path) -> None:
    commands = ["go to diningtable 1", "take apple 1 from diningtable 1"]
    commands += ["go to shelf 1", "move apple 1 to shelf 1"]
    walked = f"{KINDS['pick']}/with"
    write(tmp_path / "source", "valid_seen", walked, game("pick", walkthrough=commands))
    out = prepared(tmp_path, game("pick"), f"{KINDS['pick']}/without")
    task = Alfworld(AlfworldConfig(workers=1, own_expert="walkthrough"), folder=out)
    demonstration = task.expert(walked)
    assert [step.action for step in demonstration.steps] == commands
    assert demonstration.metadata["expert"] == "walkthrough"
    with pytest.raises(ExpertFailed, match="no walkthrough"):
        task.expert(f"{KINDS['pick']}/without")
    task.close()


def test_a_place_that_stays_closed_does_not_hold_the_expert(tmp_path: Path) -> None:
    problem = game()["pddl_problem"].replace("Apple_bar_2 DiningTable", "Apple_bar_2 Desk")
    domain = game()["pddl_domain"].replace(":effect (opened ?r)", ":effect (looked ?a)")
    data = game(pddl_problem=problem, pddl_domain=domain)
    task = Alfworld(AlfworldConfig(workers=1), folder=prepared(tmp_path, data))
    actions = [step.action for step in task.expert(HEAT).steps]
    assert "go to desk 1" in actions
    assert actions.count("open fridge 1") == actions.count("open microwave 1") == 1
    task.close()


def test_an_expert_that_never_ends_has_failed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alfworld, "EXPERT_LIMIT", 5)
    monkeypatch.setattr(alfworld.Expert, "__call__", lambda *_: "look")
    task = Alfworld(AlfworldConfig(workers=1), folder=folder)
    with pytest.raises(ExpertFailed, match="5 actions"):
        task.expert(HEAT)
    task.close()


def test_the_walkthrough_stands_in_for_an_expert_that_fails(tmp_path: Path) -> None:
    commands = ["go to diningtable 1", "take apple 1 from diningtable 1"]
    commands += ["go to shelf 1", "move apple 1 to shelf 1"]
    # The game's name asks for an egg, but there is none in this room.
    item = "pick_and_place_simple-Egg-None-Shelf-1/trial_T1"
    out = prepared(tmp_path, game("pick", walkthrough=commands), item)
    task = Alfworld(AlfworldConfig(workers=1), folder=out)
    demonstration = task.expert(item)
    assert demonstration.metadata["expert"] == "walkthrough"
    assert demonstration.success
    task.close()


# The real games


REAL = {
    "move": DATA / "alfworld" / "alfworld_valid_seen_140.tar.xz",
    "put": DATA / "alfworld" / "alfworld_valid_seen_140_put_grammar.tar.xz",
}


@pytest.mark.slow
@pytest.mark.parametrize("generation", GENERATIONS)
def test_real_games_are_solved_with_the_texts_of_textworld(
    tmp_path: Path, generation: Generation
) -> None:
    if not REAL[generation].exists():
        pytest.skip(f"needs {REAL[generation].name}")
    result = prepare(REAL[generation], tmp_path, skip_invalid=False)
    assert result.counts == {f"valid_seen ({generation})": 140}
    assert result.skipped == {}
    config = AlfworldConfig(grammar=generation, workers=1)
    task = Alfworld(config, folder=tmp_path)
    items = task.items("test")
    assert {task.group(item) for item in items} == set(TASK_TYPES.values())
    for kind in TASK_TYPES.values():
        item = next(item for item in items if task.group(item) == kind)
        demonstration = task.expert(item)
        assert demonstration.metadata["expert"] == "handcoded"
        assert len(demonstration.steps) <= config.step_limit
    plays_as_textworld(task, task.file(items[100]), commands=25)
    task.close()


def test_real_records_agree_with_the_names_of_games() -> None:
    import gzip

    file = DATA / "alfworld" / "alfworld_traj_slim_4027.jsonl.gz"
    if not file.exists():
        pytest.skip(f"needs {file.name}")
    with gzip.open(file, "rt") as lines:
        for line in islice(lines, 0, None, 7):
            record = json.loads(line)
            name = record["game"].split("/")[-2]
            goal, parameters = goal_of(f"{name}/trial"), record["pddl_params"]
            assert goal.kind == TASK_TYPES[record["task_type"]]
            assert goal.thing == parameters["object_target"].lower()
            place = parameters["toggle_target"] or parameters["parent_target"]
            assert goal.place == place.lower()
