"""Baselines in a whole run on the world of boxes: what they play, what they learn from."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fakes import BoxWorld, demonstrations, lesson_of, random_policy, rendered
from stepagent.algorithms.trajectory_dpo import TrajectoryDPOConfig
from stepagent.experiment.config import LearntMethod, PromptingConfig
from stepagent.experiment.novice import take_novice
from stepagent.experiment.pipeline import train
from stepagent.experiment.run import Run
from stepagent.learners.baselines import ETO, RFT, SPIN, RFTConfig
from stepagent.model.updates import Metrics
from stepagent.practice import Lesson
from stepagent.rendering.renderer import RenderedTrajectory
from stepagent.trajectories import read_jsonl
from stepagent.types import Trajectory
from test_pipeline import CONFIG, Killed, assert_same, dies_at_row, finish, open_run, rows_of

BASELINES: tuple[LearntMethod, ...] = ("step_dpo", "rft", "eto", "spin", "ppo", "grpo")
EVERY = replace(
    CONFIG,
    prompting=PromptingConfig(methods=("zero_shot", "react"), few_shot=1, max_tokens=6),
    methods=BASELINES,
)
EXPLORING = {"rft", "eto", "spin", "ppo", "grpo"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all baselines that nothing disturbed."""
    return finish(tmp_path_factory.mktemp("runs") / "whole", EVERY)


def test_every_baseline_is_run_and_tested(whole: Path) -> None:
    rows = json.loads((whole / "results.json").read_text())
    assert {row["method"] for row in rows} == {"zero_shot", "react", "sft", *BASELINES}
    start = (whole / "units" / "sft" / "model.safetensors").read_bytes()
    for method in BASELINES:
        weights = whole / "units" / f"{method}-round1" / "model.safetensors"
        assert weights.read_bytes() != start, method


def test_prompting_is_the_model_before_sft_with_examples_or_none(whole: Path) -> None:
    for method, count in (("zero_shot", 0), ("react", 1)):
        episodes = read_jsonl(whole / "episodes" / f"{method}-test.jsonl", Trajectory)
        panel = json.loads((whole / "units" / "data" / "panels.json").read_text())["test"]
        assert [e.id for e in episodes] == panel
        assert {len(e.metadata["examples"]) for e in episodes} == {count}
        assert {e.metadata["model"] for e in episodes} == {"base"}


def test_a_prompt_that_does_not_fit_stops_itself_and_nothing_else(
    whole: Path, tmp_path: Path
) -> None:
    prompting = PromptingConfig(methods=("react",), few_shot=2, max_tokens=6)
    config = replace(EVERY, methods=(), prompting=prompting)
    with open_run(tmp_path / "run", config) as run:
        take_novice(run, whole)
        train(config, run, BoxWorld())
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {row["method"] for row in rows} == {"sft"}
    summary = (tmp_path / "run" / "summary.md").read_text()
    assert "Prompting, ReAct was stopped: " in summary
    assert "context of 512" in summary


def test_what_a_baseline_plays_is_counted(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    explored = [row for row in rows if row["phase"] == "explore"]
    # 12 items and two rounds. Whoever plays an item four times plays a quarter of the items.
    assert [(row["stage"], row["round"], row["episodes"]) for row in explored] == [
        (method, number, 12) for method in BASELINES if method in EXPLORING for number in (1, 2)
    ]
    assert all(row["env_steps"] >= row["episodes"] for row in explored)


@pytest.mark.parametrize("method", ["ppo", "eto"])
def test_a_baseline_that_was_cut_off_resumes_to_the_same_files(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    numbers = list(rows_of(whole, method, "explore"))
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Run, "log", dies_at_row(numbers[1]))
        finish(tmp_path / "run", EVERY)
    assert_same(finish(tmp_path / "run", EVERY, resume=True), whole)


def played(expert: RenderedTrajectory, score: float, *, same: bool = False) -> RenderedTrajectory:
    """An episode on the expert's item; its actions say something more, or are the same."""
    steps = expert.trajectory.steps
    if not same:
        steps = tuple(s.model_copy(update={"action": f"{s.action} again"}) for s in steps)
    trajectory = expert.trajectory.model_copy(
        update={"score": score, "success": score == 100, "steps": steps}
    )
    actions = expert.actions if same else tuple((9, *ids) for ids in expert.actions)
    return replace(expert, trajectory=trajectory, actions=actions)


def lesson(scores: list[float]) -> Lesson:
    own = [
        replace(d, trajectory=d.trajectory.model_copy(update={"score": 100.0, "success": True}))
        for d in rendered(random_policy(), demonstrations()[: len(scores)])
    ]
    explored = [played(d, score) for d, score in zip(own, scores, strict=True)]
    return lesson_of(own, explored=explored)


def test_eto_learns_from_episodes_that_are_worse_and_spin_from_all_that_differ() -> None:
    own = lesson([0.0, 50.0, 100.0])
    same = replace(own, explored=[played(d, 100.0, same=True) for d in own.demonstrations])
    for learner, number in ((ETO(TrajectoryDPOConfig()), 2), (SPIN(TrajectoryDPOConfig()), 3)):
        for studied, pairs in ((own, number), (same, 0)):
            policy, logged = random_policy(), list[Metrics]()
            before = [p.detach().clone() for p in policy.parameters()]
            learner.learn(policy, studied, seed=0, log=lambda _, row: logged.append(row))  # noqa: B023
            assert logged[0] == {"pairs": pairs}
            moved = not all(map(torch.equal, before, policy.parameters()))
            assert moved == (pairs > 0)


def test_rft_clones_each_success_once() -> None:
    own = lesson([100.0, 0.0])
    same = [played(d, 100.0, same=True) for d in own.demonstrations]
    twice = replace(own, explored=[*own.explored, *own.explored, *same])
    logged = list[Metrics]()
    RFT(RFTConfig()).learn(random_policy(), twice, seed=0, log=lambda _, row: logged.append(row))
    assert logged[0] == {"successes": 1}
