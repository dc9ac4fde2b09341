"""Local policies and task experts on the command line: saved one by one, resumed, losses named."""

import json
from pathlib import Path

import pytest

from fakes import BoxWorld, novice
from stepagent import cli
from stepagent.commands import collect as collect_command
from stepagent.commands import evaluate as evaluate_command
from stepagent.evaluation import choose_items
from stepagent.experiment.pipeline import PANEL_SEED
from stepagent.tasks.tries import Lost
from stepagent.trajectories import read_trajectories

PANEL = choose_items(BoxWorld(), "test", 3, seed=PANEL_SEED)
ITEMS = choose_items(BoxWorld(), "train", 3, seed=PANEL_SEED)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "policy"
    novice().save(folder)
    return folder


class Killed(BaseException):
    """Ends a command as a kill would."""


class World(BoxWorld):
    """Counts the items that are started, and dies at one of them."""

    def __init__(self, lost: dict[tuple[str, int], int] | None = None, die_at: int = 0) -> None:
        super().__init__(lost=lost)
        self.begun: list[str] = []
        self.die_at = die_at

    def lose_if_wanted(self, item: str, step: int) -> None:
        if step == 0:
            self.begun.append(item)
            if len(self.begun) == self.die_at:
                raise Killed
        super().lose_if_wanted(item, step)


def evaluation(policy: Path, out: Path, *more: object) -> list[str]:
    given = ["evaluate", "scienceworld", "--policy", policy, "--out", out, "--num-per-group", 3,
             "--decoding.max-new-tokens", 6, "--num-parallel", 1, *more]  # fmt: skip
    return [str(one) for one in given]


def collection(out: Path, *more: object) -> list[str]:
    given = ["collect", "scienceworld", "--out", out, "--num-per-group", 3, *more]
    return [str(one) for one in given]


def run(monkeypatch: pytest.MonkeyPatch, args: list[str], world: World) -> World:
    for command in (collect_command, evaluate_command):
        monkeypatch.setattr(command, "open_task", lambda _: world)
    cli.main(args)
    return world


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_killed_evaluation_goes_on_to_the_same_bytes(
    temperature: float, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    more = ["--decoding.temperature", temperature]
    run(monkeypatch, evaluation(policy, whole, *more), World())
    with pytest.raises(Killed):
        run(monkeypatch, evaluation(policy, out, *more), World(die_at=5))
    assert not out.exists()
    journal = Path(f"{out}.episodes")
    assert [t.id for t in read_trajectories(journal).trajectories] == [*PANEL[:4]]
    world = run(monkeypatch, evaluation(policy, out, *more, "--num-parallel", "4"), World())
    assert sorted(world.begun) == sorted(PANEL[4:])
    assert out.read_bytes() == whole.read_bytes()
    assert not journal.exists()


def test_an_evaluation_under_other_settings_is_refused_in_one_line(
    policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(Killed):
        run(monkeypatch, evaluation(policy, out), World(die_at=3))
    other = tmp_path / "other"
    novice(epochs=1).save(other)
    kept = Path(f"{out}.episodes").read_bytes()
    for args, change in (
        (evaluation(other, out), "policy '"),
        (evaluation(policy, out, "--seed", 1), "seed 0, now it is 1;"),
        (evaluation(policy, out, "--decoding.temperature", 0.5), "temperature 0.0, now it is 0.5;"),
        (evaluation(policy, out, "--decoding.max-new-tokens", 7), "max_new_tokens 6, now it is 7;"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run(monkeypatch, args, World())
        error = capsys.readouterr().err
        assert ended.value.code == 2 and error.count("\n") == 1
        assert f"{PANEL[0]} was played with {change}" in error
    longer = World()
    monkeypatch.setattr(longer, "facts", lambda: {"task": "boxes", "step_limit": 9})
    with pytest.raises(SystemExit):
        run(monkeypatch, evaluation(policy, out), longer)
    assert "step_limit 8, now it is 9" in capsys.readouterr().err
    assert Path(f"{out}.episodes").read_bytes() == kept
    moved = tmp_path / "moved"
    policy_files = {file.name: file.read_bytes() for file in policy.iterdir()}
    moved.mkdir()
    for name, data in policy_files.items():
        (moved / name).write_bytes(data)
    world = run(monkeypatch, evaluation(moved, out), World())
    assert len(world.begun) == len(PANEL) - 2


@pytest.mark.parametrize("command", ["collect", "evaluate"])
def test_a_lost_item_is_named_and_tried_again_by_the_same_command(
    command: str,
    policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def args(out: Path) -> list[str]:
        return collection(out) if command == "collect" else evaluation(policy, out)

    items = ITEMS if command == "collect" else PANEL
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run(monkeypatch, args(whole), World())
    capsys.readouterr()
    run(monkeypatch, args(out), World(lost={(items[1], 1): 1000}))
    said = capsys.readouterr().out
    assert f"lost: {items[1]}: lost at step 1\n" in said
    assert "lost: 1 of 6 episodes; the same command retries them\n" in said
    left = [line for line in whole.read_text().splitlines() if json.loads(line)["id"] != items[1]]
    assert out.read_text().splitlines() == left
    world = run(monkeypatch, args(out), World())
    assert set(world.begun) == {items[1]}
    assert out.read_bytes() == whole.read_bytes()
    assert not Path(f"{out}.episodes").exists()


@pytest.mark.parametrize("command", ["collect", "evaluate"])
def test_where_all_are_lost_there_is_one_line_and_no_output(
    command: str,
    policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.jsonl"
    args = collection(out) if command == "collect" else evaluation(policy, out)
    lost = {(item, 0): 1000 for item in (*ITEMS, *PANEL)}
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, args, World(lost=lost))
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    first = (ITEMS if command == "collect" else PANEL)[0]
    assert (
        error
        == f"stepagent: all 6 environments were lost; the first: {Lost(first, 'lost at step 0')}"
    )
    assert list(tmp_path.iterdir()) == []
