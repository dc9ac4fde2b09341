"""Fuzz cases for readers of trajectory files: valid, mutated and damaged records."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

from fuzz_inputs import MARK, Loss, check_found, damaged, mark, mutated, schema, text, trajectory

from stepagent.formats.import_export import READERS, WRITERS, read_foreign, write_foreign
from stepagent.trajectories import read_jsonl, read_trajectories, write_jsonl
from stepagent.types import AgentAction, PracticedStep, Trajectory

EXACT = ("messages", "eto", "agentgym", "atif")
"""Formats that round-trip exactly; the others keep only the texts."""


def lines(records: list[dict[str, Any]]) -> list[bytes]:
    """The records as lines of JSON."""
    return [json.dumps(record, ensure_ascii=False).encode() for record in records]


def write(rng: random.Random, path: Path, whole: bytes) -> Path:
    """Writes the file, sometimes compressed, and then sometimes damaged again."""
    if rng.random() < 0.2:
        path = path.with_name(path.name + ".gz")
        whole = gzip.compress(whole, 1)
        if rng.random() < 0.3:
            whole = damaged(rng, whole)
    path.write_bytes(whole)
    return path


def read(rng: random.Random, folder: Path) -> None:
    """Reads our own records: good ones are unchanged, others are reported."""
    good = [trajectory(rng) for _ in range(rng.randint(1, 3))]
    bad = [mutated(rng, json.loads(trajectory(rng).model_dump_json())) for _ in range(2)]
    own = [t.model_dump_json().encode() for t in good] + lines(bad[: rng.randrange(3)])
    rng.shuffle(own)
    whole = rng.choice((b"\n", b"\r\n", b"\n\n")).join(own) + rng.choice((b"", b"\n"))
    if is_damaged := rng.random() < 0.5:
        whole = damaged(rng, whole)
    path = folder / "read.jsonl"
    path.write_bytes(whole) if not is_damaged else (path := write(rng, path, whole))
    if rng.random() < 0.2:
        return read_practised(rng, path)
    found = read_trajectories(path, skip_invalid=rng.random() < 0.7)
    if not is_damaged:
        ids = [t.id for t in good]
        kept = {t.id: t for t in found.trajectories}
        for one in good:
            if ids.count(one.id) == 1 and kept.get(one.id) != one:
                raise Loss(f"read: {one.id!r} came out differently")
        if len(found.trajectories) + len(found.rejected) != len(own):
            raise Loss(f"read: {len(own)} lines, {len(found.trajectories)} and {found.rejected}")
    check_lines([r.reason for r in found.rejected])
    write_jsonl(folder / "again.jsonl", found.trajectories)
    if read_trajectories(folder / "again.jsonl").trajectories != found.trajectories:
        raise Loss("read: what was written is read differently")


def read_practised(rng: random.Random, path: Path) -> None:
    """Reads practised steps: an error, or the same steps."""
    step = PracticedStep(
        trajectory_id=text(rng),
        step_index=rng.randrange(5),
        expert_action=text(rng),
        agent_actions=(AgentAction(text=text(rng), token_ids=(1, 2), logprob=-1.5),),
    )
    whole = step.model_dump_json().encode()
    path.write_bytes(damaged(rng, whole) if rng.random() < 0.7 else whole)
    found = read_jsonl(path, PracticedStep)
    if path.read_bytes() == whole and found != (step,):
        raise Loss("read: a practised step came out differently")
    read_jsonl(path, Trajectory)


def roundtrip(rng: random.Random, folder: Path) -> None:
    """Exports and imports again: the same trajectories, or at least all their texts."""
    own = list({t.id: t for t in (trajectory(rng) for _ in range(rng.randint(1, 2)))}.values())
    form = rng.choice(list(WRITERS))
    path = folder / rng.choice(("out.jsonl", "out.jsonl.gz"))
    path.unlink(missing_ok=True)
    write_foreign(path, own, form)
    found = read_foreign(path, format=form)
    for before, after in zip(own, found.trajectories, strict=True):
        if form in EXACT and before != after:
            names = [n for n in Trajectory.model_fields if getattr(before, n) != getattr(after, n)]
            raise Loss(f"{form}: {names} come back otherwise; {before.model_dump_json()[:600]}")
        texts = before.model_dump(include={"instruction", "steps", "tools"})
        check_found(json.dumps(texts), after.model_dump_json(), form)


def imported(rng: random.Random, folder: Path) -> None:
    """Imports records of other projects: an accepted record loses no marked text."""
    if rng.random() < 0.25:
        return labelled(rng, folder)
    make = rng.choice((messages, messages, sharegpt, knowagent, written))
    form, records = make(rng)
    if rng.random() < 0.6:
        at = rng.randrange(len(records))
        records[at] = mutated(rng, records[at])
    indent = rng.choice((None, None, 1))
    as_list = rng.random() < 0.2
    if as_list or (indent and len(records) == 1):
        value: Any = records if as_list else records[0]
        whole = json.dumps(value, indent=indent, ensure_ascii=rng.random() < 0.5).encode()
    else:
        whole = b"\n".join(lines(records)) + b"\n"
    if is_damaged := rng.random() < 0.2:
        whole = damaged(rng, whole)
    path = folder / "records.jsonl"
    path.write_bytes(whole) if not is_damaged else (path := write(rng, path, whole))
    named = rng.choice((None, None, form, rng.choice(list(READERS))))
    skip = rng.random() < 0.5
    found = read_foreign(path, format=named, skip_invalid=skip)
    check_lines(list(found.rejected))
    left_out = {number for numbers in found.rejected.values() for number in numbers}
    if is_damaged or found.format != form:
        return
    if len(found.trajectories) + len(left_out) != len(records):
        raise Loss(f"{form}: {len(records)} records, {len(found.trajectories)} and {left_out}")
    taken = [r for number, r in enumerate(records, start=1) if number not in left_out]
    for record, made in zip(taken, found.trajectories, strict=True):
        kept = set(MARK.findall(json.dumps(made.model_dump(mode="json"))))
        missing = sorted(set(MARK.findall(json.dumps(kept_fields(record)))) - kept)
        if missing:
            raise Loss(f"{form}: {missing[0]} is lost; {json.dumps(record, ensure_ascii=False)}")


def kept_fields(value: Any) -> Any:
    """A record without what imports drop by design (docs/formats.md).

    These are fields without a value, names of speakers, and ids of calls, which are renumbered.
    """
    if isinstance(value, list):
        return [kept_fields(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    is_turn = bool({"role", "from", "function"} & value.keys())
    dropped = {"name", "id", "tool_call_id"} if is_turn else {"tool_call_id", "source_call_id"}
    fields = {name: kept_fields(inner) for name, inner in value.items() if name not in dropped}
    return {name: inner for name, inner in fields.items() if inner not in (None, "", [], {})}


def labelled(rng: random.Random, folder: Path) -> None:
    """Thought, action, system text and first observation are separated in every notation."""
    thought, action, system, seen = (text(rng, 4, hostile=False).strip() for _ in range(4))
    said = rng.choice(SPOKEN).format(thought=thought, action=action)
    form = rng.choice(("messages", "eto", "agentgym"))
    if form == "messages":
        roles = (("system", system), ("user", seen), ("assistant", said), ("user", "Done."))
        record: dict[str, Any] = {"messages": [{"role": r, "content": c} for r, c in roles]}
    else:
        turns = [{"from": "human", "value": seen}, {"from": "gpt", "value": said}]
        if form == "agentgym":
            turns = [turn | {"loss": turn["from"] == "gpt" or None} for turn in turns]
        record = {"id": "a_1", "conversations": turns, "system": system}
    path = folder / "labels.jsonl"
    path.write_bytes(b"".join(lines([record])))
    found = read_foreign(path).trajectories[0]
    step = found.steps[0]
    if (step.thought, step.action) != (thought, action):
        raise Loss(f"{form}: {said!r} became {step.thought!r} and {step.action!r}")
    told = f"{found.instruction}\n{step.observation}"
    if not found.instruction.startswith(system) or seen not in told:
        raise Loss(f"{form}: of {system!r} and {seen!r} this is told: {told!r}")


SPOKEN = (
    "Thought: {thought}\nAction: {action}",
    "Thought: {thought}\n\nAction:\n{action}",
    "Thought:\n{thought}\n\nAction:\n{action}",
    "THOUGHT: {thought}\nACTION: {action}",
    "THOUGHT: {thought}\n ACTION: {action}",
    "thought: {thought}\naction: {action}",
    "Thought: {thought}\n  Action: {action}",
    "**Thought:** {thought}\n**Action:** {action}",
    "<think>{thought}</think>{action}",
    "<think>\n{thought}\n</think>\n\n{action}",
    "<think>{thought}</think>\nAction: {action}",
)
"""Notations of a thought and an action."""


def messages(rng: random.Random) -> tuple[str, list[dict[str, Any]]]:
    """Chat messages as in data sets, with and without tools."""

    def message(role: str) -> dict[str, Any]:
        if role != "assistant":
            return {"role": role, "content": text(rng, hostile=rng.random() < 0.3)}
        if not tools or rng.random() < 0.3:
            said = rng.choice(("Thought: {0}\nAction: {1}", "<think>{0}</think>{1}", "{0} {1}"))
            return {"role": role, "content": said.format(text(rng), text(rng))}
        arguments: Any = {mark(rng): text(rng)}
        arguments = rng.choice((arguments, json.dumps(arguments), {}, "", None, "{}"))
        function = {"name": rng.choice(("open", mark(rng))), "arguments": arguments}
        return {
            "role": role,
            "content": rng.choice((None, "", text(rng))),
            "tool_calls": [{"type": "function", "id": "c1", "function": function}],
            **rng.choice(({}, {"reasoning_content": text(rng)}, {"refusal": None})),
        }

    tools = rng.random() < 0.5
    records = []
    for _ in range(rng.randint(1, 2)):
        roles = ["system"] * rng.randrange(2) + ["user"]
        for _ in range(rng.randint(1, 3)):
            roles += ["assistant", "tool" if tools and rng.random() < 0.6 else "user"]
        records.append({"messages": [message(role) for role in roles]})
        if tools:
            records[-1]["tools"] = [schema(rng)]
        if rng.random() < 0.3:
            records[-1][mark(rng)] = text(rng)
    return "messages", records


def sharegpt(rng: random.Random) -> tuple[str, list[dict[str, Any]]]:
    """Conversations of ETO and AgentGym."""
    is_gym = rng.random() < 0.5
    records: list[dict[str, Any]] = []
    for number in range(rng.randint(1, 2)):
        said: list[dict[str, Any]] = [
            {"from": "human", "value": text(rng)},
            {"from": "gpt", "value": "OK"},
        ]
        for _ in range(rng.randint(1, 3)):
            form = rng.choice(
                (
                    "Thought: {0}\nAction: {1}",
                    "THOUGHT: {0}\n ACTION: {1}",
                    "{0}{1}",
                    "Action: {1}{0}",
                )
            )
            said.append({"from": "human", "value": text(rng)})
            said.append({"from": "gpt", "value": form.format(text(rng), text(rng))})
        if is_gym:
            for index, turn in enumerate(said):
                turn["loss"] = index > 1 if turn["from"] == "gpt" else None
        record = {"item_id" if is_gym else "id": f"webshop_{number}", "conversations": said}
        records.append(record | rng.choice(({}, {"system": text(rng)}, {mark(rng): text(rng)})))
    return "agentgym" if is_gym else "eto", records


def knowagent(rng: random.Random) -> tuple[str, list[dict[str, Any]]]:
    """KnowAgent's two kinds of text."""
    hotpot = "ActionPath 1: {0}\nThought 1: {1}\nAction 1: {2}\nObservation 1: {3}\n"
    alfworld = "> Think: {0}\n{1}\n> {2}\n{3}\n"
    form = rng.choice((hotpot, alfworld))
    return "knowagent", [
        {
            "input": text(rng),
            "output": "".join(
                form.format(*(text(rng, hostile=rng.random() < 0.3) for _ in range(4)))
                for _ in range(rng.randint(1, 3))
            ),
        }
        for _ in range(rng.randint(1, 2))
    ]


def written(rng: random.Random) -> tuple[str, list[dict[str, Any]]]:
    """Records that we write ourselves."""
    form = rng.choice([f for f in WRITERS if f != "openai"])
    return form, [dict(WRITERS[form](trajectory(rng))) for _ in range(rng.randint(1, 2))]


def check_lines(reasons: list[str]) -> None:
    """Raises `Loss` if the reason for leaving out a record is not one printable line."""
    for reason in reasons:
        if not reason.isprintable():
            raise Loss(f"a reason is not one line: {reason!r}")
