"""AgentGym's servers as tasks: an episode on each, its oddities, and what can go wrong."""

import json
import socket
from typing import Any, get_args

import gymnasium as gym
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from agentgym_server import (
    APPS,
    GOAL,
    NUM_ITEMS,
    PLAIN,
    alfworld,
    babyai,
    sciworld,
    searchqa,
    webshop,
)
from corridor import Corridor, explorer, running
from stepagent.tasks.adapters.agentgym import SERVERS, AgentGymConfig, AgentGymTask, Environment
from stepagent.tasks.adapters.remote import ServerError
from stepagent.tasks.base import EnvironmentLost


def task_on(url: str, environment: Environment, **options: Any) -> AgentGymTask:
    config = AgentGymConfig(
        environment=environment, url=url, train=tuple(range(8)), test=(9, 30), **options
    )
    return AgentGymTask(config, expert=explorer)


def test_every_environment_has_its_fields() -> None:
    assert set(SERVERS) == set(get_args(Environment)) == {*APPS, *PLAIN}


@pytest.mark.parametrize("environment", APPS)
def test_an_episode_on_every_server(environment: Environment) -> None:
    with running(APPS[environment]()) as url:
        task = task_on(url, environment)
        found = task.expert(f"{environment}_3")
        task.close()
    world = Corridor(3)
    assert found.instruction == GOAL
    assert world.look() in found.steps[0].observation
    assert [step.observation for step in found.steps[1:]] == [
        world.act(step.action)[0] for step in found.steps[:-1]
    ]
    assert (found.final_observation, found.score) == ("You take the treasure.", 100)


@pytest.mark.parametrize("environment", PLAIN)
def test_an_episode_on_the_plainer_servers(environment: Environment) -> None:
    with running(PLAIN[environment]()) as url:
        task = task_on(url, environment)
        env, world = task.make_env(), Corridor(3)
        first, info = env.reset(options={"item": f"{environment}_3"})
        has_goal = environment not in ("maze", "wordle", "sqlgym")
        assert (info["instruction"] == GOAL) == has_goal and len(info["instruction"]) > 10
        act, observation = explorer(""), first if world.look() in first else world.look()
        terminated = False
        while not terminated:
            observation, _, terminated, truncated, info = env.step(act(observation) or "")
        assert (observation, truncated) == ("You take the treasure.", False)
        assert (info["score"], info["success"]) == (100, True)
        with pytest.raises(EnvironmentLost, match="list index out of range"):
            env.reset(options={"item": f"{environment}_30"})
        task.close()


def test_babyais_score_is_what_its_moves_left_and_its_end_is_success() -> None:
    with running(babyai(worth=0.93)) as url:
        task = task_on(url, "babyai")
        env, act, terminated = task.make_env(), explorer(""), False
        observation, info = env.reset(options={"item": "babyai_3"})
        while not terminated:
            observation, _, terminated, _, info = env.step(act(observation) or "")
        assert info["score"] == pytest.approx(93)
        assert info["success"] is True
        task.close()


def test_what_babyais_server_adds_once_too_often_is_clipped() -> None:
    with running(babyai(worth=1.7)) as url:
        task = task_on(url, "babyai")
        assert task.expert("babyai_3").score == 100
        task.close()


def test_a_score_that_is_above_the_best_of_the_table_is_refused() -> None:
    step = {"observation": "x", "reward": 0, "score": 101, "done": True}
    with running(answering(create={"id": 1}, reset=STARTED, step=step, close=True)) as url:
        env = task_on(url, "sciworld").make_env()
        env.reset(options={"item": "sciworld_0"})
        with pytest.raises(ServerError, match=rf"^{url}: sciworld_0: the info 'score' is 101"):
            env.step("look")


def test_the_path_of_an_environment_may_be_in_the_address() -> None:
    with running(PLAIN["maze"]()) as url:
        for address in (url, f"{url}/maze", f"{url}/maze/"):
            task = task_on(address, "maze")
            assert task.make_env().reset(options={"item": "maze_1"})[0]
            task.close()


def test_an_environment_that_nobody_knows_is_one_line() -> None:
    with pytest.raises(ServerError, match=r"^AgentGym has no environment 'chess'; it has: web"):
        task_on("http://127.0.0.1:1", "chess")  # type: ignore[arg-type]


def test_a_page_that_webarena_cannot_open_loses_the_episode() -> None:
    replies = {"observation": "TimeoutError", "sites": "Error", "object": "Error"}
    with (
        running(answering(create={"env_idx": 1}, reset=replies, close=True)) as url,
        pytest.raises(EnvironmentLost, match="the page could not be opened"),
    ):
        _begun(url, "webarena")


@pytest.mark.parametrize("environment", APPS)
def test_scores_are_on_one_scale(environment: Environment) -> None:
    with running(APPS[environment]()) as url:
        task = task_on(url, environment)
        env, act = task.make_env(), explorer("")
        observation, _ = env.reset(options={"item": f"{environment}_3"})
        while (action := act(observation)) != "take":
            observation, _, _, _, info = env.step(action or "")
        # The treasure was seen: worth 0.25 where rewards are in parts, nothing where only 1 counts.
        assert info["score"] == (0 if environment == "alfworld" else 25)
        assert env.step("wait")[4]["score"] == info["score"]  # the best so far is kept
        _, _, terminated, _, info = env.step("take")
        assert (terminated, info["score"], info["success"]) == (True, 100, True)
        task.close()


def test_alfworlds_first_observation_lists_the_actions() -> None:
    with running(alfworld()) as url:
        task = task_on(url, "alfworld")
        steps = task.expert("alfworld_0").steps
        assert steps[0].observation.endswith("\nAVAILABLE ACTIONS: go east,go west,take")
        assert "AVAILABLE" not in steps[1].observation
        task.close()


def test_a_fatal_action_in_scienceworld_ends_at_no_score() -> None:
    with running(sciworld()) as url:
        env = task_on(url, "sciworld").make_env()
        env.reset(options={"item": "sciworld_1"})
        observation, reward, terminated, truncated, info = env.step("focus on wall")
        assert (observation, reward) == ("No.", -100)
        assert (terminated, truncated, info["score"], info["success"]) == (True, False, 0, False)
        env.close()


@pytest.mark.parametrize("environment", APPS)
def test_one_session_plays_many_items_and_ends(environment: Environment) -> None:
    app = APPS[environment]()
    with running(app) as url:
        task = task_on(url, environment)
        env = task.make_env()
        for number in range(4):
            env.reset(options={"item": f"{environment}_{number}"})
        assert len(app.state.sessions) == 1
        task.close()
        with pytest.raises(gym.error.ResetNeeded):
            env.step("take")
        # Servers of WebShop and ALFWorld know no /close.
        assert len(app.state.sessions) == (1 if environment in ("webshop", "alfworld") else 0)


def test_the_newer_webshop_server_ends_sessions() -> None:
    app = webshop(has_close=True)
    with running(app) as url:
        task = task_on(url, "webshop")
        task.make_env().reset(options={"item": "webshop_0"})
        assert len(app.state.sessions) == 1
        task.close()
        assert len(app.state.sessions) == 0


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ("webshop", r"/step: error 500; it says: 'Internal Server Error'$"),
        ("sciworld", r"/step: it says: 'The id 0 is not valid.'$"),
        ("alfworld", r"/step: it says: 'The id 0 is not valid.'$"),
        ("searchqa", r"/step: error 500; it says: 'Internal Server Error'$"),
    ],
)
def test_a_session_that_the_server_forgot_is_begun_again(
    environment: Environment, said: str
) -> None:
    app = APPS[environment]()
    with running(app) as url:
        env = task_on(url, environment).make_env()
        start = env.reset(options={"item": f"{environment}_2"})
        app.state.sessions.clear()  # as after a restart
        with pytest.raises(EnvironmentLost, match=said):
            env.step("go east")
        with pytest.raises(gym.error.ResetNeeded):
            env.step("go east")
        assert env.reset(options={"item": f"{environment}_2"}) == start
        env.close()


@pytest.mark.parametrize("environment", ["sciworld", "alfworld"])
def test_an_item_that_the_server_has_not_is_told(environment: Environment) -> None:
    assert NUM_ITEMS < 30
    with running(APPS[environment]()) as url:
        env = task_on(url, environment).make_env()
        with pytest.raises(
            EnvironmentLost, match=rf"^{url}/reset: it says: 'list index out of range'$"
        ):
            env.reset(options={"item": f"{environment}_30"})
        env.close()


def test_another_environments_server_is_refused() -> None:
    with running(sciworld()) as url:
        with pytest.raises(ServerError, match=r"/reset: error 422; it says: '.*data_idx"):
            _begun(url, "webshop")
        with pytest.raises(ServerError, match=r"/reset: error 422; it says: '.*data_idx"):
            task_on(url, "alfworld").make_env().reset(options={"item": "alfworld_0"})
    with running(searchqa()) as url, pytest.raises(ServerError, match=r"/create: error 422"):
        task_on(url, "sciworld").make_env().reset(options={"item": "sciworld_0"})


def answering(**replies: Any) -> FastAPI:
    """A server whose routes give these replies, bytes and responses as they are."""
    app = FastAPI()
    app.state.heard = list[str]()

    def route(path: str, reply: Any) -> None:
        async def answer(request: Request) -> Response:
            app.state.heard.append(f"{path} {(await request.body()).decode()}".strip())
            if isinstance(reply, Response):
                return reply
            return Response(reply if isinstance(reply, bytes) else json.dumps(reply))

        app.add_route(f"/{path}", answer, ["GET", "POST"])

    for path, reply in replies.items():
        route(path, reply)
    return app


def _begun(url: str, environment: Environment) -> None:
    task_on(url, environment).make_env().reset(options={"item": f"{environment}_0"})


@pytest.mark.parametrize(
    ("environment", "replies", "reason"),
    [
        ("sciworld", {"create": b"hello"}, r"/create: the answer is not JSON: b'hello'"),
        ("sciworld", {"create": {}}, r"expected the number of a session, got \{\}"),
        ("sciworld", {"create": True}, r"expected the number of a session, got True"),
        ("webshop", {"create": "7"}, r"expected the number of a session, got '7'"),
        ("webshop", {"create": 7, "reset": {}}, r"webshop_0: expected a list with the observation"),
        ("webshop", {"create": 7, "reset": []}, r"webshop_0: expected a list with the observation"),
        (
            "webshop",
            {"create": 7, "reset": ["hi", None], "instruction_text": 3},
            r"webshop_0: the instruction is not text but int",
        ),
        ("searchqa", {"create": 7, "reset": ["hi"]}, r"the observation is not text but list"),
        (
            "sciworld",
            {"create": {"id": 1}, "reset": {"observation": "hi"}},
            r"expected 'task_description' in the answer",
        ),
        (
            "alfworld",
            {"create": {"id": 1}, "reset": {"observation": "hi", "available_actions": "go"}},
            r"'available_actions' is not a list: 'go'",
        ),
    ],
)
def test_a_start_that_cannot_be_read_is_one_line(
    environment: Environment, replies: dict[str, Any], reason: str
) -> None:
    with running(answering(**replies)) as url, pytest.raises(EnvironmentLost, match=reason) as said:
        _begun(url, environment)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ({"observation": "x", "reward": 0, "done": False}, r"expected 'score' in the answer"),
        ({"observation": "x", "reward": None, "score": 0, "done": False}, r"not a number: None"),
        (
            b'{"observation":"x","reward":0,"score":NaN,"done":false}',
            r"the score is not a number: nan",
        ),
        ({"observation": 1, "reward": 0, "score": 0, "done": False}, r"not text but int"),
        ([], r"expected 'observation' in the answer, got \[\]"),
        ({"error": "Py4JNetworkError\n..."}, r"it says: 'Py4JNetworkError\\n...'"),
    ],
)
def test_an_answer_that_cannot_be_read_loses_the_episode(step: Any, reason: str) -> None:
    reset = {"task_description": "Boil.", "observation": "A room."}
    with running(answering(create={"id": 1}, reset=reset, step=step)) as url:
        env = task_on(url, "sciworld").make_env()
        env.reset(options={"item": "sciworld_0"})
        with pytest.raises(EnvironmentLost, match=reason):
            env.step("look")
        with pytest.raises(gym.error.ResetNeeded):
            env.step("look")


STARTED = {"task_description": "Boil.", "observation": "A room."}


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ({"reset": {"error": "no"}}, EnvironmentLost),
        ({"reset": {}}, EnvironmentLost),
        ({"reset": Response("no", 500)}, EnvironmentLost),
        ({"reset": Response("no", 422)}, ServerError),
        ({"reset": STARTED, "step": {"error": "no"}}, EnvironmentLost),
        ({"reset": STARTED, "step": {}}, EnvironmentLost),
        ({"reset": STARTED, "step": Response("no", 500)}, EnvironmentLost),
        ({"reset": STARTED, "step": Response("no", 422)}, ServerError),
    ],
)
def test_a_failed_session_is_ended_on_the_server(
    replies: dict[str, Any], expected: type[Exception]
) -> None:
    app = answering(create={"id": 7}, close=True, **replies)
    with running(app) as url:
        env = task_on(url, "sciworld").make_env()
        for _ in range(3):
            with pytest.raises(expected):
                env.reset(options={"item": "sciworld_0"})
                env.step("look")
        env.close()
    heard = [request.partition(" ")[0] for request in app.state.heard]
    assert heard == ["create", *replies, "close"] * 3
    assert app.state.heard.count('close {"id":7}') == 3


@pytest.mark.parametrize("close", [Response("late", 500), Response("who?", 404), b"bye"])
def test_a_session_that_cannot_be_ended_does_not_hide_what_failed(close: Any) -> None:
    with running(answering(create={"id": 7}, reset={"error": "no"}, close=close)) as url:
        env = task_on(url, "sciworld").make_env()
        with pytest.raises(EnvironmentLost, match=rf"^{url}/reset: it says: 'no'$"):
            env.reset(options={"item": "sciworld_0"})


def test_a_server_that_is_not_there_or_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(EnvironmentLost, match=rf"^{url}/create: no answer within 0.2 s$"):
            env = task_on(url, "webshop", timeout_seconds=0.2).make_env()
            env.reset(options={"item": "webshop_0"})
    with pytest.raises(EnvironmentLost, match=r"cannot be reached \(.*\); is the server running\?"):
        env.reset(options={"item": "webshop_0"})


def test_items_are_numbers_behind_the_environments_name() -> None:
    task = task_on("http://127.0.0.1:1", "webshop")
    assert task.items("test") == ["webshop_9", "webshop_30"]
    assert task.items("dev") == []
    assert task.facts()["items"] == {"train": 8, "dev": 0, "test": 2}
    assert task.facts()["score"].startswith("info 'reward', from 0 (0) to 1 (100)")
    with pytest.raises(ValueError, match="webshop_8"):
        task.make_env().reset(options={"item": "webshop_8"})


def test_an_action_with_what_is_no_text_reaches_the_server() -> None:
    with running(searchqa()) as url:
        env = task_on(url, "searchqa").make_env()
        env.reset(options={"item": "searchqa_0"})
        assert env.step("\ud800 \x00 🔥")[0] == "You cannot do that."
        env.close()
