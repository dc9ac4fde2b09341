"""Episodes in progress: what is recorded of them, and when they are over."""

from typing import Any

import gymnasium as gym
import pytest

from corridor import corridor_task
from stepagent.tasks.base import NOTHING, ExpertFailed
from stepagent.tasks.episode import follow
from stepagent.tasks.playing import Episode


class Echo(gym.Env[str, str]):
    """Answers with the action itself; "done" solves it."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        assert options is not None
        return f"Begin {options['item']}.", {"instruction": "Say it.", "score": 0, "success": False}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        done = action == "done"
        return f"<{action}>", 2, done, False, {"score": 40 + 60 * done, "success": done}


def test_an_episode_records_what_was_seen_thought_done_and_given() -> None:
    episode = Episode(Echo(), "a/1")
    assert (episode.instruction, episode.observation) == ("Say it.", "Begin a/1.")
    episode.act("go", "Why not?")
    assert not episode.is_over and not episode.is_success
    episode.act("done")
    assert episode.is_over and episode.is_success
    found = episode.trajectory("echo", {"by": "hand"})
    assert [(s.observation, s.action, s.thought, s.reward) for s in found.steps] == [
        ("Begin a/1.", "go", "Why not?", 2.0),
        ("<go>", "done", "", 2.0),
    ]
    assert (found.id, found.task, found.final_observation) == ("a/1", "echo", "<done>")
    assert (found.score, found.success, found.truncated) == (100.0, True, False)
    assert found.metadata == {"by": "hand"}


def test_an_empty_action_is_played_as_it_is_and_recorded_as_nothing() -> None:
    episode = Episode(Echo(), "a/1")
    episode.act("")
    assert episode.observation == "<>"
    assert episode.steps[0].action == NOTHING


def test_an_episode_that_its_player_ends_is_truncated() -> None:
    episode = Episode(Echo(), "a/1")
    episode.act("go")
    episode.truncate()
    assert episode.is_over
    found = episode.trajectory("echo", {})
    assert (found.score, found.success, found.truncated) == (40.0, False, True)


@pytest.mark.parametrize("empty", ["", " \n"])
def test_an_experts_empty_action_is_no_demonstration(empty: str) -> None:
    actions = iter(["go west", empty])
    env = corridor_task().make_env()
    with pytest.raises(ExpertFailed, match="train/6: the expert's action 2 is empty; expected"):
        follow(corridor_task(), env, "train/6", lambda _: next(actions), {})
