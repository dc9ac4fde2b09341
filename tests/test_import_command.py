"""`stepagent import` and `stepagent export`, on small files and on published ones.

The published files are read from ../shared/data, or from the folder that STEPAGENT_DATA names.
"""

import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from stepagent import cli
from stepagent.formats.import_export import READERS, WRITERS, read_foreign
from stepagent.trajectories import read_trajectories
from test_formats import ATIF, ETO, TRL

DATA = Path(os.environ.get("STEPAGENT_DATA") or Path(__file__).parents[2] / "shared" / "data")
DATA = DATA / "expert_trajectories"
published = pytest.mark.skipif(not DATA.is_dir(), reason=f"no published trajectories in {DATA}")


def call(*args: object) -> None:
    cli.main([str(arg) for arg in args])


def records(*found: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in found)


def test_an_export_is_imported_unchanged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, native = tmp_path / "shop.json", tmp_path / "native.jsonl"
    source.write_text(json.dumps([ETO, ETO | {"id": "webshop_8"}]))
    call("import", source, "-o", native)
    assert capsys.readouterr().out == (
        f"{native}: 2 of 2 records (eto)\n"
        "       2 trajectories\n"
        "       4 steps\n"
        "       2 thoughts\n"
        "       0 tool calls\n"
        "       0 tools\n"
        "       0 system messages that begin an instruction\n"
        "       2 scores\n"
        "kept as metadata, not used in training: source\n"
        "example: step 1 of 2 of 'webshop_7'\n"
        "  read     instruction  You are web shopping.\n"
        "  read     observation  WebShop [SEP] Search\n"
        "  trained  thought      I search.\n"
        "  trained  action       search[kettle]\n"
    )
    for format in WRITERS:
        call("export", native, "-o", tmp_path / "out.gz", "--format", format, "--overwrite")
        said = capsys.readouterr().out
        assert said == f"{tmp_path}/out.gz: 2 records ({format}), 4 steps\n"
        call("import", tmp_path / "out.gz", "-o", tmp_path / "again.jsonl", "--format", format,
             "--overwrite")  # fmt: skip
        again = (tmp_path / "again.jsonl").read_bytes()
        assert f"{tmp_path}/again.jsonl: 2 of 2 records (" in capsys.readouterr().out
        assert (again == native.read_bytes()) == (format != "openai")


def test_skipped_records_are_counted_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty: dict[str, Any] = {"messages": []}
    (tmp_path / "chat.jsonl").write_text(records(empty, TRL, empty, TRL | {"id": 3}))
    call("import", tmp_path / "chat.jsonl", "-o", tmp_path / "out.jsonl", "--skip-invalid",
         "--task", "shopping")  # fmt: skip
    assert capsys.readouterr().out == (
        "left out: 2 x no agent turn that carries loss; expected at least one (line 1, 3)\n"
        "left out: 2 of 4 records in all\n"
        "dropped: names of messages (2 x)\n"
        f"{tmp_path}/out.jsonl: 2 of 4 records (messages)\n"
        "       2 trajectories\n"
        "       4 steps\n"
        "       4 thoughts\n"
        "       2 tool calls\n"
        "       1 tools\n"
        "       2 system messages that begin an instruction\n"
        "       0 scores\n"
        "kept as metadata, not used in training: source\n"
        "example: step 1 of 2 of 'chat/2'\n"
        "  read     instruction  You shop.\n"
        "  read     observation  A kettle, please.\n"
        "  trained  thought      I look for it.\n"
        '  trained  action       {"name":"search","arguments":{"query":"kettle"}}\n'
    )
    written = read_trajectories(tmp_path / "out.jsonl").trajectories
    assert [(t.id, t.task) for t in written] == [("chat/2", "shopping"), ("3", "shopping")]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["import", "{file}", "-o", "{out}"],
            "{file}:2: no agent turn that carries loss",
        ),
        (
            ["import", "{file}", "-o", "{out}", "--format", "atlf"],
            "unknown format 'atlf'; did you mean 'atif'? allowed: messages, openai, eto,",
        ),
        (["import", "{file}", "-o", "{out}", "--format", "atif"], "{file}:1: schema_version: miss"),
        (["import", "{none}", "-o", "{out}"], "{none}: no such file"),
        (["export", "{file}", "-o", "{out}", "--format", "webshop"], "unknown format 'webshop'; "),
        (["export", "{file}", "-o", "{out}", "--format", "eto"], "{file}:1: id: missing; expected"),
        (
            ["export", "{odd}", "-o", "{out}", "--format", "atif"],
            "{out}: trajectory 'a': agent.version: missing; expected at least name, version",
        ),
    ],
)
def test_a_users_error_is_one_line_and_leaves_nothing(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {name: str(tmp_path / f"{name}.jsonl") for name in ("file", "odd", "none", "out")}
    Path(names["file"]).write_text(records(TRL, {"messages": []}))
    odd = READERS["atif"](ATIF, "a", "b").model_dump(mode="json")
    odd |= {"id": "a", "metadata": {"atif": {"header": {"agent": {"name": "x"}}}}}
    Path(names["odd"]).write_text(records(odd))
    with pytest.raises(SystemExit) as ended:
        call(*(arg.format(**names) for arg in args))
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("stepagent: " + message.format(**names))
    assert error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"file.jsonl", "odd.jsonl"}


@published
@pytest.mark.parametrize(
    ("name", "counts", "rejected"),
    [
        ("fireact_hotpotqa_react_500.jsonl.gz", (500, 1385, 1385), {}),
        (
            "fireact_multitask_multimethod_2063.jsonl.gz",
            (2061, 4321, 4311),
            {"no text before the first action; expected an instruction": [1860, 2047]},
        ),
        ("alfworld_gt_traj_train_3553.jsonl.gz", (3553, 60591, 0), {}),
        (
            "webshop_human_sessions.jsonl.gz",
            (45, 351, 0),
            {"steps[]: no single action leads to this page": [18, 30, 33, 34, 43]},
        ),
        ("knowagent_alfworld_134.json.gz", (134, 1367, 1153), {}),
        ("knowagent_hotpotqa_132.json.gz", (132, 437, 437), {}),
    ],
)
def test_published_files_are_imported_or_say_why_not(
    name: str, counts: tuple[int, int, int], rejected: dict[str, list[int]]
) -> None:
    found = read_foreign(DATA / name, skip_invalid=True)
    steps = [step for trajectory in found.trajectories for step in trajectory.steps]
    assert (len(found.trajectories), len(steps), sum(bool(s.thought) for s in steps)) == counts
    reasons: dict[str, list[int]] = {}
    for reason, numbers in found.rejected.items():
        brief = re.sub(r"\[\d+\]", "[]", reason).split(" (")[0]
        reasons.setdefault(brief, []).extend(numbers)
    assert reasons == rejected


@published
@pytest.mark.parametrize(
    ("name", "format", "field"),
    [
        ("fireact_multitask_multimethod_2063.jsonl.gz", "messages", "messages"),
        ("fireact_hotpotqa_react_500.jsonl.gz", "openai", "messages"),
        ("alfworld_gt_traj_train_3553.jsonl.gz", "eto", "conversations"),
    ],
)
def test_published_dialogues_are_exported_as_they_were(name: str, format: str, field: str) -> None:
    found = read_foreign(DATA / name, skip_invalid=True)
    left_out = {number for numbers in found.rejected.values() for number in numbers}
    with gzip.open(DATA / name) as file:
        texts = [line for number, line in enumerate(file, start=1) if number not in left_out]
    for trajectory, text in list(zip(found.trajectories, texts, strict=True))[::5]:
        record = json.loads(text)
        written = WRITERS[format](trajectory)
        assert written[field] == record[field]
        assert set(record) <= set(written)


def test_escape_sequences_in_a_file_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;owned\x07\u202e\r\n" + "x" * 3000
    said: dict[str, Any] = {"role": "assistant", "content": f"Thought: {evil}\nAction: a{evil}"}
    record = {"id": evil, "messages": [{"role": "user", "content": evil}, said]}
    extra = {"messages": [{"role": "user", "content": "a"}, said | {evil: 1}]}
    dropped = {"messages": [{"role": "user", "content": "a", evil: ""}, said]}
    path, out = tmp_path / "\x1b[2Jin.jsonl", tmp_path / "\x1b[2Jout.jsonl"
    path.write_text(records(record, extra, dropped, record, {"messages": [{"role": evil}]}))
    call("import", path, "-o", out, "--skip-invalid")
    printed = capsys.readouterr().out
    assert all(line.isprintable() for line in printed.split("\n"))
    assert r"read     instruction  \x1b]0;owned\x07\u202e\r\n" in printed
    assert max(map(len, printed.splitlines())) < 2200


def test_a_long_list_of_places_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "chat.jsonl").write_text(records(TRL, *[{"messages": []}] * 12))
    call("import", tmp_path / "chat.jsonl", "-o", tmp_path / "out.jsonl", "--skip-invalid")
    assert "(line 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 2 more)\n" in capsys.readouterr().out
