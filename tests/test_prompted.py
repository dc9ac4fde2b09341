"""Chat models on the command line: collect, evaluate, resuming after a kill, costs, the key."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chat_server import Answer, ChatServer, Messages, Refuse, Reset, Say, Send, solve_boxes
from fakes import BoxWorld, demonstrations, hear_ctrl_c
from stepagent import cli
from stepagent.commands import collect as collect_command
from stepagent.commands import evaluate as evaluate_command
from stepagent.commands.episode_journal import read_journal
from stepagent.evaluation import choose_items, panel_hash
from stepagent.experiment.pipeline import PANEL_SEED
from stepagent.trajectories import read_trajectories, write_jsonl
from stepagent.types import Step

KEY = "sk-secret-0123456789"


@pytest.fixture(autouse=True)
def boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The world of boxes in place of ScienceWorld, and a key."""
    for command in (collect_command, evaluate_command):
        monkeypatch.setattr(command, "open_task", lambda _: BoxWorld())
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def arguments(
    command: str, server: ChatServer, out: Path, *more: object, number: int = 3
) -> list[str]:
    role = {"collect": "--expert", "evaluate": "--policy"}[command]
    given = [command, "scienceworld", role, "openai:m-1", "--base-url", server.url, "--out", out,
             "--task-types", "boxes", "--num-per-group", number, "--max-retries", 0,
             *more]  # fmt: skip
    return [str(argument) for argument in given]


def call(command: str, server: ChatServer, out: Path, *more: object, number: int = 3) -> None:
    cli.main(arguments(command, server, out, *more, number=number))


def fails(capsys: pytest.CaptureFixture[str], args: list[str]) -> str:
    """Runs a command that must exit with code 2; returns its one line of standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(args)
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("stepagent: ")
    return error[-1]


def panel(split: str = "train", number: int = 3) -> tuple[str, ...]:
    return choose_items(BoxWorld(), split, number, seed=PANEL_SEED)  # type: ignore[arg-type]


def only_near(messages: Messages) -> Answer:
    """Solves items whose object is in the first two rooms; gives up on others."""
    return Say("look") if len(messages) > 5 else solve_boxes(messages)


def test_collect_keeps_solved_items_and_names_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out.jsonl"
    with ChatServer(answer=only_near) as server:
        call("collect", server, out, "--price-in", 100, "--price-out", 1000)
    told = capsys.readouterr().out.splitlines()
    kept = read_trajectories(out).trajectories
    every = {t.id: t for t in read_journal(Path(f"{out}.episodes"))}
    assert set(every) == set(panel())
    assert kept == tuple(every[item] for item in panel() if every[item].success)
    left_out = [item for item in panel() if not every[item].success]
    assert kept and left_out
    assert told[: len(left_out)] == [
        f"left out: {item}: score {every[item].score:g} after 8 steps, not solved"
        for item in left_out
    ]
    number = len(server.requests)
    assert told[len(left_out) :] == [
        f"episodes {out}.episodes",
        f"tokens   {10 * number} in, {2 * number} out",
        f"cost     {number * 0.003:.4f} (at 100 in and 1000 out per million tokens)",
        f"{out}: {len(kept)} of 6 items, {sum(len(t.steps) for t in kept)} steps",
    ]


def test_a_repeated_command_sends_requests_only_for_new_items(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl.gz"
    with ChatServer(answer=only_near) as server:
        call("collect", server, out)
        first, told = out.read_bytes(), capsys.readouterr().out
        number = len(server.requests)
        out.unlink()
        call("collect", server, out)
        assert len(server.requests) == number
        assert out.read_bytes() == first
        assert capsys.readouterr().out == told
        call("collect", server, out, "--overwrite", number=4)
        begun = sum(len(request["messages"]) == 2 for request in server.requests[number:])
    assert begun == 2
    assert len(read_trajectories(f"{out}.episodes").trajectories) == 8


@pytest.mark.parametrize("command", ["collect", "evaluate"])
@pytest.mark.parametrize("fault", [Refuse(400, "no money left"), Reset(), Send(b"<html>")])
def test_an_error_loses_no_finished_episode_and_the_same_command_resumes(
    command: str, fault: Answer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    begun = 0

    def answer(messages: Messages) -> Answer:
        nonlocal begun
        begun += len(messages) == 2
        return fault if begun == 4 else solve_boxes(messages)

    with ChatServer(answer=answer) as server:
        error = fails(capsys, arguments(command, server, out, "--num-parallel", 1))
        assert "; 3 of 6 episodes are finished and saved; the same command resumes" in error
        assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl.episodes"]
        number = len(server.requests)
        call(command, server, out, "--num-parallel", 1)
        rest = server.requests[number:]
    assert sum(len(request["messages"]) == 2 for request in rest) == 3
    with ChatServer() as server:
        call(command, server, whole)
    assert out.read_bytes() == whole.read_bytes()
    assert Path(f"{out}.episodes").exists() == (command == "collect")


def test_a_prompt_that_is_too_long_does_not_end_an_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "prompt is too long: 209353 tokens > 199999 maximum"

    def answer(messages: Messages) -> Answer:
        return Refuse(400, words) if len(messages) > 4 else solve_boxes(messages)

    out = tmp_path / "out.jsonl"
    with ChatServer(answer=answer) as server:
        call("evaluate", server, out)
    episodes = read_trajectories(out).trajectories
    ended = [t for t in episodes if t.metadata["stopped"]]
    assert len(episodes) == 6
    assert 0 < len(ended) < 6
    told = f"stopped  {len(ended)} of 6 episodes; see their metadata for why"
    assert told in capsys.readouterr().out.splitlines()
    assert all(t.truncated and not t.success for t in ended)


def test_a_lost_environment_loses_no_other_episode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, item = tmp_path / "out.jsonl", panel("test")[1]
    with ChatServer() as server:
        lost = BoxWorld(lost={(item, 1): 99})
        monkeypatch.setattr(evaluate_command, "open_task", lambda _: lost)
        call("evaluate", server, out)
        said = capsys.readouterr().out
        assert f"lost: {item}: lost at step 1\nlost: 1 of 6 episodes; the same command" in said
        assert len(read_trajectories(out).trajectories) == 5
        begun = sum(len(request["messages"]) == 2 for request in server.requests)
        monkeypatch.setattr(evaluate_command, "open_task", lambda _: BoxWorld())
        call("evaluate", server, out)
        again = sum(len(request["messages"]) == 2 for request in server.requests)
    assert again == begun + 1
    assert [t.id for t in read_trajectories(out).trajectories] == list(panel("test"))


def test_options_can_name_what_a_server_rejects(tmp_path: Path) -> None:
    with ChatServer() as server:
        call("evaluate", server, tmp_path / "out.jsonl", "--no-system-role",
             "--max-tokens-field", "max_tokens", "--temperature", "None")  # fmt: skip
    for request in server.requests:
        assert set(request) == {"path", "model", "messages", "max_tokens"}
        assert {m["role"] for m in request["messages"]} <= {"user", "assistant"}


def test_paid_episodes_that_the_output_lacks_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with ChatServer() as server:
        call("collect", server, out)  # leaves its journal, with every episode
        kept = Path(f"{out}.episodes").read_bytes()
        call("evaluate", server, out, "--split", "train", "--num-per-group", 1, "--overwrite")
    assert len(read_trajectories(out).trajectories) < kept.count(b"\n")
    assert Path(f"{out}.episodes").read_bytes() == kept


SCRIPT = """
import sys
sys.path[:0] = {path!r}
from fakes import BoxWorld
from stepagent import cli
from stepagent.commands import collect
collect.open_task = lambda _: BoxWorld()
cli.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_collect_resumes_after_a_kill(kill: signal.Signals, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    begun = 0

    def answer(messages: Messages) -> Answer:
        nonlocal begun
        begun += len(messages) == 2
        if begun == 4:
            os.kill(running.pid, kill)
            running.wait(60)  # the answer comes too late, as from a slow server
        return solve_boxes(messages)

    script = SCRIPT.format(path=[str(Path(__file__).parent)])
    with ChatServer(answer=answer) as server:
        args = arguments("collect", server, out, "--num-parallel", 1)
        with subprocess.Popen(
            [sys.executable, "-c", script, *args],
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=hear_ctrl_c,
        ) as running:
            _, error = running.communicate(timeout=120)
        assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl.episodes"]
        kept = read_trajectories(f"{out}.episodes").trajectories
        assert len(kept) == 3
        if kill == signal.SIGINT:
            assert running.returncode == 130
            again = "stepagent collect scienceworld --expert openai:m-1"
            assert error.startswith(f"stepagent: stopped; to resume: {again}")
            assert error.count("\n") == 1
        server.answer = solve_boxes
        number = len(server.requests)
        call("collect", server, out, "--num-parallel", 1)
        rest = server.requests[number:]
    assert sum(len(request["messages"]) == 2 for request in rest) == 3
    assert [t.id for t in read_trajectories(out).trajectories] == list(panel())
    assert read_trajectories(f"{out}.episodes").trajectories[:3] == kept


@pytest.mark.parametrize("changed", [["--temperature", 1], ["--prompt-format", "action"]])
def test_other_settings_than_at_the_start_are_refused(
    changed: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    with ChatServer() as server:
        call("collect", server, out)
        files = {file: file.read_bytes() for file in tmp_path.iterdir()}
        error = fails(capsys, arguments("collect", server, out, "--overwrite", *changed))
        assert re.search(r"\.episodes: \w+/\d+ was played with \w+ .*, now it is ", error)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == files


def test_if_nothing_is_solved_only_the_journal_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    with ChatServer(answer=lambda _: Say("Action: look")) as server:
        error = fails(capsys, arguments("collect", server, out))
    assert error == f"stepagent: the expert solved none of 6 items; {out} was not written"
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl.episodes"]


def test_evaluate_also_prints_tokens_and_cost_of_a_chat_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    with ChatServer() as server:
        call("evaluate", server, out)
    number = len(server.requests)
    items = panel("test")
    assert [t.id for t in read_trajectories(out).trajectories] == list(items)
    assert capsys.readouterr().out.splitlines() == [
        "score    100.0 (100.0 to 100.0)",
        "success  100.0 (61.0 to 100.0) %",
        "steps    2.333",
        f"panel    6 test items, sha256 {panel_hash(items)}",
        f"tokens   {10 * number} in, {2 * number} out",
        "cost     -",
        f"episodes {out}",
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]


def test_the_key_is_sent_and_written_nowhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script: list[Answer] = [Refuse(401, f"unknown key {KEY}")]
    with ChatServer(script=script, answer=only_near) as server:
        fails(capfd, arguments("collect", server, tmp_path / "out.jsonl", "--num-parallel", 1))
        with pytest.raises(SystemExit):
            server.script.append(Refuse(401, f"unknown key {KEY}"))
            call("evaluate", server, tmp_path / "episodes.jsonl", "--num-parallel", 1)
        call("collect", server, tmp_path / "out.jsonl")
        call("evaluate", server, tmp_path / "episodes.jsonl")
    assert set(server.keys) == {f"Bearer {KEY}"}
    captured = capfd.readouterr()
    assert "rejects the key" in captured.err
    assert KEY not in captured.out + captured.err
    written = [file.read_bytes() for file in tmp_path.iterdir()]
    assert len(written) == 3
    assert not any(KEY.encode() in text for text in written)


def test_examples_come_from_training_items_only_and_the_guide_is_in_the_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "expert.jsonl", [*demonstrations("test"), *demonstrations()[:2]])
    (tmp_path / "guide.txt").write_text("You can open boxes.\n")
    shown = ["--few-shot", 1, "--demonstrations", tmp_path / "expert.jsonl"]
    with ChatServer() as server:
        call("evaluate", server, tmp_path / "out.jsonl", *shown, "--guide", tmp_path / "guide.txt")
        error = fails(
            capsys, arguments("evaluate", server, tmp_path / "b", "--few-shot", 2, *shown[2:])
        )
    found = read_trajectories(tmp_path / "out.jsonl").trajectories
    assert [t.metadata["examples"] for t in found] == [["near/0"]] * 6
    assert server.requests[0]["messages"][0]["content"].endswith("\n\nYou can open boxes.")
    assert error.endswith(
        "expert.jsonl: has 2 trajectories of training items of this task; --few-shot 2 "
        "needs at least 3"
    )


def test_react_examples_without_thoughts_cause_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    silent = demonstrations()[:3]
    steps = tuple(Step(**{**s.model_dump(), "thought": "Hm."}) for s in silent[0].steps)
    thinking = silent[0].model_copy(update={"steps": steps})
    for number, (chosen, more, is_told) in enumerate(
        [(silent, [], True), ((thinking, *silent[1:]), [], False),
         (silent, ["--prompt-format", "action"], False)]
    ):  # fmt: skip
        file = tmp_path / f"{number}.jsonl"
        write_jsonl(file, chosen)
        with ChatServer() as server:
            call("evaluate", server, tmp_path / f"out-{number}", "--few-shot", 1,
                 "--demonstrations", file, *more)  # fmt: skip
        assert (f"{file}: its steps have no thoughts" in caplog.text) == is_told


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["collect", "--expert", "openai:"], "openai:: names no model; expected openai:MODEL"),
        (
            ["collect", "--expert", "opnai:m-1"],
            "unknown expert 'opnai:m-1'; allowed: task, openai:MODEL",
        ),
        (
            ["collect", "--expert", "openai:m-1"],
            "https://api.openai.com/v1: requires a key; set the environment variable OPENAI_API",
        ),
        (
            ["collect", "--base-url", "http://a/v1"],
            "task: not a chat model; --base-url, --few-shot and the like are only for openai:MODEL",
        ),
        (
            ["evaluate", "--policy", "{tmp}", "--temperature", "1"],
            "{tmp}: not a chat model; --base-url, --few-shot and the like are only for openai:",
        ),
        (
            ["evaluate", "--policy", "openai:m-1", "--decoding.temperature", "1"],
            "openai:m-1: --decoding is for local policies only; use --temperature",
        ),
        (
            ["evaluate", "--policy", "openai:m-1", "--few-shot", "2"],
            "openai:m-1: expected --few-shot with --demonstrations",
        ),
        (
            ["evaluate", "--policy", "openai:m-1", "--price-in", "2"],
            "openai:m-1: expected --price-in with --price-out",
        ),
        (
            ["evaluate", "--policy", "openai:m-1", "--max-tokens", "0"],
            "openai:m-1: expected --max-tokens of at least 1",
        ),
        (
            ["evaluate", "--policy", "openai:m-1", "--temperature", "nan"],
            "openai:m-1: expected --temperature of at least 0",
        ),
        (
            ["evaluate", "--policy", "openai:m-1", "--price-in", "2", "--price-out", "-1"],
            "openai:m-1: expected prices of at least 0",
        ),
        (["collect", "--num-parallel", "0"], "--num-parallel must be at least 1, not 0"),
        (
            ["evaluate", "--policy", "openai:m-1", "--num-parallel", "0"],
            "num_parallel must be at least 1, not 0",
        ),
        (
            ["evaluate", "--policy", "openai:m-1", "--base-url", "http://127.0.0.1:9/v1",
             "--guide", sys.executable],
            f"{sys.executable}: not UTF-8 text",
        ),
        (
            ["evaluate", "--policy", "openai:m-1", "--base-url", "localhost:8000"],
            "'localhost:8000': not a server address",
        ),
        (
            ["evaluate", "--policy", "openai:m-1", "--base-url", "http://127.0.0.1:9/v1",
             "--guide", "{tmp}/none.txt"],
            "{tmp}/none.txt: no such file; expected a text file",
        ),
        (
            ["evaluate", "--policy", "openai:m-1", "--base-url", "http://127.0.0.1:9/v1",
             "--few-shot", "1", "--demonstrations", "{tmp}/none"],
            "{tmp}/none: no such file; expected a file of JSON lines",
        ),
        (
            ["evaluate", "--policy", "openai:m-1", "--base-url", "http://127.0.0.1:9/v1",
             "--max-retries", "0"],
            "http://127.0.0.1:9/v1: cannot be reached (",
        ),
    ],
)  # fmt: skip
def test_a_users_error_is_one_line_and_leaves_nothing(
    args: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    given = [args[0], "scienceworld", *args[1:], "--task-types", "boxes", "--out", "{tmp}/out"]
    error = fails(capsys, [arg.format(tmp=tmp_path) for arg in given])
    assert error.startswith(f"stepagent: {message.format(tmp=tmp_path)}")
    assert list(tmp_path.iterdir()) == []
