"""Detours: the agent's mistakes are made in the environment, and the expert goes on behind them."""

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from corridor import CorridorEnv, corridor_task
from fakes import (
    BoxWorld,
    demonstrations,
    lesson_of,
    novice,
    practised_with,
    random_policy,
    rendered,
)
from stepagent import detours
from stepagent.algorithms.discriminator import HeldOut
from stepagent.algorithms.sft import SFTConfig
from stepagent.detours import Detours, take_detours
from stepagent.experiment.config import SettingsError
from stepagent.experiment.run import Run
from stepagent.inspection import StepTree, path_logprobs, step_tree
from stepagent.learners.inverse import Inverse
from stepagent.learners.sft import DAggerConfig, MoreSFT
from stepagent.model.generation import Decoding
from stepagent.model.policy import Policy
from stepagent.model.updates import OptimizerConfig
from stepagent.rendering.renderer import RenderedTrajectory, Renderer
from stepagent.statistics import paired_difference
from stepagent.tasks.base import EnvironmentLost, Task
from stepagent.tasks.tries import MAX_TRIES
from stepagent.trajectories import read_trajectories
from stepagent.types import PracticedStep, Trajectory
from test_pipeline import CONFIG, Killed, assert_same, dies_at_row, finish, rows_of
from test_renderer import REWRITING

SHORT = Decoding(max_new_tokens=8)
WEST, EAST, TAKE, CANNOT = "go west", "go east", "take", "You cannot do that."


def says(monkeypatch: pytest.MonkeyPatch, *turns: Sequence[str]) -> None:
    """Lets the agent say these actions in the states of all demonstrations, turn by turn."""
    scripts = iter(turns)

    def inspect(
        policy: Policy, found: Sequence[RenderedTrajectory], *_: Any, **__: Any
    ) -> list[PracticedStep]:
        trajectories = [d.trajectory for d in found]
        actions = cycle([[text] for text in next(scripts)])
        wanted = sum(len(t.steps) for t in trajectories)
        return practised_with(policy, trajectories, [next(actions) for _ in range(wanted)])

    monkeypatch.setattr(detours, "inspect", inspect)


def detour(
    policy: Policy, task: Task, expert: Sequence[Trajectory], *, in_a_row: int = 1
) -> Detours:
    own = rendered(policy, expert)
    return take_detours(policy, task, own, SHORT, in_a_row=in_a_row, seed=0)


def to_the_treasure() -> Trajectory:
    """Twice west, to the wall; three times east, and there it is."""
    expert = corridor_task().expert("train/6")
    assert [step.action for step in expert.steps] == [WEST, WEST, EAST, EAST, EAST, TAKE]
    return expert


def test_a_mistake_stays_where_the_demonstration_goes_on_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, expert = random_policy(), to_the_treasure()
    # Going east first leads elsewhere: after the expert's west it is not where it was. West at the
    # wall, where the expert turns, changes nothing, nor does taking dust.
    says(monkeypatch, [EAST, WEST, WEST, TAKE, EAST, TAKE])
    found = detour(policy, corridor_task(), [expert])
    (walked,) = found.demonstrations
    seen = [step.observation for step in expert.steps]
    assert [(s.observation, s.action) for s in walked.trajectory.steps] == [
        (seen[0], WEST), (seen[1], WEST),
        (seen[2], EAST), (seen[2], EAST),
        (seen[3], EAST), (CANNOT, EAST),
        (seen[4], EAST), (seen[5], TAKE),
    ]  # fmt: skip
    assert (found.taken, found.refused) == (2, 1)
    # East and west, and then it is not in the first room. Eight in the end.
    assert found.env_steps == 2 + 8
    assert walked.trajectory.id == expert.id


def test_every_turn_of_every_seed_draws_other_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, expert, seeds = random_policy(), to_the_treasure(), list[int]()
    plain = detours.inspect

    def inspect(*arguments: Any, seed: int) -> list[PracticedStep]:
        seeds.append(seed)
        return plain(*arguments, seed=seed)

    monkeypatch.setattr(detours, "inspect", inspect)
    own = rendered(policy, [expert])
    for seed in (0, 1, 1000, 1001):
        take_detours(policy, corridor_task(), own, SHORT, in_a_row=2, seed=seed)
    assert len(set(seeds)) == 8


@pytest.mark.parametrize("shape", [None, *REWRITING])
def test_the_history_is_what_was_done_and_the_answer_what_the_expert_does(
    shape: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, expert = random_policy(), to_the_treasure()
    if shape is not None:
        tokenizer = deepcopy(policy.renderer.tokenizer)
        tokenizer.chat_template = REWRITING[shape]
        policy = Policy(policy.layers, Renderer(tokenizer))
        assert not policy.renderer.is_stable
    says(monkeypatch, [WEST, WEST, WEST, TAKE, EAST, TAKE])
    (walked,) = detour(policy, corridor_task(), [expert]).demonstrations
    done = [WEST, WEST, WEST, EAST, TAKE, EAST, EAST, TAKE]
    steps = [
        step.model_copy(update={"action": action})
        for step, action in zip(walked.trajectory.steps, done, strict=True)
    ]
    played = policy.render(walked.trajectory.model_copy(update={"steps": tuple(steps)}))
    assert list(walked.states) == list(played.states)
    answers = [policy.renderer.action(step.action) for step in walked.trajectory.steps]
    assert list(walked.actions) == answers
    # Learners read it like any other demonstration.
    assert step_tree(walked).is_expert.tolist() == [True] * 8


def test_mistakes_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, expert = random_policy(), to_the_treasure()
    first = [WEST, WEST, TAKE, EAST, EAST, TAKE]
    second = [WEST, WEST, EAST, WEST, EAST, WEST, TAKE]
    says(monkeypatch, first, second)
    found = detour(policy, corridor_task(), [expert], in_a_row=2)
    observations = [s.observation for s in found.demonstrations[0].trajectory.steps]
    seen = [step.observation for step in expert.steps]
    # West at the wall changes nothing, two rooms later it does.
    assert observations == [*seen[:3], CANNOT, *seen[2:]]
    assert (found.taken, found.refused) == (2, 1)


def test_a_refused_mistake_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, expert = random_policy(), to_the_treasure()
    wrong_at_first = [EAST, WEST, EAST, EAST, EAST, TAKE]
    says(monkeypatch, wrong_at_first, wrong_at_first)
    found = detour(policy, corridor_task(), [expert], in_a_row=2)
    # East and west; without this mistake there is nothing to replay in either turn.
    assert (found.taken, found.refused, found.env_steps) == (0, 1, 2)


def test_an_action_that_does_what_the_experts_does_is_no_mistake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Walkable(CorridorEnv):
        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            return super().step(action.replace("walk", "go"))

    policy, expert = random_policy(), to_the_treasure()
    # At the wall, another west would change nothing: the demonstration would go on.
    says(monkeypatch, [WEST, "walk west", EAST, EAST, EAST, TAKE])
    found = detour(policy, corridor_task(Walkable), [expert])
    assert (found.taken, found.refused) == (0, 1)


def test_a_mistake_that_ends_the_episode_or_takes_too_long_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, expert = random_policy(), to_the_treasure()
    says(monkeypatch, [TAKE] * 6)
    found = detour(policy, corridor_task(step_limit=8), [expert])
    # Five times dust; two of them fit beside the six actions.
    assert (found.taken, found.refused) == (2, 3)
    assert len(found.demonstrations[0].actions) == 8


def test_a_demonstration_that_is_not_repeated_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, expert = random_policy(), to_the_treasure()
    other = expert.model_copy(update={"final_observation": "You take the lamp."})
    says(monkeypatch, [TAKE] * 6)
    found = detour(policy, corridor_task(), [other])
    assert found.demonstrations == rendered(policy, [other])
    # Once with five mistakes, once without.
    assert (found.taken, found.refused, found.not_repeated) == (0, 0, 1)
    assert found.env_steps == 11


def test_a_plain_replay_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    resets = list[str]()

    class Counted(CorridorEnv):
        def reset(self, **options: Any) -> tuple[str, dict[str, Any]]:
            resets.append("")
            return super().reset(**options)

    policy, expert = random_policy(), to_the_treasure()
    own, known = rendered(policy, [expert]), dict[str, bool]()
    says(monkeypatch, *[[EAST, WEST, WEST, TAKE, EAST, TAKE]] * 3)

    def replayed(known: dict[str, bool]) -> tuple[Detours, int]:
        resets.clear()
        found = take_detours(
            policy, corridor_task(Counted), own, SHORT, in_a_row=1, seed=0, repeated=known
        )
        return found, len(resets)

    # With three mistakes, without any, with two; then it is known that it is repeated without any.
    first, count = replayed(known)
    assert (count, known) == (3, {expert.id: True})
    assert replayed(known) == (first, 2)
    never, count = replayed({expert.id: False})
    assert (never.taken, never.not_repeated, count) == (0, 1, 0)


def test_a_longer_history_than_the_context_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, expert = random_policy(), to_the_treasure()
    whole = policy.render(expert).num_tokens
    monkeypatch.setattr(Policy, "context", whole + 60 + SHORT.max_new_tokens)
    says(monkeypatch, [TAKE] * 6)
    found = detour(policy, corridor_task(), [expert])
    assert 0 < found.taken < 5
    assert found.demonstrations[0].num_tokens <= whole + 60


def test_what_the_agent_really_does_is_repeated_without_its_mistakes() -> None:
    policy, own = novice(2), demonstrations()[::5]
    found = detour(policy, BoxWorld(), own, in_a_row=2)
    assert found.taken > len(own)
    for expert, walked in zip(own, found.demonstrations, strict=True):
        # The first state of each of the expert's steps is that of the demonstration.
        steps, firsts = list(walked.trajectory.steps), []
        for step in expert.steps:
            firsts.append(steps.pop(0))
            while steps and steps[0].observation.startswith(("Nothing happens", "You find")):
                assert steps.pop(0).action == step.action
        assert [(s.observation, s.action) for s in firsts] == [
            (s.observation, s.action) for s in expert.steps
        ]
        assert not steps


@pytest.mark.parametrize("times", [MAX_TRIES - 1, MAX_TRIES, 2 * MAX_TRIES - 1])
def test_a_lost_environment_is_tried_again(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, expert = random_policy(), demonstrations()[:1]
    says(monkeypatch, ["dance"])
    world = BoxWorld(lost={(expert[0].id, 1): times})
    assert detour(policy, world, expert).taken == len(expert[0].steps)
    assert all(env.is_closed for env in world.envs)


def test_a_demonstration_whose_environment_is_always_lost_stays_without_mistakes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, expert = random_policy(), demonstrations()[:3]
    says(monkeypatch, ["dance"], ["dance"])
    world = BoxWorld(lost={(expert[1].id, 1): 1000})
    found = detour(policy, world, expert, in_a_row=2)
    assert (found.lost, found.not_repeated) == (1, 0)
    assert found.demonstrations[1] == rendered(policy, expert)[1]
    assert found.taken == 2 * (len(expert[0].steps) + len(expert[2].steps))
    says(monkeypatch, ["dance"])
    lost = {(t.id, 1): 1000 for t in expert}
    with pytest.raises(EnvironmentLost, match=r"^all 3 environments were lost; the first: "):
        detour(policy, BoxWorld(lost=lost), expert)


def silent(*_: object) -> None:
    """Logs nothing."""


def test_learning_in_detours_is_learning_to_get_back() -> None:
    """The expert's actions are likelier in unseen detours than after as many updates without."""
    config = SFTConfig(epochs=8, batch_size=8, optimizer=OptimizerConfig(learning_rate=3e-3))
    differences = []
    for seed in range(5):
        start = novice(4)
        own = rendered(start, demonstrations()[seed % 2 :: 2])
        among = take_detours(start, BoxWorld(), own, SHORT, in_a_row=1, seed=seed)
        unseen = take_detours(
            start, BoxWorld(), rendered(start, demonstrations("test")), SHORT, in_a_row=1, seed=seed
        )
        behind = [step_tree(d) for d in unseen.demonstrations]
        found = []
        for learnt in (own, among.demonstrations):
            policy = novice(4)
            MoreSFT(config, practises=False).learn(policy, lesson_of(learnt), seed=seed, log=silent)
            found.append(float(torch.cat(path_logprobs(policy, behind)).mean()))
        differences.append(found[1] - found[0])
    interval = paired_difference(differences, [0.0] * len(differences))
    assert interval.low is not None and interval.low > 0, differences


DETOURING = replace(
    CONFIG,
    detours=1,
    methods=("sft_more", "implicit", "inverse", "dagger"),
    dagger=DAggerConfig(epochs=1, optimizer=CONFIG.sft_more.optimizer),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in detours that nothing disturbed."""
    return finish(tmp_path_factory.mktemp("runs") / "whole", DETOURING)


def test_a_run_in_detours_counts_what_it_played(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    played = [row for row in rows if row["phase"] == "detours"]
    assert {(row["stage"], row["round"]) for row in played} >= {
        (method, number) for method in ("implicit", "inverse", "dagger") for number in (1, 2)
    }
    assert "sft_more" not in {row["stage"] for row in played}
    # The novice's detours are found out once, and counted for each that learns in them.
    first = {row["env_steps"] for row in played if row["round"] == 1}
    assert len(first) == 1 and first.pop() > 12
    assert all(row["taken"] > 0 for row in played if row["round"] == 1)
    same, other = (
        (whole / "units" / f"{method}-round1" / "model.safetensors").read_bytes()
        for method in ("sft_more", "dagger")
    )
    assert same != other


def test_the_last_discriminator_judges_all_rounds_in_the_detours_of_the_novice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = []
    judge = Inverse.judge

    def watched(self: Inverse, policy: Policy, practised: Sequence[StepTree]) -> HeldOut:
        found = judge(self, policy, practised)
        discriminator = self.discriminator.model.get_input_embeddings().weight.tolist()
        experts = [
            [t.tree.tokens[n] for n in (*t.tree.ancestors(path[0]), *path[1:])]
            for t in practised
            for path, by_expert in zip(t.tree.paths, t.is_expert, strict=True)
            if by_expert
        ]
        own = policy.model.get_input_embeddings().weight.tolist()
        judged.append((found.js_divergence, discriminator, experts, own))
        return found

    monkeypatch.setattr(Inverse, "judge", watched)
    folder = finish(tmp_path / "run", replace(DETOURING, methods=("inverse",)))
    divergences, discriminators, states, policies = zip(*judged, strict=True)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = {row["round"]: row["js_divergence"] for row in rows if "js_divergence" in row}
    assert logged == dict(enumerate(divergences))
    assert discriminators[0] == discriminators[1] == discriminators[2]
    assert states[0] == states[1] == states[2]
    units = [folder / "units" / unit for unit in ("sft", "inverse-round1", "inverse-round2")]
    for own, unit in zip(policies, units, strict=True):
        assert own == load_file(unit / "model.safetensors")["model.embed_tokens.weight"].tolist()
    # Mistakes are in the histories: there are more states than the held-out trajectories have.
    held_out = read_trajectories(folder / "practice" / "demonstrations-dev.jsonl").trajectories
    assert len(states[0]) > sum(len(t.steps) for t in held_out)


def test_a_run_in_detours_resumes_to_the_same_files(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row, *_) = rows_of(whole, "inverse", "detours")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Run, "log", dies_at_row(row))
        finish(tmp_path / "run", DETOURING)
    finish(tmp_path / "run", DETOURING, resume=True)
    assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"detours": -1}, "--detours -1: expected 0 or more"),
        ({"methods": ("dagger",)}, "--methods dagger: learns in detours; expected --detours 1"),
        (
            {"detours": 1, "inverse": replace(CONFIG.inverse, states="rollout")},
            "--inverse.states rollout: the agent acts in its own states; expected --detours 0",
        ),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        replace(CONFIG, **settings)
