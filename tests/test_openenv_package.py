"""OpenEnv's own client on our server, its validator on it, and our client on its server.

The `openenv` package and ours cannot share an environment (see docs/tasks-adapters.md), so these
tests are for one of its own.
"""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from corridor import ITEMS, Corridor, corridor_task, explorer, running
from stepagent.tasks.adapters.openenv import OpenEnvConfig, OpenEnvTask
from stepagent.tasks.adapters.scoring import Scoring
from stepagent.tasks.serving.server import serving

pytest.importorskip("openenv")

from openenv import GenericEnvClient
from openenv.cli._validation import validate_running_environment
from openenv.core.env_server.http_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State


def test_its_client_plays_our_server() -> None:
    with serving(corridor_task()) as url, GenericEnvClient(base_url=url).sync() as client:
        for item in ITEMS["dev"]:
            original = corridor_task().expert(item)
            result = client.reset(item=item, episode_id="e")
            assert result.observation["instruction"] == original.instruction
            for step in original.steps:
                assert (result.observation["text"], result.done) == (step.observation, False)
                result = client.step({"text": step.action})
                assert result.reward == step.reward
            assert (result.observation["text"], result.done) == (original.final_observation, True)
            assert result.metadata["score"] == 100
            assert result.metadata["success"] is True
            assert client.state() == {
                "episode_id": "e", "step_count": len(original.steps), "item": item
            }  # fmt: skip
        with pytest.raises(RuntimeError, match=r"call reset first \(code: EXECUTION_ERROR\)"):
            client.step({"text": "take"})


def test_its_clients_play_at_the_same_time() -> None:
    async def play(url: str, item: str) -> Any:
        async with GenericEnvClient(base_url=url) as client:
            result, act = await client.reset(item=item), explorer(item)
            while not result.done:
                result = await client.step({"text": act(result.observation["text"])})
            return result.metadata["score"]

    async def play_all(url: str) -> list[Any]:
        return await asyncio.gather(*(play(url, item) for item in ITEMS["train"]))

    with serving(corridor_task()) as url:
        assert asyncio.run(play_all(url)) == [100] * 8


def test_it_is_told_when_the_server_is_full() -> None:
    with (
        serving(corridor_task(), max_sessions=1) as url,
        GenericEnvClient(base_url=url).sync() as first,
        GenericEnvClient(base_url=url).sync() as second,
    ):
        first.reset()
        with pytest.raises(RuntimeError, match="CAPACITY_REACHED"):
            second.reset()


def test_its_validator_finds_no_fault_with_our_server() -> None:
    with serving(corridor_task()) as url:
        report = validate_running_environment(url, timeout_s=60)
    assert report["passed"], report
    assert report["mode"] == "simulation"
    assert report["summary"]["failed_criteria"] == []


def test_the_class_for_trl_in_the_docs_plays_our_server() -> None:
    docs = Path(__file__).parent.parent / "docs" / "tasks-adapters.md"
    code = re.search(r"```python\n(from openenv import .*?)```", docs.read_text(), re.DOTALL)
    assert code is not None
    with serving(corridor_task()) as url:
        found: dict[str, Any] = {}
        exec(code[1].replace("http://127.0.0.1:8000", url), found)
        player, act = found["Player"](), explorer("train/1")
        observation = player.reset(item="train/1", prompt=[])
        assert observation.startswith("Take the treasure.\n\nRoom ")
        observation = observation.split("\n\n")[1]
        while player.get_reward() < 1:
            observation = player.act(act(observation))
        assert observation == "You take the treasure."
        player.client.close()


class Say(Action):
    message: str


class Heard(Observation):
    echoed: str
    goal: str = "Take the treasure."


class CorridorEnvironment(Environment[Say, Heard, State]):
    """The corridor written for OpenEnv."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed: Any = None, episode_id: Any = None, **options: Any) -> Heard:
        self.world = Corridor(100 + options["index"] if "index" in options else seed)
        return Heard(echoed=self.world.look())

    def step(self, action: Say, timeout_s: Any = None, **options: Any) -> Heard:
        if action.message == "break":
            raise RuntimeError("broken")
        observation, reward, is_over = self.world.act(action.message)
        return Heard(echoed=observation, reward=reward, done=is_over, metadata={"won": is_over})

    @property
    def state(self) -> State:
        return State()

    def list_splits(self) -> list[str]:
        return ["validation"]

    def list_tasks(self, split: str) -> list[Any]:
        return [{"question": 1}, {"question": 2}, {"question": 3}]


FIELDS: dict[str, Any] = {
    "action": "message", "observation": "echoed", "instruction": "goal",
    "scoring": Scoring(of="last", success="won"),
}  # fmt: skip


def test_our_client_plays_its_server() -> None:
    app = create_fastapi_app(CorridorEnvironment, Say, Heard, max_concurrent_envs=4)
    with running(app) as url:
        task = OpenEnvTask(OpenEnvConfig(url=url, **FIELDS), items=ITEMS, expert=explorer)
        for item in ITEMS["test"]:
            played, original = task.expert(item), corridor_task().expert(item)
            assert played == original.model_copy(update={"task": "openenv"})
        task.close()


def test_our_client_lists_the_items_of_its_server() -> None:
    app = create_fastapi_app(
        CorridorEnvironment, Say, Heard, max_concurrent_envs=4, env_name="corridor"
    )
    with running(app) as url:
        task = OpenEnvTask(OpenEnvConfig(url=url, **FIELDS), expert=explorer)
        assert task.items("dev") == ["validation/0", "validation/1", "validation/2"]
        assert task.expert("validation/1").steps == corridor_task().expert("dev/1").steps
        task.close()


def test_failures_of_its_server_are_told_apart() -> None:
    from stepagent.tasks.adapters.remote import ServerError
    from stepagent.tasks.base import EnvironmentLost

    app = create_fastapi_app(CorridorEnvironment, Say, Heard, max_concurrent_envs=1)
    with running(app) as url:
        task = OpenEnvTask(OpenEnvConfig(url=url, **FIELDS), items=ITEMS)
        env, other = task.make_env(), task.make_env()
        env.reset(options={"item": "test/0"})
        with pytest.raises(EnvironmentLost, match="'CAPACITY_REACHED'"):
            other.reset(options={"item": "test/0"})
        with pytest.raises(EnvironmentLost, match="step failed with 'EXECUTION_ERROR': 'broken'"):
            env.step("break")
        wrong = OpenEnvTask(OpenEnvConfig(url=url, **FIELDS | {"action": "text"}), items=ITEMS)
        strange = wrong.make_env()
        for _ in range(500):  # until the server has ended the session that was lost
            try:
                strange.reset(options={"item": "test/0"})
                break
            except EnvironmentLost:
                continue
        with pytest.raises(ServerError, match=r"VALIDATION_ERROR.*Field required"):
            strange.step("take")
        task.close()
        wrong.close()
