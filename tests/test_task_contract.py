"""What every task promises, whatever the benchmark; a new task adds one line to `CASES`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import get_args

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env

import qa_fixtures
from agentgym_server import APPS, PLAIN
from alfworld_rooms import KINDS, ready
from corridor import OldCorridorEnv, corridor_task, explorer, running
from mind2web_files import prepared
from small_shop import small_shop
from stepagent.chat.prompts import Prompt, PromptFormat
from stepagent.tasks.adapters.agentgym import AgentGymConfig, AgentGymTask, Environment
from stepagent.tasks.adapters.openenv import OpenEnvConfig, OpenEnvTask
from stepagent.tasks.alfworld.task import Alfworld, AlfworldConfig
from stepagent.tasks.base import Task
from stepagent.tasks.mind2web.task import Mind2Web, Mind2WebConfig
from stepagent.tasks.scienceworld.task import ScienceWorld
from stepagent.tasks.serving.server import serving
from stepagent.tasks.webshop.task import WebShop, WebShopConfig
from stepagent.types import Trajectory

ODD_ACTIONS = (
    "",
    " ",
    "x" * 10_000,
    "frobnicate the quux",
    "überprüfe 温度 🔥",
    "a\nb\tc\r\n",
    "\x00",
)


@dataclass(frozen=True)
class Case:
    """A task with a step limit of 12 for all, and an item whose expert is quick."""

    make: Callable[[], Task]
    item: str


def agentgym(environment: Environment) -> Case:
    """A stand-in for one of AgentGym's servers, which runs until the tests are over."""

    def make() -> Task:
        url = SERVERS.enter_context(running((APPS | PLAIN)[environment]()))
        config = AgentGymConfig(
            environment=environment, url=url, train=tuple(range(9)), test=(12,), step_limit=12
        )
        return AgentGymTask(config, expert=explorer)

    return Case(make, f"{environment}_3")


def openenv() -> Task:
    """The corridor served the OpenEnv way until the tests are over."""
    url = SERVERS.enter_context(serving(corridor_task()))
    return OpenEnvTask(OpenEnvConfig(url=url, step_limit=12), expert=explorer)


SERVERS = ExitStack()
CASES = {
    "gymnasium": Case(lambda: corridor_task(step_limit=12), "train/3"),
    "gym": Case(lambda: corridor_task(OldCorridorEnv, step_limit=12), "train/3"),
    "openenv": Case(openenv, "train/3"),
    **{f"agentgym-{environment}": agentgym(environment) for environment in get_args(Environment)},
    "scienceworld": Case(lambda: ScienceWorld(["find-plant"], step_limit=12), "find-plant/4"),
    "hotpotqa": Case(lambda: qa_fixtures.task("hotpotqa", step_limit=12), "q41"),
    "2wikimultihopqa": Case(
        lambda: qa_fixtures.task("2wikimultihopqa", paragraphs="union", step_limit=12), "q41"
    ),
    "musique": Case(lambda: qa_fixtures.task("musique", step_limit=12), "2hop__41_41"),
    "mind2web": Case(
        lambda: Mind2Web(Mind2WebConfig(top_k=20, step_limit=12), folder=prepared()),
        "train-8/1",
    ),
    "webshop": Case(lambda: WebShop(WebShopConfig(step_limit=12), small_shop()), "synthetic/2"),
    "alfworld": Case(
        lambda: Alfworld(AlfworldConfig(step_limit=12, workers=1), folder=ready()),
        f"{KINDS['heat']}/trial_test",
    ),
}
STEP_LIMIT = 12


@pytest.fixture(scope="module", autouse=True)
def servers() -> Iterator[None]:
    """Ends the servers that cases started."""
    with SERVERS:
        yield


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """One task."""
    return CASES[request.param]


@pytest.fixture(scope="module")
def task(case: Case) -> Iterator[Task]:
    """The task itself, for all tests of the module."""
    task = case.make()
    yield task
    task.close()


@pytest.fixture
def env(task: Task) -> Iterator[gym.Env[str, str]]:
    """A fresh environment."""
    env = task.make_env()
    yield env
    env.close()


@pytest.fixture(scope="module")
def expert(task: Task, case: Case) -> Trajectory:
    """The expert on the case's item."""
    return task.expert(case.item)


@pytest.mark.filterwarnings("ignore:.*alternative render modes")
def test_gymnasium_accepts_the_environment(env: gym.Env[str, str]) -> None:
    check_env(env)


def test_splits_are_fixed_and_disjoint(task: Task, case: Case) -> None:
    splits = [list(task.items(split)) for split in ("train", "dev", "test")]
    assert splits == [list(task.items(split)) for split in ("train", "dev", "test")]
    everything = [item for split in splits for item in split]
    assert len(everything) == len(set(everything))
    assert case.item in everything


def test_the_expert_replays_to_success(
    env: gym.Env[str, str], case: Case, expert: Trajectory
) -> None:
    assert (expert.id, expert.success, expert.score) == (case.item, True, 100.0)
    observation, info = env.reset(options={"item": case.item})
    assert info["instruction"] == expert.instruction
    for step in expert.steps:
        assert observation == step.observation
        observation, reward, terminated, truncated, info = env.step(step.action)
        assert reward == step.reward
    assert observation == expert.final_observation
    assert (terminated, truncated) == (True, False)
    assert (info["score"], info["success"]) == (100, True)


@pytest.mark.parametrize("prompt_format", get_args(PromptFormat))
def test_a_chat_model_can_say_what_the_expert_does(
    expert: Trajectory, prompt_format: PromptFormat
) -> None:
    prompt = Prompt(prompt_format)
    for step in expert.steps:
        for thought in ("", "Now: Action is needed."):
            said = prompt.answer(step.model_copy(update={"thought": thought})).content
            assert prompt.read(said)[1] == step.action


def test_the_expert_does_the_same_again(task: Task, case: Case, expert: Trajectory) -> None:
    assert task.expert(case.item) == expert


def test_two_environments_agree_while_they_take_turns(
    task: Task, case: Case, expert: Trajectory
) -> None:
    first, second = task.make_env(), task.make_env()
    said = [
        env.reset(seed=seed, options={"item": case.item})
        for seed, env in enumerate((first, second))
    ]
    assert said[0] == said[1]
    for action in ("frobnicate", *(step.action for step in expert.steps)):
        answer = first.step(action)
        assert second.step(action) == answer
        if answer[2] or answer[3]:
            break
    first.close()
    second.close()


def test_the_seed_chooses_the_item(env: gym.Env[str, str], task: Task) -> None:
    assert env.reset(seed=3) == env.reset(seed=3)
    assert len({env.reset(seed=seed)[0] for seed in range(6)}) > 1 or len(task.items("train")) == 1


def test_a_finished_episode_must_be_reset_and_then_starts_afresh(
    env: gym.Env[str, str], case: Case, expert: Trajectory
) -> None:
    with pytest.raises(gym.error.ResetNeeded):
        env.step("look")
    start = env.reset(options={"item": case.item})
    for step in expert.steps:
        env.step(step.action)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(expert.steps[-1].action)
    assert env.reset(options={"item": case.item}) == start


@pytest.mark.parametrize("action", ODD_ACTIONS, ids=lambda action: repr(action[:12]))
def test_any_text_is_an_action_and_repeats(env: gym.Env[str, str], case: Case, action: str) -> None:
    answers = []
    for _ in range(2):
        env.reset(options={"item": case.item})
        answers.append([env.step(action), env.step(action)])
    assert answers[0] == answers[1]
    observation, _, terminated, truncated, info = answers[0][0]
    assert env.observation_space.contains(observation)
    assert not (terminated or truncated)
    assert 0 <= info["score"] < 100
    assert info["success"] is False


def test_only_the_beginning_of_an_endless_action_is_played(
    env: gym.Env[str, str], case: Case
) -> None:
    env.reset(options={"item": case.item})
    assert len(env.step("[" * 2_000_000)[0]) < 100_000


def test_the_step_limit_truncates_and_does_not_terminate(
    env: gym.Env[str, str], case: Case
) -> None:
    env.reset(options={"item": case.item})
    ends = [env.step("frobnicate")[2:4] for _ in range(STEP_LIMIT)]
    assert ends == [(False, False)] * (STEP_LIMIT - 1) + [(False, True)]


def test_unknown_items_and_splits_are_refused(env: gym.Env[str, str], task: Task) -> None:
    with pytest.raises(ValueError, match="no-such-item"):
        env.reset(options={"item": "no-such-item"})
    with pytest.raises(ValueError, match="no-such-split"):
        task.items("no-such-split")  # type: ignore[arg-type]


def test_a_task_works_again_after_close(case: Case) -> None:
    task = case.make()
    first = task.make_env().reset(options={"item": case.item})
    task.close()
    task.close()
    assert task.make_env().reset(options={"item": case.item}) == first
    task.close()


def test_facts_are_plain_values_for_the_report(task: Task) -> None:
    facts = task.facts()
    assert facts["task"] == task.name
    assert all(isinstance(key, str) for key in facts)
