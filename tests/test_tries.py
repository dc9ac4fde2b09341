"""Lost environments: tried again beside others, then alone, then given up, each for itself."""

from collections.abc import Generator, Sequence

import pytest

from stepagent.tasks.base import EnvironmentFailed, EnvironmentLost
from stepagent.tasks.tries import MAX_TRIES, Failed, Lost, play_all, retried


@pytest.mark.parametrize("times", [0, 1, MAX_TRIES - 1, MAX_TRIES])
def test_what_is_lost_is_repeated_a_few_times(times: int) -> None:
    left = times

    def play() -> str:
        nonlocal left
        left -= 1
        if left >= 0:
            raise EnvironmentLost(f"died {left}")
        return "played"

    expected = "played" if times < MAX_TRIES else Lost("a/1", "died 0")
    assert retried("a/1", play) == expected


def test_who_was_lost_beside_an_item_that_kills_the_engine_is_played_after_it() -> None:
    calls: list[tuple[tuple[str, ...], int]] = []

    def play(items: Sequence[str], num_parallel: int) -> Generator[str | Lost, None, None]:
        calls.append((tuple(items), num_parallel))
        for item in items:
            is_lost = item == "killer" or ("killer" in items and item == "near")
            yield Lost(item, "died") if is_lost and (num_parallel > 1 or item == "killer") else item

    assert list(play_all(play, ["far", "killer", "near"], 4)) == [
        "far",
        Lost("killer", "died"),
        "near",
    ]
    assert calls == [(("far", "killer", "near"), 4), (("killer", "near"), 1)]
    calls.clear()
    assert list(play_all(play, ["killer", "far"], 1)) == [Lost("killer", "died"), "far"]
    assert len(calls) == 1


def test_an_environment_that_fails_by_its_own_fault_is_not_repeated() -> None:
    count = 0

    def play() -> str:
        nonlocal count
        count += 1
        raise EnvironmentFailed("a/1: step raised KeyError (game.py:3)")

    assert retried("a/1", play) == Failed("a/1", "a/1: step raised KeyError (game.py:3)")
    assert count == 1


@pytest.mark.parametrize("num_parallel", [1, 4])
def test_the_episodes_of_other_items_come_before_the_error(num_parallel: int) -> None:
    def play(items: Sequence[str], num_parallel: int) -> Generator[str | Lost, None, None]:
        for item in items:
            yield Failed(item, f"{item}: broken") if item in ("a", "c") else item

    found = list[object]()
    said = r"^a: broken \(and 1 other item failed\)$"
    with pytest.raises(EnvironmentFailed, match=said):
        found.extend(play_all(play, ["a", "b", "c", "d"], num_parallel))
    assert found == ["b", "d"]


def test_a_lost_item_is_one_printable_line() -> None:
    assert str(Lost("a\x1b", "it\nsaid \x1b[2J")) == "a\\x1b: it said \\x1b[2J"
    assert str(Lost("a/1", "a/1: died")) == "a/1: died"
