"""Random inputs for the fuzz test: texts, JSON values, trajectories and damaged bytes."""

import json
import random
import re
from collections.abc import Iterator
from typing import Any

from stepagent.types import Step, Trajectory

MARK = re.compile(r"zq[a-z]{6}")
"""Unique marker words: if one is missing from a result, a text was lost."""

LABELS = (
    "Thought:", "THOUGHT:", " ACTION:", "Action:", "Action 1:", "Action\uff1a", "**Action:**",
    "action:", "Observation:", "ActionPath 1:", "> ", "> Think:", "<think>", "</think>", "Value:",
    "Answer:", "<tool_call>", "</tool_call>", "<tool_response>", "[TOOL_CALLS]", "```json", "```",
)  # fmt: skip
CONTROL = (
    "<|im_end|>", "<|im_start|>", "<|eot_id|>", "<|end|>", "<|user|>", "</s>", "<s>", "[INST]",
    "[/INST]", "<end_of_turn>", "<\uff5ctool▁call▁end\uff5c>", "\uff1c|im_end|\uff1e",
    "<|\uff49m_end|>", "<unk>", "\ue000user0\ue000", "\ue000assistant0\ue000",
)  # fmt: skip
ODD = (
    "\u202e", "\u2028", "\x1b[31m", "\x00", "\x85", "\ufeff", "ﬁ", "İ", "ß", "e\u0301",
    "\U0001f469\u200d\U0001f680", "\ud55c\uad6d", "\u200b", "\t", "\r\n", "\n", "\n\n", "  ",
    "\\", '"', "'", "{", "}", "{{", "}}", "{%", "%}", "[", "]", "&", "<b>", "\\u0000", "\uff05",
    "\uffff", "\U0010ffff",
)  # fmt: skip
WORDS = ("open", "the", "red", "box", "go", "on", "search[", "click[", "A.", "cup", "1", "null")


def mark(rng: random.Random) -> str:
    """A unique marker word."""
    return "zq" + "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6))


def text(rng: random.Random, parts: int = 6, *, hostile: bool = True) -> str:
    """A text with a marker; a hostile one also has labels, control tokens and odd characters."""
    pools = [WORDS, WORDS, LABELS, CONTROL, ODD] if hostile else [WORDS]
    found = [rng.choice(rng.choice(pools)) for _ in range(rng.randrange(parts))]
    found.insert(rng.randrange(len(found) + 1), mark(rng))
    return rng.choice(("", " ", " ")).join(found)


def value(rng: random.Random, depth: int = 2) -> Any:
    """A random JSON value."""
    kind = rng.randrange(9 if depth else 6)
    if kind < 2:
        return text(rng, 4)
    if kind < 6:
        return rng.choice(
            (None, True, False, 0, -1, 3, 2**53 + 1, 10**18, 1.5, -0.0, 1e300, 1e-7, "")
        )
    if kind == 6:
        return [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {text(rng, 2): value(rng, depth - 1) for _ in range(rng.randrange(4))}


def schema(rng: random.Random) -> dict[str, Any]:
    """A function schema, usually well-formed."""
    properties = {
        text(rng, 1, hostile=rng.random() < 0.2): {
            "type": rng.choice(("string", "integer", "array", "object")),
            "description": text(rng, 3, hostile=rng.random() < 0.3),
        }
        for _ in range(rng.randrange(3))
    }
    function = {
        "name": rng.choice(("open", "search", "look_up", text(rng, 1))),
        "description": text(rng, 3, hostile=rng.random() < 0.3),
        "parameters": {"type": "object", "properties": properties},
    }
    return {"type": "function", "function": function}


def call(rng: random.Random) -> str:
    """An action that calls a tool."""
    hostile = rng.random() < 0.3
    arguments = {
        text(rng, 1, hostile=False): value(rng) if hostile else text(rng, 3, hostile=False)
        for _ in range(rng.randrange(3))
    }
    name = rng.choice(("open", "search", "look_up", text(rng, 1, hostile=hostile)))
    found = {"name": name, "arguments": arguments}
    return json.dumps(found, ensure_ascii=False, separators=(",", ":"))


def trajectory(rng: random.Random, *, tools: bool | None = None) -> Trajectory:
    """A valid trajectory; with `tools` some of its actions are calls."""
    tools = rng.random() < 0.4 if tools is None else tools
    hostile = rng.random() < 0.6
    steps = tuple(
        Step(
            observation=rng.choice(("", text(rng, hostile=hostile), text(rng, hostile=hostile))),
            action=call(rng) if tools and rng.random() < 0.7 else text(rng, hostile=hostile),
            thought=text(rng, hostile=hostile) if rng.random() < 0.4 else "",
            reward=rng.choice((None, None, 0.0, -1.5, 1e9)),
        )
        for _ in range(rng.randint(1, 4))
    )
    return Trajectory(
        id=text(rng, 2, hostile=hostile),
        task=text(rng, 1, hostile=False),
        instruction=text(rng, hostile=hostile),
        steps=steps,
        tools=tuple(schema(rng) for _ in range(rng.randint(1, 2))) if tools else (),
        final_observation=rng.choice(("", text(rng, hostile=hostile))),
        score=rng.choice((None, 0.0, 33.3, 100.0)),
        success=rng.choice((None, True, False)),
        truncated=rng.random() < 0.2,
        metadata={"note": value(rng)} if rng.random() < 0.3 else {},
    )


def places(found: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a JSON value, with each of its keys or indices."""
    inner = found.items() if isinstance(found, dict) else enumerate(found)
    for key, under in list(inner):
        yield found, key
        if isinstance(under, dict | list):
            yield from places(under)


def mutated(rng: random.Random, record: dict[str, Any]) -> dict[str, Any]:
    """A copy of a record with a few values removed, added, replaced or swapped."""
    copy: dict[str, Any] = json.loads(json.dumps(record))
    for _ in range(rng.randint(1, 3)):
        every = list(places(copy))
        if not every:
            break
        where, key = rng.choice(every)
        match rng.randrange(6):
            case 0:
                del where[key]
            case 1:
                where[key] = value(rng)
            case 2:
                there, other = rng.choice(every)
                where[key] = json.loads(json.dumps(there[other]))
            case 3 if isinstance(where, dict):
                where[rng.choice((text(rng, 2), "name", "role", "content", "index"))] = value(rng)
            case 4 if isinstance(where, list):
                where.insert(rng.randrange(len(where) + 1), value(rng))
            case _:
                if isinstance(where[key], str):
                    where[key] = damaged_text(rng, where[key])
    return copy


def damaged_text(rng: random.Random, whole: str) -> str:
    """A text with something inserted or removed."""
    at = rng.randrange(len(whole) + 1)
    if rng.random() < 0.3:
        return whole[:at] + whole[at + rng.randrange(1, 9) :]
    return whole[:at] + rng.choice(rng.choice((LABELS, CONTROL, ODD))) + whole[at:]


def damaged(rng: random.Random, whole: bytes) -> bytes:
    """Bytes with some flipped, cut, repeated, or strange ones inserted."""
    found = bytearray(whole)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(found) + 1)
        match rng.randrange(8):
            case 0 if found:
                found[at % len(found)] ^= 1 << rng.randrange(8)
            case 1:
                del found[at : at + rng.randrange(1, 40)]
            case 2:
                found[at:at] = found[at : at + rng.randrange(1, 40)]
            case 3:
                del found[at:]
            case 4:
                found[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 5:
                deep = rng.choice((b"[", b'{"a":', b'[{"":'))
                found[at:at] = deep * rng.choice((50, 300, 5000))
            case 6:
                odd = (
                    b"NaN",
                    b"1e999",
                    b"-Infinity",
                    b"9" * 5000,
                    b"1" + b"0" * 400,
                    b"\xed\xa0\x80",
                )
                found[at:at] = rng.choice(odd)
            case _:
                odd = (b"\\ud800", b"\xff\xfe", b"\r", b"\n", b"\xef\xbb\xbf", b"\x00", b'"', b"\\")
                found[at:at] = rng.choice(odd)
    return bytes(found)


class Loss(Exception):
    """A part of the input is missing from the result, and no error said so."""


def check_found(wanted: str, found: str, what: str) -> None:
    """Raises `Loss` if a marker word of the first text is not in the second."""
    missing = sorted(set(MARK.findall(wanted)) - set(MARK.findall(found)))
    if missing:
        raise Loss(f"{what}: {missing[0]} is lost; from {wanted[:300]!r}")
