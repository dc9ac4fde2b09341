"""Fuzz cases for the report: hostile text in a run folder stays text on the page."""

import json
import random
from html.parser import HTMLParser
from pathlib import Path
from shutil import rmtree
from typing import Any
from unittest.mock import patch

from fuzz_inputs import Loss, damaged, mark, mutated, text
from matplotlib.figure import Figure

from stepagent.report.page import write_report
from stepagent.types import AgentAction, PracticedStep, Step, Trajectory

HOSTILE = (
    "<zqtag zqattr=1>{}</zqtag>", "</script><zqtag>{}", "\" onload=zqattr('{}') zqattr=\"", "{}",
    "' zqattr='{}", "<!-- {} <zqtag>", "]]><zqtag>{}", "{{{{ 7 * 191 }}}}{}", "</style><zqtag>{}",
    "</textarea><zqtag>{}", "javascript:zqattr({})", "<svg/zqattr={}>", "\x1b[31m{}\x00\u202e",
    "&lt;zqtag&gt;{}", "</title><zqtag>{}", "\\u003czqtag\\u003e{}", "{}\r\n\x0b\x85\u2028",
)  # fmt: skip


class Page(HTMLParser):
    """A parser that fails on markup that the report does not use."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Fails on elements and attributes from the hostile texts."""
        if tag == "zqtag" or any(name.startswith(("zqattr", "on")) for name, _ in attrs):
            raise Loss(f"markup on the page: <{tag} {attrs}>")
        for name, inner in attrs:
            if name in ("href", "src", "action") and (inner or "").startswith("javascript:"):
                raise Loss(f"a script in a link: {inner}")


def hostile(rng: random.Random) -> str:
    """A text that looks like markup."""
    return rng.choice(HOSTILE).format(mark(rng)) + rng.choice(("", text(rng)))


def report(rng: random.Random, folder: Path) -> None:
    """Reports a run folder with hostile texts in every possible place, sometimes damaged."""
    run = folder / "run"
    rmtree(run, ignore_errors=True)
    for name in ("practice", "episodes"):
        (run / name).mkdir(parents=True)
    files = run_files(rng)
    for name, records in files.items():
        if rng.random() < 0.05:
            continue
        if rng.random() < 0.05:
            records = [mutated(rng, record) for record in records]
        whole = "\n".join(json.dumps(record) for record in records).encode() + b"\n"
        if name == "results.json":
            whole = json.dumps(records).encode()
        if rng.random() < 0.03:
            whole = damaged(rng, whole)
        (run / name).write_bytes(whole)
    (run / "summary.md").write_text(hostile(rng))
    # Drawing takes a hundred times as long as the rest, so most pages have empty plots.
    drawn = Figure.savefig if rng.random() < 0.05 else lambda self, file, **_: file.write("<svg/>")
    with patch.object(Figure, "savefig", drawn):
        write_report([run], folder / "report.html")
    page = (folder / "report.html").read_text(encoding="utf-8")
    Page().feed(page)
    if "1337" in page and "7 * 191" not in page:
        raise Loss("a template in a text was filled in")
    steering = {c for c in page if not c.isprintable() and c not in "\n\t"}
    steering -= {"\u00a0", "\u2009", "\u202f", "\u00ad"}
    if steering:
        raise Loss(f"control characters on the page: {steering}")


def run_files(rng: random.Random) -> dict[str, list[Any]]:
    """The records of a small run, by file."""

    def episode(number: int) -> dict[str, Any]:
        steps = [Step(observation=hostile(rng), action=hostile(rng), thought=hostile(rng))] * 2
        return Trajectory(
            id=f"{number}{hostile(rng)}",
            task="t",
            instruction=hostile(rng),
            steps=tuple(steps),
            final_observation=hostile(rng),
            score=rng.choice((None, 0.0, 62.5)),
            success=rng.choice((None, True)),
            metadata={"stopped": hostile(rng)},
        ).model_dump(mode="json")

    experts = [episode(number) for number in range(2)]
    practised = [
        PracticedStep(
            trajectory_id=experts[0]["id"],
            step_index=index,
            expert_action=hostile(rng),
            agent_actions=(
                AgentAction(text=hostile(rng), token_ids=(1,), logprob=-1.0, reward=0.5),
            ),
        ).model_dump(mode="json")
        for index in range(2)
    ]
    row = {"stage": "implicit", "phase": "dev", "score": 5.0, "note": hostile(rng)}
    result = {"task": "t", "split": "test", "metric": "score", "mean": 5.0, "n": 2}
    methods = ["sft", "implicit", hostile(rng)]
    return {
        "config.json": [
            {
                "recipe": hostile(rng),
                "seed": 0,
                "created": hostile(rng),
                "versions": {hostile(rng): hostile(rng)},
                "protocol": {hostile(rng): hostile(rng)},
                "config": {"a": {hostile(rng): hostile(rng)}},
                "data": {"panels": {"test": {"sha256": hostile(rng), "items": 2}}},
            }
        ],
        "results.json": [result | {"method": method} for method in methods],
        "metrics.jsonl": [row | {"round": k, "stage": rng.choice(methods)} for k in range(3)],
        "demonstrations.jsonl": experts,
        "practice/demonstrations-dev.jsonl": experts,
        "practice/implicit-round1.jsonl": practised,
        "episodes/sft-test.jsonl": [episode(number) for number in range(2)],
        "episodes/implicit-test.jsonl": [episode(number) for number in range(2)],
    }
