"""How rewards of foreign environments become scores, and which items are accepted."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corridor import ITEMS, CorridorEnv, corridor_task
from stepagent.tasks.adapters.gymnasium import GymTask
from stepagent.tasks.adapters.replies import Unusable, names, number, quoted, text
from stepagent.tasks.adapters.scoring import Scoring
from stepagent.tasks.base import ExpertFailed


@pytest.mark.parametrize(
    ("scoring", "expected"),
    [
        # A total of 3 after a last reward of 2.
        (Scoring(of="sum", best=4), 75),
        (Scoring(of="last", best=4), 50),
        (Scoring(of="sum", worst=-1, best=9), 40),
        (Scoring(of="sum", worst=3, best=4), 0),
        (Scoring(of="info", key="points", best=20), 25),
        (Scoring(of="info", key="lost"), 0),
    ],
    ids=str,
)
def test_scores_by_hand(scoring: Scoring, expected: float) -> None:
    assert scoring.score(3.0, 2.0, {"points": 5, "lost": -100}) == expected


def test_a_score_that_the_info_lacks_is_named_with_what_it_has() -> None:
    with pytest.raises(Unusable, match=r"^no 'score' in the info, which has: \['moves', 'won'\]; "):
        Scoring(of="info").score(0, 0, {"won": True, "moves": 3})
    with pytest.raises(Unusable, match=r"^'score' in the info is not a number: 'high'$"):
        Scoring(of="info").score(0, 0, {"score": "high"})


def test_a_scale_needs_two_ends() -> None:
    with pytest.raises(ValueError, match=r"^best \(1\) must be above worst \(1\), and "):
        Scoring(of="sum", worst=1.0)


@pytest.mark.parametrize(
    ("scoring", "value", "is_best"),
    [
        (Scoring(of="sum"), math.nextafter(1, 0), True),
        (Scoring(of="sum"), 0.999_999, False),
        (Scoring(of="sum", worst=-1, best=0), -1e-16, True),
        (Scoring(of="sum", worst=-3, best=-1), -1 - 1e-15, True),
        (Scoring(of="sum", worst=1e10, best=1e10 + 1), 1e10, False),
    ],
)
def test_rounding_errors_do_not_take_the_best_score_away(
    scoring: Scoring, value: float, is_best: bool
) -> None:
    assert (scoring.score(value, 0, {}) == 100) == is_best


class Rewards:
    """An environment that gives the rewards of a list."""

    def __init__(self, rewards: list[float]) -> None:
        self.rewards = rewards

    def reset(self) -> str:
        self.left = list(self.rewards)
        return "go"

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "on", self.left.pop(0), not self.left, False, {}

    def close(self) -> None:
        pass


def test_fractional_rewards_that_add_up_to_the_best_are_success() -> None:
    task = GymTask(
        "rewards",
        lambda: Rewards([0.1] * 10),
        {"train": {"only": {}}},
        instruction="Go.",
        scoring=Scoring(of="sum", best=1.0),
        step_limit=None,
        expert=lambda item: lambda observation: "go",
    )
    found = task.expert("only")
    assert (found.score, found.success, len(found.steps)) == (100, True, 10)


def test_a_value_above_the_best_is_an_error_that_names_the_option() -> None:
    said = (
        r"^the last reward is 2, above the best value, 1; set best to the highest value that an "
        r"episode can reach \(--best\)$"
    )
    with pytest.raises(Unusable, match=said):
        Scoring(of="last").score(3.0, 2.0, {})
    with pytest.raises(Unusable, match=r"^the info 'points' is 5, above the best value, 1; "):
        Scoring(of="info", key="points").score(0, 0, {"points": 5})


@given(
    st.lists(st.floats(-5, 0.5), min_size=1, max_size=6),
    st.sampled_from(["sum", "last"]),
)
def test_the_score_is_the_best_so_far_of_a_naive_computation(rewards: list[float], of: Any) -> None:
    task = GymTask(
        "rewards",
        lambda: Rewards(rewards),
        {"train": {"only": {}}},
        instruction="Go.",
        scoring=Scoring(of=of, worst=-1, best=3),
        step_limit=None,
    )
    env = task.make_env()
    env.reset(options={"item": "only"})
    values = []
    for n in range(len(rewards)):
        values.append(math.fsum(rewards[: n + 1]) if of == "sum" else rewards[n])
        _, reward, is_over, _, info = env.step("go")
        assert reward == rewards[n]
        expected = max(0, *(100 * min((value + 1) / 4, 1) for value in values))
        assert info["score"] == pytest.approx(expected, abs=1e-9)
        assert is_over == (n == len(rewards) - 1)


def test_success_is_what_the_info_says_or_the_best_score() -> None:
    def last(scoring: Scoring) -> dict[str, Any]:
        task = GymTask(
            "corridor",
            CorridorEnv,
            ITEMS,
            instruction="Take it.",
            scoring=scoring,
            step_limit=None,
            expert=corridor_task()._expert,
        )
        env, choose = task.make_env(), task._expert
        assert choose is not None
        act, (observation, info) = choose("dev/1"), env.reset(options={"item": "dev/1"})
        is_over = False
        while not is_over:
            observation, _, is_over, _, info = env.step(act(observation) or "")
        return info

    by_score = last(Scoring(of="info", key="score", best=100))
    assert (by_score["score"], by_score["success"]) == (50, False)
    by_info = last(Scoring(of="info", key="score", best=100, success="solved"))
    assert (by_info["score"], by_info["success"]) == (50, True)
    by_reward = last(Scoring(of="last"))
    assert (by_reward["score"], by_reward["success"]) == (100, True)


@pytest.mark.parametrize(
    ("info", "is_success"),
    [({}, True), ({"success": False}, False), ({"success": np.bool_(True)}, True)],
)
def test_success_is_the_environments_own_word_where_it_says_one(
    info: dict[str, Any], is_success: bool
) -> None:
    assert Scoring(of="sum").is_success(100.0, info) is is_success


def test_a_success_that_is_not_a_bool_is_told_with_what_to_do() -> None:
    said = (
        r"^'success' in the info is neither true nor false: 'no'; return a bool, or name another "
        r"key \(--success-key\)$"
    )
    with pytest.raises(Unusable, match=said):
        Scoring(of="sum").is_success(100.0, {"success": "no"})


def test_an_item_may_be_in_one_split_only_and_splits_have_names() -> None:
    def task(items: Any) -> GymTask:
        return GymTask(
            "x", CorridorEnv, items, instruction="x", scoring=Scoring(of="sum"), step_limit=None
        )

    with pytest.raises(ValueError, match=r"^item 'a' is in two splits: train and test$"):
        task({"train": {"a": {}}, "test": {"a": {}}})
    with pytest.raises(ValueError, match=r"^no split 'eval'; there are: train, dev, test$"):
        task({"eval": {"a": {}}})
    assert task({"train": {"a": {}}}).items("dev") == []


def test_without_an_expert_there_are_no_demonstrations() -> None:
    task = GymTask(
        "x", CorridorEnv, ITEMS, instruction="x", scoring=Scoring(of="sum"), step_limit=None
    )
    with pytest.raises(ExpertFailed, match=r"^train/0: x was given no expert$"):
        task.expert("train/0")
    assert task.facts()["expert"] is None


def test_groups_are_given_or_the_tasks_name() -> None:
    assert corridor_task().group("dev/2") == "dev"
    plain = GymTask(
        "x", CorridorEnv, ITEMS, instruction="x", scoring=Scoring(of="sum"), step_limit=None
    )
    assert plain.group("dev/2") == "x"
    with pytest.raises(ValueError, match="dev/9"):
        plain.group("dev/9")


def test_texts_are_cleaned_and_bounded() -> None:
    assert text("a \ud800 b", "it") == "a ? b"
    with pytest.raises(Unusable, match=r"^it is not text but bytes$"):
        text(b"a", "it")
    with pytest.raises(Unusable, match=r"^it has 1,000,001 characters, more than 1,000,000$"):
        text("x" * 1_000_001, "it")


@pytest.mark.parametrize("value", [math.nan, math.inf, "1", None, [1], {}])
def test_what_is_no_finite_number_is_refused(value: Any) -> None:
    with pytest.raises(Unusable, match=r"^it is not a number: "):
        number(value, "it")


def test_numbers_of_other_kinds_are_read() -> None:
    assert (number(True, "it"), number(3, "it")) == (1.0, 3.0)


@given(st.lists(st.text(max_size=400), max_size=20, unique=True))
def test_names_from_outside_are_one_short_line_of_ascii(found: list[str]) -> None:
    shown = names(found)
    assert len(shown) <= 203
    assert shown.isascii()
    assert shown.isprintable()


@given(st.text(max_size=400))
def test_what_is_quoted_is_one_short_line_of_ascii(said: str) -> None:
    shown = quoted(said)
    assert len(shown) <= 203
    assert shown.isascii()
    assert shown.isprintable()
