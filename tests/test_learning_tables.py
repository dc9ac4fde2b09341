"""The published results: rows, tables made of them, and pages that hold these tables."""

import json
from pathlib import Path

import learning
import learning_tables as tables
import pytest

from stepagent.experiment.recipes import RECIPES
from stepagent.experiment.run import to_json


def finished_run(
    folder: Path,
    score: float,
    seed: int,
    recipe: str = "smoke",
    detours: int | None = None,
    **changes: object,
) -> Path:
    """What a finished run of two methods and the novice leaves behind."""
    folder.mkdir()
    config = to_json(RECIPES[recipe])
    if detours is not None:
        config["detours"] = detours
    config["inverse"] |= changes
    about = {"recipe": recipe, "seed": seed, "config": config, "protocol": {"task": "boxes"}}
    (folder / "config.json").write_text(json.dumps(about))
    results = [
        {"method": method, "metric": metric, "mean": value, "n": 7}
        for method, values in {"sft_more": (50.0, 0.5), "inverse": (score, 0.75)}.items()
        for metric, value in zip(("score", "success"), values, strict=True)
    ]
    (folder / "results.json").write_text(json.dumps(results))
    for method, number in {"sft_more": 0, "inverse": 1}.items():
        unit = folder / "units" / f"{method}-test"
        unit.mkdir(parents=True)
        (unit / "best_round.json").write_text(str(number))
    rows = [
        {"stage": "inverse", "round": 1, "phase": "explore", "env_steps": 30},
        {"stage": "inverse", "round": 1, "phase": "ppo", "tokens": 400},
        {"stage": "inverse", "round": 1, "phase": "discriminator", "tokens": 600},
        {"stage": "inverse", "round": 1, "phase": "dev", "js_divergence": 0.25},
        {"stage": "inverse", "round": 1, "phase": "dev", "score": 40.0},
        {"stage": "inverse", "round": 2, "phase": "explore", "env_steps": 30},  # measures only
        {"stage": "inverse", "round": 2, "phase": "discriminator", "tokens": 600},
        {"stage": "sft_more", "round": 1, "phase": "train", "tokens": 500},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_rows_say_what_a_method_reached_and_took(tmp_path: Path) -> None:
    rows = list(learning.rows_of(finished_run(tmp_path / "run", 60.0, 3)))
    assert all(set(row) == {*learning.KEY, "value", "episodes", "env_steps", "train_tokens"}
               for row in rows)  # fmt: skip
    (score,) = [r for r in rows if (r["method"], r["metric"]) == ("inverse", "score")]
    assert score == {
        "recipe": "smoke", "task": "boxes", "policy": "tiny", "method": "inverse", "seed": 3,
        "split": "test", "metric": "score", "value": 60.0, "episodes": 7, "env_steps": 30,
        "train_tokens": 1000,
    }  # fmt: skip
    tested = {r["method"]: r["value"] for r in rows if r["metric"] == "best_round"}
    assert tested == {"sft_more": 0, "inverse": 1}
    on_dev = {r["metric"]: r["value"] for r in rows if r["split"] == "dev"}
    assert on_dev == {"js_divergence, round 1": 0.25, "score, round 1": 40.0}
    assert {r["train_tokens"] for r in rows if r["method"] == "sft_more"} == {500}


def test_a_method_is_named_by_its_own_changes(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", 60.0, 0, states="rollout")
    methods = {row["method"] for row in learning.rows_of(run)}
    assert methods == {"sft_more", "inverse states=rollout"}
    # Only who practises takes detours.
    run = finished_run(tmp_path / "detours", 60.0, 0, detours=1)
    methods = {row["method"] for row in learning.rows_of(run)}
    assert methods == {"sft_more", "inverse detours=1"}


def test_a_model_on_disk_is_known_by_its_name_not_by_where_it_lies(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", 60.0, 0)
    about = json.loads((run / "config.json").read_text())
    about["config"]["model"] = "/home/someone/models/SmolLM2-135M-Instruct"
    (run / "config.json").write_text(json.dumps(about))
    rows = list(learning.rows_of(run))
    assert {row["policy"] for row in rows} == {"SmolLM2-135M-Instruct"}
    assert {row["method"] for row in rows} == {"sft_more", "inverse"}


def test_a_table_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "RESULTS", tmp_path / "results" / "learning.jsonl")
    runs = [finished_run(tmp_path / f"run{s}", score, s) for s, score in enumerate((58.0, 62.0))]
    learning.add(runs)
    learning.add([*runs, tmp_path / "unfinished"])  # again: nothing is there twice
    lines = tables.results(learning.read()).splitlines()
    # Differences 8 and 12: mean 10, standard error 2, t(0.975, 1 degree) = 12.706.
    assert lines[0].startswith("| method | seeds | rounds tested | score")
    assert lines[2] == (
        "| SFT, continued | 2 | 0 0 | 50.0 (50.0 to 50.0) | 50.0 | - | - | 0 | 0.00 M |"
    )
    assert lines[3] == (
        "| Inverse reflection | 2 | 1 1 | 60.0 (34.6 to 85.4) | 75.0 "
        "| +10.0 (-15.4 to +35.4) | - | 30 | 0.00 M |"
    )
    assert tables.summary(learning.read()).splitlines()[2:] == [
        "| SFT, continued | 2 | 50.0 (50.0 to 50.0) | - |",
        "| Inverse reflection | 2 | 60.0 (34.6 to 85.4) | +10.0 (-15.4 to +35.4) |",
    ]


def test_other_settings_stand_beside_the_recipes_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "RESULTS", tmp_path / "learning.jsonl")
    learning.add([finished_run(tmp_path / f"run{s}", 60.0 + s, s) for s in range(2)])
    learning.add([finished_run(tmp_path / "other", 57.0, 1, states="rollout")])
    plain, variant = tables.ablations(learning.read()).splitlines()[2:]
    assert plain.startswith("| Inverse reflection | 2 | 40.0 | 60.5 (")
    # Of seed 1 only: 57 for 61.
    assert variant == ("| Inverse reflection, states=rollout | 1 | 40.0 | 57.0 | 75.0 | -4.0 |")
    assert "states" not in tables.results(learning.read())


def test_the_best_baseline_is_one_with_all_seeds() -> None:
    def row(method: str, seed: int, value: float) -> dict[str, object]:
        about = {"recipe": "smoke", "policy": "tiny", "split": "test", "metric": "score"}
        return {**about, "method": method, "seed": seed, "value": value}

    scores = {"sft_more": (50.0, 52.0), "rft": (60.0,), "ppo": (53.0, 51.0), "implicit": (90, 90)}
    rows = [row(m, seed, v) for m, values in scores.items() for seed, v in enumerate(values)]
    assert tables.Panel(rows).best_baseline == "ppo"  # RFT's only seed is an easy one


def test_rounds_are_means_over_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "RESULTS", tmp_path / "learning.jsonl")
    learning.add([finished_run(tmp_path / f"run{s}", 60.0, s) for s in range(2)])
    (line,) = tables.rounds(learning.read()).splitlines()[2:]
    assert line == "| Inverse reflection | 1 | 40.000 | - | - | 0.250 |"


def test_tasks_stand_below_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "RESULTS", tmp_path / "learning.jsonl")
    learning.add([finished_run(tmp_path / f"run{s}", 60.0 + s, s) for s in range(2)])
    learning.add([finished_run(tmp_path / "demo", 70.0, 0, recipe="scienceworld-demo")])
    page = "<!-- tasks: smoke,scienceworld-demo tiny --><!-- end -->"
    two, one = tables.filled(page, learning.read()).splitlines()[3:-1]
    # The fake run of SFT has no figures of dev, as if it had been stopped in its first round.
    sft, inverse = "50.0 (50.0 to 50.0), stopped", "60.5 (54.1 to 66.9)"
    assert two == f"| boxes | 2 | 7 | - | {sft} | - | {inverse} | 0.250 |"
    assert one == "| boxes | 1 | 7 | - | 50.0, stopped | - | 70.0 | 0.250 |"


def test_the_headline_has_both_tasks_and_a_page_of_a_method_its_own_rows() -> None:
    def row(recipe: str, task: str, method: str, seed: int, value: float) -> dict[str, object]:
        about = {"recipe": recipe, "task": task, "policy": "tiny", "split": "test"}
        cost = {"episodes": 7, "env_steps": 30, "train_tokens": 400}
        return {**about, **cost, "method": method, "seed": seed, "metric": "score", "value": value}

    scores = {
        ("a", "scienceworld"): {"sft_more": (50.0, 50.0), "implicit": (58.0, 62.0)},
        ("b", "alfworld"): {"sft_more": (40.0, 40.0)},
    }
    rows = [
        row(recipe, task, method, seed, value)
        for (recipe, task), own in scores.items()
        for method, values in own.items()
        for seed, value in enumerate(values)
    ]
    rows += [{**r, "metric": "success", "value": 0.5} for r in rows]
    lines = {line.split(" | ")[0]: line for line in tables.headline(rows).splitlines()}
    assert lines["| Implicit reflection"] == (
        "| Implicit reflection | 60.0 (34.6 to 85.4) | +10.0 (-15.4 to +35.4) | - | - |"
    )
    assert tables.of_method(rows, "implicit").splitlines()[2:] == [
        "| ScienceWorld | 2 | 60.0 (34.6 to 85.4) | 50.0 | +10.0 (-15.4 to +35.4) | 30 |"
    ]


def test_pages_hold_the_tables_of_the_published_rows() -> None:
    for page in learning.PAGES:
        if page.exists():
            text = page.read_text()
            assert tables.filled(text, learning.read()) == text, (
                f"{page.name}: run python benchmarks/learning.py write"
            )


def test_a_table_is_put_between_its_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "RESULTS", tmp_path / "learning.jsonl")
    learning.add([finished_run(tmp_path / "run", 60.0, 0)])
    page = "before\n<!-- results: smoke tiny -->\nold\n<!-- end -->\nafter\n"
    filled = tables.filled(page, learning.read())
    assert filled.startswith("before\n<!-- results: smoke tiny -->\n| method | seeds |")
    assert filled.endswith("|\n<!-- end -->\nafter\n")
    assert tables.filled(filled, learning.read()) == filled


def test_a_mark_of_no_table_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"result: smoke tiny.*expected one of results"):
        tables.filled("<!-- result: smoke tiny -->\nold\n<!-- end -->", [])
