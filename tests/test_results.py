"""results.json and summary.md: right numbers, and plain words when reflection does not help."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from stepagent.experiment.results import interval_text, write_results
from stepagent.experiment.run import Run
from stepagent.experiment.run_json import RunError, write_json
from stepagent.statistics import Interval
from stepagent.types import Step, Trajectory


def episode(item: int, score: float | None) -> Trajectory:
    return Trajectory(
        id=f"near/{item}",
        task="boxes",
        instruction="Fetch the cup.",
        steps=(Step(observation="A box.", action="open it"),),
        score=score,
        success=score == 100,
    )


def summary_of(
    folder: Path,
    scores: Mapping[str, Sequence[float | None]],
    rounds: Mapping[str, int] | None = None,
) -> str:
    """The summary of a run whose methods had these test scores."""
    with Run(folder, {"seed": 7}, resume=True) as run:
        for method, own in scores.items():
            episodes = [episode(i, score) for i, score in enumerate(own)]
            with run.unit(f"{method}-test") as unit:
                run.write_records(f"episodes/{method}-test.jsonl", episodes)
                write_json(unit / "best_round.json", (rounds or {}).get(method, 1))
                write_json(unit / "metrics.json", {"f1": 0.625} if method == "sft" else {})
        write_results(7, run)
    return (folder / "summary.md").read_text()


def test_results_hold_mean_interval_and_count_of_each_method_and_metric(tmp_path: Path) -> None:
    summary_of(tmp_path, {"sft": [0, 50, 100, 50], "implicit": [100, 100, 100, 100]})
    rows = json.loads((tmp_path / "results.json").read_text())
    keys = {"method", "task", "split", "metric", "mean", "low", "high", "n", "seed"}
    assert all(row.keys() == keys for row in rows)
    assert {(r["task"], r["split"], r["n"], r["seed"]) for r in rows} == {("boxes", "test", 4, 7)}
    means = {(row["method"], row["metric"]): row["mean"] for row in rows}
    assert means == {
        ("sft", "score"): 50,
        ("sft", "success"): 0.25,
        ("sft", "f1"): 0.625,
        ("implicit", "score"): 100,
        ("implicit", "success"): 1,
    }
    shared = [row for row in rows if row["metric"] != "f1"]
    assert all(row["low"] <= row["mean"] <= row["high"] for row in shared)
    assert [row["low"] for row in rows if row["metric"] == "f1"] == [None]
    assert "\nSFT (start): f1 0.625.\n" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize(
    ("implicit", "sentence"),
    [
        ([0, 0, 50, 0, 0, 0], "Implicit reflection does NOT beat SFT (start) (-33.3 points"),
        ([0, 50, 50, 50, 50, 50], "Implicit reflection does NOT beat SFT (start) (+0.0 points"),
        (
            [100, 90, 100, 90, 100, 90],
            "Implicit reflection ends clearly above SFT (start) (+53.3 points",
        ),
        (
            [0, 50, 50, 50, 50, 90],
            "Implicit reflection ends above SFT (start), but this may be chance",
        ),
    ],
)
def test_the_summary_says_plainly_whether_reflection_beats_sft(
    tmp_path: Path, implicit: list[float], sentence: str
) -> None:
    assert sentence in summary_of(tmp_path, {"sft": [0, 50, 50, 50, 50, 50], "implicit": implicit})


def test_the_summary_compares_with_the_control_too(tmp_path: Path) -> None:
    scores = {"sft": [0.0, 10, 0, 10], "sft_more": [90.0, 100, 90, 100], "inverse": [50.0] * 4}
    text = summary_of(tmp_path, scores)
    assert "Inverse reflection ends clearly above SFT (start) (" in text
    assert "Inverse reflection does NOT beat SFT, continued (-45.0 points" in text


def test_items_are_paired_by_their_names_not_by_their_order(tmp_path: Path) -> None:
    with Run(tmp_path, {}, resume=True) as run:
        for method, order in (("sft", [0, 1, 2, 3]), ("implicit", [3, 2, 1, 0])):
            episodes = [episode(i, 20.0 * i) for i in order]
            with run.unit(f"{method}-test") as unit:
                run.write_records(f"episodes/{method}-test.jsonl", episodes)
                write_json(unit / "best_round.json", 1)
                write_json(unit / "metrics.json", {})
        write_results(0, run)
    text = (tmp_path / "summary.md").read_text()
    assert "(+0.0 points, paired 95 % interval +0.0 to +0.0)" in text


def test_an_episode_without_a_score_is_left_out_of_means_and_pairs_alike(tmp_path: Path) -> None:
    scores = {"sft": [50.0, None, 40.0], "implicit": [60.0, 90.0, 50.0]}
    text = summary_of(tmp_path, scores)
    assert "45.0 (" in text  # the mean of two, not of three
    assert "Implicit reflection ends clearly above SFT (start) (+10.0 points" in text


def test_the_summary_says_when_no_round_was_better_than_the_novice(tmp_path: Path) -> None:
    scores = {"sft": [0.0, 50], "implicit": [0.0, 50]}
    text = summary_of(tmp_path, scores, rounds={"sft": 0, "implicit": 0})
    assert "Implicit reflection: no round beat the novice on dev" in text
    assert "SFT: no round" not in text


def test_one_item_is_too_few_for_an_interval(tmp_path: Path) -> None:
    text = summary_of(tmp_path, {"sft": [0.0], "implicit": [50.0]})
    assert "may be chance (+50.0 points, too few items for an interval)" in text


def test_an_interval_is_shown_as_far_as_it_is_known() -> None:
    assert interval_text(Interval(None, None, None, 0)) == "-"
    assert interval_text(Interval(12.34, None, None, 1)) == "12.3"
    assert interval_text(Interval(0.5, 0.25, 0.75, 9), percent=True) == "50.0 (25.0 to 75.0) %"


@pytest.mark.parametrize("change", ["shorter", "missing", "not listed"])
def test_results_are_not_made_of_episodes_that_were_changed(tmp_path: Path, change: str) -> None:
    path = tmp_path / "episodes" / "sft-test.jsonl"
    with Run(tmp_path, {}, resume=True) as run:
        with run.unit("sft-test") as unit:
            if change != "not listed":
                run.write_records("episodes/sft-test.jsonl", [episode(i, 50) for i in range(3)])
            write_json(unit / "best_round.json", 0)
            write_json(unit / "metrics.json", {})
        if change == "missing":
            path.unlink()
        else:
            path.write_text(episode(0, 75).model_dump_json() + "\n")
        with pytest.raises(RunError, match=r"^\S+/episodes/sft-test\.jsonl: [^\n]+$"):
            write_results(0, run)
    assert not (tmp_path / "results.json").exists()
