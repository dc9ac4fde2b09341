"""Gym environments as tasks: both interfaces, real Gymnasium ones in text form, bad ones."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from corridor import CorridorEnv, OldCorridorEnv, corridor_task, explorer
from stepagent.tasks.adapters import foreign
from stepagent.tasks.adapters.gymnasium import GymTask
from stepagent.tasks.adapters.scoring import Scoring
from stepagent.tasks.base import EnvironmentFailed, EnvironmentLost, ExpertFailed

SUM = Scoring(of="sum")

DIRECTIONS = ("left", "down", "right", "up")


class LakeInWords(gym.Wrapper[str, str, int, int]):
    """Gymnasium's frozen lake: its own drawing as text, directions as words."""

    def __init__(self) -> None:
        super().__init__(gym.make("FrozenLake-v1", is_slippery=False, render_mode="ansi"))
        self.observation_space = spaces.Text(500)
        self.action_space = spaces.Text(500)

    def reset(self, **options: Any) -> tuple[str, dict[str, Any]]:
        _, info = self.env.reset(**options)
        return str(self.env.render()), info

    def step(self, action: str) -> tuple[str, Any, bool, bool, dict[str, Any]]:
        if action not in DIRECTIONS:
            return "Which way?", 0.0, False, False, {}
        _, reward, terminated, truncated, info = self.env.step(DIRECTIONS.index(action))
        return str(self.env.render()), reward, terminated, truncated, info


def lake() -> GymTask:
    path = ("down", "down", "right", "right", "down", "right")

    def follow_path(item: str) -> Any:
        left = list(path)
        return lambda observation: left.pop(0) if left else None

    return GymTask(
        "lake",
        LakeInWords,
        {"train": {"4x4": {"seed": 0}}},
        instruction="Reach G without falling into a hole H.",
        scoring=Scoring(of="sum"),
        step_limit=20,
        expert=follow_path,
    )


def test_a_real_environment_is_solved() -> None:
    expert = lake().expert("4x4")
    assert [step.action for step in expert.steps[:3]] == ["down", "down", "right"]
    assert "SFFF\nFHFH\nFFFH\nHFFG" in expert.steps[0].observation.replace("\x1b[41m", "").replace(
        "\x1b[0m", ""
    )
    assert (expert.score, expert.success, len(expert.steps)) == (100, True, 6)
    assert [step.reward for step in expert.steps] == [0, 0, 0, 0, 0, 1]


def test_a_real_environment_is_lost() -> None:
    env = lake().make_env()
    env.reset(options={"item": "4x4"})
    env.step("down")
    _, _, terminated, truncated, info = env.step("right")  # a hole
    assert (terminated, truncated, info["score"], info["success"]) == (True, False, 0, False)
    env.close()


def test_both_interfaces_give_the_same_episodes() -> None:
    assert corridor_task(CorridorEnv).expert("test/1") == corridor_task(OldCorridorEnv).expert(
        "test/1"
    )


@pytest.mark.parametrize(
    "make_env",
    [lambda: TimeLimit(CorridorEnv(), 3), lambda: OldCorridorEnv(limit=3)],
    ids=["gymnasium", "gym"],
)
def test_a_time_limit_of_the_environment_truncates(make_env: Any) -> None:
    env = corridor_task(make_env).make_env()
    env.reset(options={"item": "train/0"})
    assert [env.step("wait")[2:4] for _ in range(3)] == [(False, False)] * 2 + [(False, True)]
    with pytest.raises(gym.error.ResetNeeded):
        env.step("wait")


def test_what_ends_at_the_time_limit_has_ended() -> None:
    steps = len(corridor_task(OldCorridorEnv).expert("train/0").steps)
    env = corridor_task(lambda: OldCorridorEnv(limit=steps)).make_env()
    observation, _ = env.reset(options={"item": "train/0"})
    act, last = explorer("train/0"), (False, False)
    for _ in range(steps):
        observation, _, *last, _ = env.step(act(observation) or "")  # type: ignore[assignment]
    assert list(last) == [True, False]


def test_the_instruction_may_come_from_the_first_info() -> None:
    task = GymTask(
        "corridor",
        CorridorEnv,
        {"train": {"a": {"seed": 0}}},
        instruction=lambda observation, info: f"{info['goal']} ({observation[:6]})",
        scoring=Scoring(of="last"),
        step_limit=5,
    )
    assert (
        task.make_env()
        .reset(options={"item": "a"})[1]["instruction"]
        .startswith("Take the treasure. (Room")
    )


def test_the_environment_is_made_once_and_closed_with_the_task() -> None:
    made: list[CorridorEnv] = []

    def make_env() -> CorridorEnv:
        made.append(CorridorEnv())
        return made[-1]

    task = corridor_task(make_env)
    env = task.make_env()
    assert made == []
    for item in ("train/0", "train/1"):
        env.reset(options={"item": item})
    assert len(made) == 1
    task.close()
    assert made[0].is_closed
    with pytest.raises(gym.error.ResetNeeded):
        env.step("take")
    env.reset(options={"item": "train/0"})
    assert len(made) == 2


class Odd:
    """Says what it is told to say."""

    def __init__(self, *, first: Any = "go", then: Any = ("on", 0.0, False, False, {})) -> None:
        self.first, self.then = first, then

    def reset(self) -> Any:
        return self.first

    def step(self, action: str) -> Any:
        return self.then


def odd(*, scoring: Scoring = SUM, **said: Any) -> GymTask:
    return GymTask(
        "odd",
        lambda: Odd(**said),
        {"train": {"only": {}}},
        instruction="Go.",
        scoring=scoring,
        step_limit=None,
    )


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ({"text": "hi"}, "^only: the observation is not text but dict; wrap the"),
        (("hi", {}, 3), "^only: the observation is not text but tuple; wrap"),
        (None, "^only: the observation is not text but NoneType; wr"),
    ],
)
def test_a_first_observation_that_is_no_text_is_refused(first: Any, message: str) -> None:
    with pytest.raises(EnvironmentFailed, match=message):
        odd(first=first).make_env().reset(options={"item": "only"})


@pytest.mark.parametrize(
    ("then", "message"),
    [
        (
            ("on", 0.0, False),
            "^only: step returned 3 values; expected observation, reward, terminated, trunc",
        ),
        ((3, 0.0, False, {}), "^only: the observation is not text but int; wrap the environment"),
        (("on", float("nan"), False, {}), "^only: the reward is not a number: nan$"),
    ],
)
def test_an_answer_that_cannot_be_used_is_refused(then: Any, message: str) -> None:
    env = odd(then=then).make_env()
    env.reset(options={"item": "only"})
    with pytest.raises(EnvironmentFailed, match=message):
        env.step("go")
    with pytest.raises(gym.error.ResetNeeded):
        env.step("go")


def test_an_info_without_the_score_is_refused() -> None:
    then = ("on", 0.0, False, False, {"a\nb": 1})
    task = odd(scoring=Scoring(of="info"), then=then)
    env = task.make_env()
    env.reset(options={"item": "only"})
    with pytest.raises(EnvironmentFailed) as raised:
        env.step("go")
    assert str(raised.value) == (
        r"only: no 'score' in the info, which has: ['a\nb']; name the key of the "
        "score (--score-key)"
    )
    with pytest.raises(gym.error.ResetNeeded):
        env.step("go")


def test_a_step_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^step_limit must be at least 1, not 0$"):
        corridor_task(step_limit=0)


@pytest.mark.parametrize(
    "then",
    [
        ("on", np.float32(0.5), np.bool_(True), np.bool_(False), None),
        ["on", np.array(0.5), 1, 0, {}],
        (b"on", 0.5, True, None),
        ("on", 0.5, True, {"TimeLimit.truncated": np.bool_(False)}),
    ],
)
def test_answers_of_many_kinds_are_read(then: Any) -> None:
    env = odd(first=(np.str_("go"), None), then=then).make_env()
    assert env.reset(options={"item": "only"})[0] == "go"
    observation, reward, terminated, truncated, info = env.step("go")
    assert (observation, reward, terminated, truncated) == ("on", 0.5, True, False)
    assert info["score"] == 50
    env.close()  # although it has no method `close`


@pytest.mark.parametrize(
    ("then", "message"),
    [
        (None, "only: step returned 1 values"),
        (("on", "1", False, {}), "only: the reward is not a number: '1'"),
        (("on", b"1", False, {}), "only: the reward is not a number"),
        (("on", 0, "False", False, {}), "only: terminated is neither true nor false: 'False'"),
        (("on", 0, False, np.zeros(3), {}), "only: truncated is neither true nor false"),
        (("on", 0, False, False, "info"), "only: the info is not a dict but str"),
        ((b"\xff", 0, False, False, {}), "only: the observation is bytes that are not UTF-8"),
        ((np.zeros(3), 0, False, {}), "only: the observation is not text but ndarray; wrap the"),
    ],
)
def test_wrong_types_are_one_line(then: Any, message: str) -> None:
    env = odd(then=then).make_env()
    env.reset(options={"item": "only"})
    with pytest.raises(EnvironmentFailed, match=f"^{message}"):
        env.step("go")


class Seeded:
    """Has its seed as a number."""

    seed = 1

    def reset(self) -> str:
        return f"seed {self.seed}"

    def step(self, action: str) -> Any:
        raise KeyError("broken\x1b[31m")


class SeededByName(Seeded):
    def reset(self, **options: Any) -> str:  # type: ignore[override]
        if options["seed"] > 100:
            raise TypeError("too high")
        return f"options {sorted(options)}"


class Fixed(Seeded):
    seed = property(lambda self: 1)  # type: ignore[assignment]


def seeded(make_env: Any, **arguments: Any) -> GymTask:
    return GymTask(
        "seeded", make_env, {"train": {"only": arguments}}, instruction="Go.", scoring=SUM,
        step_limit=None,
    )  # fmt: skip


def test_a_seed_may_be_an_attribute() -> None:
    for make_env, seen in ((Seeded, "seed 7"), (SeededByName, "options ['seed']")):
        env = seeded(make_env, seed=7).make_env()
        assert env.reset(options={"item": "only"})[0] == seen


def test_arguments_that_reset_does_not_take_are_one_line() -> None:
    said = r"^only: reset does not take \['options'\] of the item; it takes nothing$"
    with pytest.raises(EnvironmentFailed, match=said):
        seeded(Seeded, options={"a": 1}).make_env().reset(options={"item": "only"})


def test_a_reset_without_a_seed_is_told_how_it_should_be() -> None:
    class Unseeded(Seeded):
        seed = property()  # type: ignore[assignment]

    said = (
        r"^only: reset does not take \['seed'\] of the item; it takes nothing; without a seed all "
        r"items would be the same: write `def reset\(self, \*, seed=None, options=None\)`$"
    )
    with pytest.raises(EnvironmentFailed, match=said):
        seeded(Unseeded, seed=7).make_env().reset(options={"item": "only"})


def line_of(function: Any) -> int:
    """The line of the function's first statement."""
    return int(function.__code__.co_firstlineno) + 1


@pytest.mark.parametrize(
    ("make_env", "said"),
    [
        (Fixed, "only: setting the seed raised AttributeError: "),
        (
            SeededByName,
            "only: reset(seed=700) raised TypeError: too high (tests/test_gymnasium.py:",
        ),
    ],
)
def test_a_reset_that_raises_is_an_error_of_the_environment(make_env: Any, said: str) -> None:
    with pytest.raises(EnvironmentFailed) as failed:
        seeded(make_env, seed=700).make_env().reset(options={"item": "only"})
    assert str(failed.value).startswith(said)


def test_a_step_that_raises_is_one_line_with_item_action_and_place() -> None:
    made: list[Seeded] = []

    def make_env() -> Seeded:
        made.append(Seeded())
        return made[-1]

    env = seeded(make_env).make_env()
    for _ in range(2):
        env.reset(options={"item": "only"})
        with pytest.raises(EnvironmentFailed) as failed:
            env.step("go\nnorth")
        place = f"tests/test_gymnasium.py:{line_of(Seeded.step)}"
        assert str(failed.value) == (
            rf"only: step('go\nnorth') raised KeyError: 'broken\x1b[31m' ({place}); step has to "
            "answer any text, if only by saying that nothing happens"
        )
    assert len(made) == 2


def test_an_environment_whose_actions_are_numbers_is_told_to_be_wrapped() -> None:
    class Numbers(Seeded):
        action_space = spaces.Discrete(4)

        def step(self, action: str) -> Any:
            return "on", 0.0, int(action) > 3, False, {}

    env = seeded(Numbers).make_env()
    env.reset(options={"item": "only"})
    said = r"its actions are Discrete\(4\), not text: wrap the environment so that it reads"
    with pytest.raises(EnvironmentFailed, match=said):
        env.step("go")


@pytest.mark.parametrize("error", [ConnectionResetError("gone"), TimeoutError()])
def test_a_connection_that_breaks_loses_the_episode_and_may_be_repeated(error: Exception) -> None:
    class Remote(Seeded):
        def step(self, action: str) -> Any:
            raise error

    env = seeded(Remote).make_env()
    env.reset(options={"item": "only"})
    with pytest.raises(EnvironmentLost) as lost:
        env.step("go")
    assert not isinstance(lost.value, EnvironmentFailed)


def test_what_the_expert_raises_is_one_line_with_the_place() -> None:
    def expert(item: str) -> Any:
        return lambda observation: [][0]

    task = GymTask("odd", lambda: Odd(), {"train": {"only": {}}}, instruction="Go.", expert=expert)
    said = rf"only: the expert raised IndexError: .*\(tests/test_gymnasium.py:{line_of(expert)}\)$"
    with pytest.raises(EnvironmentFailed, match=said):
        task.expert("only")
    task._expert = lambda item: lambda observation: 3  # type: ignore[return-value]
    with pytest.raises(EnvironmentFailed, match=r"^only: the expert's action is 3; expected text"):
        task.expert("only")


class Speaking(Odd):
    """Says itself what to do, in one way or another."""

    instruction = "Find the door."


def test_the_instruction_is_the_environments_own_unless_one_is_given() -> None:
    def first(make_env: Any, **options: Any) -> str:
        task = GymTask("odd", make_env, {"train": {"only": {}}}, **options)
        return str(task.make_env().reset(options={"item": "only"})[1]["instruction"])

    assert first(Speaking) == "Find the door."
    assert first(lambda: Speaking(first=("go", {"instruction": "Find it."}))) == "Find it."
    assert first(Speaking, instruction="Go.") == "Go."
    said = r"^only: the environment has no instruction: return it from reset as info\['instruction"
    with pytest.raises(EnvironmentFailed, match=said):
        first(Odd)
    with pytest.raises(EnvironmentFailed, match=r"^only: the function of the instruction raised "):
        first(Odd, instruction=lambda observation, info: info["goal"])


def test_by_default_items_are_seeds_and_rewards_add_up_to_1() -> None:
    task = GymTask("corridor", CorridorEnv, instruction="Take it.", expert=explorer)
    assert [task.items(split)[0] for split in ("train", "dev", "test")] == [
        "seed/0",
        "seed/1000000",
        "seed/2000000",
    ]
    assert task.facts()["step_limit"] == 30
    with pytest.raises(EnvironmentFailed, match=r"^seed/0: the sum of rewards is 1.25, above the"):
        task.expert("seed/0")


def test_an_environment_that_cannot_be_made_is_one_line() -> None:
    def make_env() -> None:
        raise ModuleNotFoundError("No module named 'babyai'")

    with pytest.raises(EnvironmentFailed, match=r"^only: the environment cannot be made: Module"):
        seeded(make_env).make_env().reset(options={"item": "only"})


def test_an_episode_that_never_ends_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "LONGEST", 30)
    env = odd().make_env()
    env.reset(options={"item": "only"})
    assert [env.step("go")[3] for _ in range(30)] == [False] * 29 + [True]
    task = odd()
    task._expert = lambda item: lambda observation: "go"
    with pytest.raises(ExpertFailed, match="only: the expert's 30 actions"):
        task.expert("only")


def test_a_value_above_the_best_is_an_error_rather_than_a_success() -> None:
    task = odd(scoring=Scoring(of="last"), then=("on", 37, False, False, {}))
    env = task.make_env()
    env.reset(options={"item": "only"})
    with pytest.raises(EnvironmentFailed, match=r"^only: the last reward is 37, above the best va"):
        env.step("go")


def test_a_value_below_the_worst_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    task = odd(then=("on", -1, False, False, {}))
    env = task.make_env()
    env.reset(options={"item": "only"})
    for _ in range(3):
        assert env.step("go")[4]["score"] == 0
    said = (
        "odd: a value of -1 is below the worst, 0, and counts as score 0; if it should not, set "
        "worst to the lowest value (--worst)"
    )
    assert [record.getMessage() for record in caplog.records] == [said]


@pytest.mark.parametrize("solved", ["false", "no", np.zeros(2), 2])
def test_a_success_that_is_no_flag_is_refused(solved: Any) -> None:
    scoring = Scoring(of="sum", success="solved")
    env = odd(scoring=scoring, then=("on", 0, False, False, {"solved": solved})).make_env()
    env.reset(options={"item": "only"})
    with pytest.raises(EnvironmentFailed, match="'solved' in the info is neither true nor false"):
        env.step("go")
