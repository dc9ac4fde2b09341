"""Prompted episodes in the world of boxes: played, counted, side by side, and what goes wrong."""

import logging
import threading
from contextlib import closing

import pytest

from chat_server import Answer, ChatServer, Messages, Refuse, Say, solve_boxes
from fakes import STEP_LIMIT, BoxWorld, demonstrations
from stepagent.chat.client import ChatClient, ChatConfig, ChatError
from stepagent.chat.episodes import MAX_SILENT, NO_ROOM, PromptedPolicy, play
from stepagent.chat.prompts import PromptFormat
from stepagent.tasks.base import NOTHING
from stepagent.tasks.tries import MAX_TRIES, Lost
from stepagent.types import Trajectory

ITEMS = ["far/41", "near/40", "far/44", "near/43"]
LONG = "the context length is exceeded"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def policy(
    server: ChatServer,
    world: BoxWorld | None = None,
    format: PromptFormat = "react",
    few_shot: int = 0,
) -> PromptedPolicy:
    client = ChatClient("m-1", ChatConfig(base_url=server.url, max_retries=0))
    return PromptedPolicy(
        client=client,
        task=world or BoxWorld(),
        format=format,
        demonstrations=demonstrations(),
        few_shot=few_shot,
    )


def played(
    policy: PromptedPolicy, items: list[str], *, num_parallel: int = 1
) -> dict[str, Trajectory]:
    return {t.id: t for t in play(policy, items, num_parallel=num_parallel)}


@pytest.mark.parametrize("num_parallel", [1, 3])
def test_a_model_that_knows_the_way_goes_the_experts_way(num_parallel: int) -> None:
    world = BoxWorld()
    with ChatServer() as server:
        found = played(policy(server, world), ITEMS, num_parallel=num_parallel)
    assert sorted(found) == sorted(ITEMS)
    for item, episode in found.items():
        expert = world.expert(item)
        assert [s.action for s in episode.steps] == [s.action for s in expert.steps]
        assert [s.observation for s in episode.steps] == [s.observation for s in expert.steps]
        assert [s.reward for s in episode.steps] == [s.reward for s in expert.steps]
        assert all(s.thought.startswith("I want the ") for s in episode.steps)
        assert episode.final_observation == expert.final_observation
        assert (episode.score, episode.success, episode.truncated) == (100, True, False)
    assert all(env.is_closed for env in world.envs)
    assert len(world.envs) == num_parallel


def test_the_metadata_say_who_was_asked_how_and_what_it_cost() -> None:
    with ChatServer() as server:
        wanted = policy(server, few_shot=2)
        episode = played(wanted, ["far/41"])["far/41"]
        metadata = episode.metadata
        assert metadata | wanted.settings("far/41") == metadata
    assert metadata["model"] == "m-1"
    assert metadata["prompt_format"] == "react"
    assert metadata["prompt_tokens"] == 10 * len(episode.steps)
    assert metadata["completion_tokens"] == 2 * len(episode.steps)
    assert metadata["protocol"] == {"task": "boxes", "step_limit": STEP_LIMIT}
    assert (metadata["empty_replies"], metadata["cut_off_replies"]) == (0, 0)
    assert metadata["stopped"] == ""


def test_each_request_carries_the_whole_history() -> None:
    with ChatServer() as server:
        episode = played(policy(server), ["far/41"])["far/41"]
    said = [m["content"] for m in server.requests[-1]["messages"]]
    expected = [f"Your task: {episode.instruction}\n\n{episode.steps[0].observation}"]
    for before, after in zip(episode.steps, episode.steps[1:], strict=False):
        expected += [f"Thought: {before.thought}\nAction: {before.action}", after.observation]
    assert len(episode.steps) > 2
    assert said[1:] == expected


def test_examples_are_of_the_items_group_and_never_the_item_itself() -> None:
    with ChatServer() as server:
        wanted = policy(server, few_shot=3)
        assert [t.id for t in wanted.prompt("far/1").examples] == ["far/0", "far/2", "far/3"]
        assert wanted.settings("far/1")["examples"] == ["far/0", "far/2", "far/3"]
        many = policy(server, few_shot=41).prompt("far/1").examples
    assert [t.id for t in many[-3:]] == ["far/39", "near/0", "near/1"]


def test_the_settings_of_an_item_change_with_what_the_model_is_told() -> None:
    with ChatServer() as server:
        told = [policy(server, few_shot=n).settings("far/41")["prompt_sha256"] for n in (0, 1, 2)]
        told.append(policy(server, format="action").settings("far/41")["prompt_sha256"])
    assert len(set(told)) == 4


def test_episodes_run_side_by_side() -> None:
    together = threading.Barrier(3)

    def answer(messages: Messages) -> Answer:
        if len(messages) == 2:
            together.wait(60)  # breaks unless three episodes begin at the same time
        return solve_boxes(messages)

    with ChatServer(answer=answer) as server:
        found = played(policy(server), [*ITEMS[:3]], num_parallel=3)
    assert all(t.success for t in found.values())
    assert not together.broken


def test_a_lost_environment_has_the_episode_repeated_and_what_it_cost_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = BoxWorld(lost={("far/41", 2): 1, ("near/40", 0): 2})
    with ChatServer() as server, caplog.at_level(logging.WARNING):
        found = played(policy(server, world), ITEMS[:2])
    assert all(t.success for t in found.values())
    assert found["far/41"].steps[0].observation == world.expert("far/41").steps[0].observation
    replies = len(found["far/41"].steps) + 2
    assert found["far/41"].metadata["prompt_tokens"] == 10 * replies
    assert [r.message for r in caplog.records] == [
        "far/41: environment lost; repeating the episode",
        *["near/40: environment lost; repeating the episode"] * 2,
    ]


def test_an_environment_that_is_lost_again_and_again_costs_its_own_episode_only() -> None:
    world = BoxWorld(lost={("far/41", 1): 99})
    with ChatServer() as server:
        found = list(play(policy(server, world), ["far/41", "near/40"], num_parallel=1))
    assert found[0] == Lost("far/41", "far/41: lost at step 1")
    assert isinstance(found[1], Trajectory) and found[1].success
    assert len(server.requests) == MAX_TRIES + len(found[1].steps)
    assert all(env.is_closed for env in world.envs)


def test_replies_without_an_action_cost_steps_and_soon_end_the_episode(
    caplog: pytest.LogCaptureFixture,
) -> None:
    script: list[Answer] = [Say(""), Say("Thought: well"), Say("Action: look")]
    with (
        ChatServer(answer=lambda _: Say(None, "length"), script=script) as server,
        caplog.at_level(logging.WARNING),
    ):
        episode = played(policy(server), ["far/41"])["far/41"]
    assert [s.action for s in episode.steps] == [NOTHING] * 2 + ["look"] + [NOTHING] * MAX_SILENT
    assert episode.steps[1].thought == "well"
    assert (episode.truncated, episode.success) == (True, False)
    assert episode.metadata["empty_replies"] == 5
    assert episode.metadata["cut_off_replies"] == 3
    assert [r.message for r in caplog.records] == [
        "far/41: 5 replies without an action, 3 replies cut off, "
        "ended because 3 replies in a row had no action"
    ]


def test_an_action_that_was_cut_off_is_sent_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    with (
        ChatServer(script=[Say("Action: open gre", "length")]) as server,
        caplog.at_level(logging.WARNING),
    ):
        episode = played(policy(server), ["near/40"])["near/40"]
    assert episode.steps[0].action == "open gre"
    assert episode.steps[1].observation == "Nothing happens."
    assert [r.message for r in caplog.records] == ["near/40: 1 replies cut off"]


def test_a_model_that_never_gets_there_is_stopped_by_the_task() -> None:
    with ChatServer(answer=lambda _: Say("look")) as server:
        episode = played(policy(server, format="action"), ["far/41"])["far/41"]
    assert len(episode.steps) == STEP_LIMIT
    assert (episode.truncated, episode.metadata["stopped"]) == (True, "")


def test_an_episode_that_outgrows_the_context_ends_there() -> None:
    script: list[Answer] = [Say("look"), Say("look"), Refuse(400, LONG)]
    with ChatServer(script=script) as server:
        episode = played(policy(server), ["far/41"])["far/41"]
    assert len(episode.steps) == 2
    assert (episode.truncated, episode.success) == (True, False)
    assert episode.metadata["stopped"] == "it outgrew the model's context"


def test_a_first_state_that_does_not_fit_costs_its_own_episode_only() -> None:
    with ChatServer(script=[Refuse(400, LONG)]) as server:
        found = played(policy(server), ITEMS[:2])
    short = found["far/41"]
    assert [s.action for s in short.steps] == [NOTHING]
    assert (short.truncated, short.success, short.score) == (True, False, 0)
    assert str(short.metadata["stopped"]).startswith(f"{NO_ROOM}: {server.url}: too long for")
    assert found["near/40"].success


@pytest.mark.parametrize("number", [0, 2])
def test_what_a_filter_refuses_costs_its_own_episode_only(number: int) -> None:
    refusal = Refuse(400, "It triggers our content management policy.", code="content_filter")
    with ChatServer(script=[*[Say("look")] * number, refusal]) as server:
        found = played(policy(server), ITEMS[:2])
    refused = found["far/41"]
    assert [s.action for s in refused.steps] == (["look"] * number or [NOTHING])
    assert (refused.truncated, refused.success) == (True, False)
    assert "a content filter rejects the messages; it says: 'It triggers" in str(
        refused.metadata["stopped"]
    )
    assert found["near/40"].success


def test_reasoning_beside_the_text_is_the_thought() -> None:
    def answer(messages: Messages) -> Answer:
        says = solve_boxes(messages)
        action = str(says.text).rpartition("Action: ")[2]
        return Say(f"Action: {action}", more={"reasoning_content": "I look around."})

    with ChatServer(answer=answer) as server:
        episode = played(policy(server), ["far/41"])["far/41"]
    assert episode.success
    assert {s.thought for s in episode.steps} == {"I look around."}


def test_calls_of_tools_alone_are_silence() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "go_on", "arguments": "{}"}}
    says = Say(None, "tool_calls", more={"tool_calls": [call]})
    with ChatServer(answer=lambda _: says) as server:
        episode = played(policy(server), ["far/41"])["far/41"]
    assert [s.action for s in episode.steps] == [NOTHING] * MAX_SILENT
    assert episode.metadata["empty_replies"] == MAX_SILENT


def test_an_option_that_the_server_refuses_is_noted_in_the_episode() -> None:
    refusal = Refuse(400, "Unsupported value: 'temperature' does not support 0.0 with this model.")
    with ChatServer(script=[refusal]) as server:
        episode = played(policy(server), ["far/41"])["far/41"]
    assert episode.success
    assert episode.metadata["refused_options"] == ["temperature"]
    assert all("temperature" not in request for request in server.requests[1:])


def test_rules_in_the_first_user_message_are_other_settings() -> None:
    with ChatServer() as server:
        usual = policy(server)
        client = ChatClient("m-1", ChatConfig(base_url=server.url, system_role=False))
        folded = PromptedPolicy(client, BoxWorld(), "react")
        hashes = {p.settings("far/41")["prompt_sha256"] for p in (usual, folded)}
        assert len(hashes) == 2
        assert played(folded, ["far/41"])["far/41"].success
    assert {m["role"] for r in server.requests for m in r["messages"]} == {"user", "assistant"}


def test_after_an_error_running_episodes_end_and_no_other_is_begun() -> None:
    have_begun, has_failed = threading.Barrier(2), threading.Event()

    def answer(messages: Messages) -> Answer:
        if len(messages) > 2:
            assert has_failed.wait(60)
            return solve_boxes(messages)
        have_begun.wait(60)
        if messages[1]["content"].startswith(first):
            return Say("look")
        has_failed.set()
        return Refuse(400, "no more money")

    world = BoxWorld()
    expert = world.expert("far/41")
    first = f"Your task: {expert.instruction}\n\n{expert.steps[0].observation}"
    with ChatServer(answer=answer) as server:
        episodes = play(policy(server, world), ITEMS, num_parallel=2)
        assert next(episodes).id == "far/41"
        with pytest.raises(ChatError, match="no more money"):
            next(episodes)
    assert sum(len(r["messages"]) == 2 for r in server.requests) == 2
    assert all(env.is_closed for env in world.envs)


def test_closing_the_iterator_waits_for_no_server() -> None:
    over, asked = threading.Event(), threading.Event()

    def answer(messages: Messages) -> Answer:
        if messages[1]["content"].startswith(first):
            asked.wait(60)
            return Say("look")
        asked.set()
        over.wait(60)
        return Say("look")

    world = BoxWorld()
    first = f"Your task: {world.expert('far/41').instruction}"
    with ChatServer(answer=answer) as server:
        prompted = policy(server, world, format="action")
        with closing(play(prompted, ["far/41", "near/43"], num_parallel=2)) as episodes:
            assert next(episodes).id == "far/41"
            assert asked.wait(60)
            number = len(server.requests)
        over.set()
        # A second client shows that the server still answers while the first one has stopped.
        played(policy(server, format="action"), ["near/43"])
    assert len(server.requests) == number + STEP_LIMIT


def test_no_items_are_no_episodes() -> None:
    with ChatServer() as server:
        assert played(policy(server), []) == {}
