"""The report: right numbers in the right place, hostile text inert, unfinished and damaged runs."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stepagent.report.page import write_report
from stepagent.report.plots import reward_histogram
from stepagent.report.runs import ReportError, read_run
from stepagent.trajectories import write_jsonl
from stepagent.types import AgentAction, PracticedStep, Step, Trajectory

HOSTILE = "</script><script>alert(1)</script>\" onload='x' \x1b[31m\u202e" + "A" * 5000
VOID = {"meta", "input", "br", "link", "img", "hr"}


class Page(HTMLParser):
    """A page as elements with their attributes and all text inside them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[dict[str, Any]] = []
        self.open: list[dict[str, Any]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        classes = (attributes.get("class") or "").split()
        element = {"tag": tag, "attrs": attributes, "class": classes, "text": "", "in": []}
        element["in"] = list(self.open)
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()["tag"] == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element["text"] += data

    def find(self, tag: str, css_class: str = "", inside: Any = None) -> list[dict[str, Any]]:
        return [
            e
            for e in self.elements
            if e["tag"] == tag
            and (not css_class or css_class in e["class"])
            and (inside is None or any(outer is inside for outer in e["in"]))
        ]


def expert(name: str, *steps: tuple[str, str], **outcome: Any) -> Trajectory:
    seen_and_done = tuple(Step(observation=o, action=a) for o, a in steps)
    return Trajectory(id=name, task="toy", instruction="Boil.", steps=seen_and_done, **outcome)


def practised(name: str, index: int, action: str, reward: float, *agent: Any) -> PracticedStep:
    return PracticedStep(
        trajectory_id=name,
        step_index=index,
        expert_action=action,
        expert_reward=reward,
        agent_actions=tuple(
            AgentAction(text=text, token_ids=(1,), logprob=-1.0, reward=value)
            for text, value in agent
        ),
    )


RESULTS = [
    ("sft", "score", 41.26, 30.04, 52.48, 20),
    ("sft", "success", 0.25, 0.112, 0.469, 20),
    ("inverse", "score", 63.91, 50.0, 77.77, 20),
    ("inverse", "success", 0.55, None, None, 20),
]


def make_run(run: Path, seed: int = 0, text: str = "look") -> Path:
    """A small whole run of two methods; `text` turns up in every place that takes text."""
    (run / "practice").mkdir(parents=True)
    (run / "episodes").mkdir()
    config = {
        "recipe": f"toy {text}",
        "seed": seed,
        "created": "2026-01-02T03:04:05",
        "versions": {"torch": "2.9.0"},
        "protocol": {"step_limit": 30, "goal": text},
        "config": {"reflection": {"beta": 0.1, "note": text}},
        "data": {"panels": {"test": {"sha256": "ab" * 32, "items": 20}}},
    }
    (run / "config.json").write_text(json.dumps(config))
    keys = ("method", "metric", "mean", "low", "high", "n")
    results = [dict(zip(keys, row, strict=True), task="toy", split="test") for row in RESULTS]
    (run / "results.json").write_text(json.dumps(results))
    (run / "summary.md").write_text(f"It works.\n\n{text}")
    rows: list[dict[str, Any]] = [
        {"stage": "sft", "round": 0, "step": k, "phase": "train", "seconds": 1.0, "loss": 2 - k / 9}
        for k in range(3)
    ]
    for k in range(3):
        dev = {"score": 40.0 + k, "score_low": 30.0, "score_high": 50.0, "agreement": 0.5}
        extra = {"js_divergence": None, "expert_logprob": float("nan"), "note": text}
        rows.append({"stage": "inverse", "round": k, "step": None, "phase": "dev", **dev, **extra})
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    held_out = [expert(f"boil/{text}", (text, "open"), ("a room", text)), expert("b", ("x", "y"))]
    write_jsonl(run / "demonstrations.jsonl", [expert("train/1", ("x", "y"))])
    write_jsonl(run / "practice/demonstrations-dev.jsonl", held_out)
    for k in (1, 2):
        steps = [
            practised(f"boil/{text}", 1, text, 0.25 * k, ("wait", -1.5), (text, 0.5)),
            practised(f"boil/{text}", 0, "open", 1.25 * k, ("open", 0.75)),
            practised("b", 0, "y", -0.125, (text, -2.0)),
        ]
        write_jsonl(run / f"practice/inverse-round{k}.jsonl", steps)
    for method, gain in (("sft", 0.0), ("inverse", 20.0)):
        episodes = [
            expert(f"item/{k}", (text, text), score=10.0 * k + gain, success=k > 4, truncated=k < 2)
            for k in range(8)
        ]
        write_jsonl(run / f"episodes/{method}-test.jsonl", episodes)
    return run


def page_of(tmp_path: Path, *runs: Path) -> tuple[Page, str]:
    write_report(runs, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    return Page(html), html


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str]:
    folder = tmp_path_factory.mktemp("whole")
    return page_of(folder, make_run(folder / "run"))


def test_numbers_in_the_score_table_are_those_of_the_results(written: tuple[Page, str]) -> None:
    page, _ = written
    table = page.find("table", "scores")[0]
    rows = [
        [cell["text"].strip() for cell in page.elements if cell["in"] and cell["in"][-1] is row]
        for row in page.find("tr", inside=table)
    ]
    assert rows[0] == ["Method", "Score", "Success", "n"]
    assert rows[1] == ["●SFT (start)", "41.3 [30.0, 52.5]", "25.0 % [11.2 %, 46.9 %]", "20"]
    assert rows[2] == ["■Inverse reflection", "63.9 [50.0, 77.8]", "55.0 %", "20"]
    exact = [float(data["attrs"]["value"]) for data in page.find("data", inside=table)]
    assert exact == [row[2] for row in RESULTS]


def test_paired_difference_uses_the_items_that_both_methods_solved(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    others = [expert(f"item/{k}", ("o", "a"), score=50.0, success=True) for k in (100, 101)]
    ours = [*read_run(run).episodes[0].trajectories[1:], *others]
    write_jsonl(run / "episodes/inverse-test.jsonl", ours)
    page, _ = page_of(tmp_path, run)
    row = page.find("tr", inside=page.find("table", "scores")[1])[1]
    assert "minus SFT (start)" in row["text"]
    assert "+20.0" in row["text"] and "n = 7" in row["text"]


def test_each_practised_step_shows_its_own_actions_and_rewards(written: tuple[Page, str]) -> None:
    page, _ = written
    seen = []
    for state in page.find("tbody", "state"):
        trajectory = next(e for e in state["in"] if "trajectory" in e["class"])
        observation = page.find("tr", "observation", state)[0]["text"]
        for row in page.find("tr", "attempt", state):
            sides = [page.find("td", side, row)[0] for side in ("expert", "agent")]
            actions = [[c["text"] for c in page.find("code", inside=side)] for side in sides]
            rewards = [[b["text"] for b in page.find("b", inside=side)] for side in sides]
            marks = [mark["text"] for mark in page.find("span", "mark", row)]
            key = (trajectory["attrs"]["data-name"], state["attrs"]["data-step"])
            policy = row["attrs"]["data-round"]
            seen.append((*key, observation, policy, actions, rewards, marks))
    look, wait = "look", ["wait", "look"]
    two = [["+0.25"], ["−1.50", "+0.50"]]
    assert seen == [
        ("boil/look", "1", "Step 1look", "1", [["open"], ["open"]], [["+1.25"], ["+0.75"]], ["="]),
        ("boil/look", "1", "Step 1look", "2", [["open"], ["open"]], [["+2.50"], ["+0.75"]], ["="]),
        ("boil/look", "2", "Step 2a room", "1", [[look], wait], two, ["≠", "="]),
        ("boil/look", "2", "Step 2a room", "2", [[look], wait], [["+0.50"], two[1]], ["≠", "="]),
        ("b", "1", "Step 1x", "1", [["y"], [look]], [["−0.12"], ["−2.00"]], ["≠"]),
        ("b", "1", "Step 1x", "2", [["y"], [look]], [["−0.12"], ["−2.00"]], ["≠"]),
    ]


def test_only_steps_with_another_action_are_marked_as_disagreements(
    written: tuple[Page, str],
) -> None:
    page, _ = written
    differs = ["differs" in row["class"] for row in page.find("tr", "attempt")]
    assert differs == [False, False, True, True, True, True]


def test_hostile_text_stays_text(tmp_path: Path, written: tuple[Page, str]) -> None:
    calm, _ = written
    page, html = page_of(tmp_path, make_run(tmp_path / "hostile", text=HOSTILE))
    assert [e["tag"] for e in page.elements].count("script") == 1
    assert not [name for e in page.elements for name in e["attrs"] if name.startswith("on")]
    structure = ("table", "section", "svg", "select", "code", "tbody")
    for tag in structure:
        assert len(page.find(tag)) == len(calm.find(tag)), tag
    assert "\x1b" not in html and "\u202e" not in html
    assert "\\x1b[31m\\u202e" in page.find("tr", "observation")[0]["text"]
    assert "more characters" in page.find("tr", "observation")[0]["text"]


def test_policy_allows_the_inline_script_and_nothing_else(written: tuple[Page, str]) -> None:
    page, _ = written
    script = page.find("script")[0]["text"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = page.find("meta")[1]["attrs"]["content"]
    assert "default-src 'none'" in policy
    assert re.findall(r"script-src ([^;]*)", policy) == [f"'sha256-{digest}'"]


def test_page_names_no_address_outside_itself(written: tuple[Page, str]) -> None:
    page, html = written
    assert not re.search(r"https?:|//\w|@import|<link", html.replace("xmlns", ""))
    targets = [e["attrs"][n] for e in page.elements for n in ("href", "src") if n in e["attrs"]]
    assert targets and all(target.startswith("#") for target in targets)
    used = set(re.findall(r'url\(#(\w+)\)|xlink:href="#(\w+)"', html))
    ids = [e["attrs"]["id"] for e in page.elements if "id" in e["attrs"]]
    assert {a or b for a, b in used} <= set(ids)
    assert len(ids) == len(set(ids))


def test_figures_have_descriptions(written: tuple[Page, str]) -> None:
    page, _ = written
    described = [svg["attrs"].get("aria-label") for svg in page.find("svg")]
    assert "Score: dev score (0 to 100) over round" in described
    assert all(described)


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_report([run], tmp_path / "a.html")
    write_report([run], tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "b.html", "run"]


def test_several_runs_stand_side_by_side_and_a_missing_number_is_a_dash(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a", seed=3), make_run(tmp_path / "b", seed=4)
    results = json.loads((second / "results.json").read_text())
    results[0]["mean"] = 51.26
    (second / "results.json").write_text(json.dumps(results[:3]))
    page, _ = page_of(tmp_path, first, second)
    table = page.find("table", "scores")[0]
    sft, inverse = (
        [cell["text"].strip() for cell in page.find("td", inside=row)]
        for row in page.find("tr", inside=table)[2:]
    )
    assert "seed 3" in table["text"] and "seed 4" in table["text"]
    assert sft[0] == "46.3 (41.3 to 51.3)"
    assert sft[2].startswith("41.3") and sft[5].startswith("51.3")
    assert inverse[1] == "–" and inverse[6] == "–"


def test_unfinished_run_shows_what_is_there(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text('{"recipe": "toy", "seed": 1}')
    page, _ = page_of(tmp_path, run)
    assert "no results.json yet" in page.find("p", "note")[0]["text"]
    row = '{"stage": "inverse", "round": 0, "phase": "dev", "score": 12.5}\n'
    (run / "metrics.jsonl").write_text(row + '{"stage": "inv')
    page, _ = page_of(tmp_path, run)
    assert "last line of metrics.jsonl is cut off" in page.find("p", "note")[0]["text"]
    assert "12.5" in page.find("section")[0]["text"]


def test_page_says_when_it_leaves_trajectories_and_episodes_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    many = [practised(f"t{k}", 0, "a", 0.5, ("a", 0.5)) for k in range(60)]
    write_jsonl(run / "practice/inverse-round1.jsonl", many)
    solved = [expert(f"i{k}", ("o", "a"), score=1.0 * k, success=k > 50) for k in range(60)]
    write_jsonl(run / "episodes/sft-test.jsonl", solved[::-1])
    page, _ = page_of(tmp_path, run)
    notes = [note["text"] for note in page.find("p", "note")]
    assert any("first 40 of 62 practised trajectories" in note for note in notes)
    assert any("20 of 60 episodes" in note for note in notes)
    items = [e["text"] for e in page.find("th", inside=page.find("table", "episodes")[0])]
    assert items[5:8] == ["i0", "i1", "i2"]


def test_rewards_that_are_all_but_equal_are_drawn(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    steps = [practised("b", 0, "y", 0.5, ("y", 0.5 + 1e-16 * k), ("z", 0.5)) for k in range(3)]
    for k in (1, 2):
        write_jsonl(run / f"practice/inverse-round{k}.jsonl", steps)
    page, _ = page_of(tmp_path, run)
    assert len(page.find("svg", inside=page.find("section")[2])) == 1


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("config.json", "{", r"config\.json: the file: Invalid JSON"),
        ("config.json", '{"seed": "many"}', r"config\.json: seed: .*integer"),
        ("results.json", '[{"method": "sft"}]', r"results\.json: 0\.task: Field required"),
        ("metrics.jsonl", 'oops\n{"stage": "sft"}', r"metrics\.jsonl:1: expected an object with"),
        (
            "metrics.jsonl",
            '{"stage": "a", "phase": "b", "round": 0, "loss": 1' + "0" * 400 + "}\n{}",
            r"metrics\.jsonl:1: expected an object with",
        ),
        ("practice/inverse-round1.jsonl", "{}", r"inverse-round1\.jsonl:1: "),
        ("episodes/sft-test.jsonl", "[]", r"sft-test\.jsonl:1: "),
    ],
)
def test_damaged_part_is_one_line_that_names_the_file(
    tmp_path: Path, name: str, content: str, complaint: str
) -> None:
    run = make_run(tmp_path / "run")
    (run / name).write_text(content)
    (tmp_path / "report.html").write_text("the old page")
    with pytest.raises(ReportError, match=complaint) as raised:
        write_report([run], tmp_path / "report.html")
    assert "\n" not in str(raised.value)
    assert (tmp_path / "report.html").read_text() == "the old page"


def test_folders_that_are_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"nowhere: no such folder; expected a run folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(ReportError, match=r"not a run folder; expected config\.json"):
        read_run(tmp_path)
    run = make_run(tmp_path / "run")
    with pytest.raises(ReportError, match="is a folder; expected the name of an HTML file"):
        write_report([run], tmp_path)


def test_report_needs_no_torch() -> None:
    code = "import sys, stepagent.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.filterwarnings("error")
def test_rewards_near_the_end_of_all_numbers_are_drawn_without_a_warning() -> None:
    plot = reward_histogram([1e308, -1e308], [0.0, 1e308], title="inverse")
    assert plot.startswith("<svg")
