"""Derived seeds: never the same for two purposes, always the same for one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepagent.seeds import derive

Names = st.lists(st.text(max_size=8) | st.integers(-1000, 10**6), max_size=4).map(tuple)
Paths = st.tuples(st.integers(0, 2**32 - 1), Names)


@given(Paths, Paths)
def test_other_seeds_or_names_give_other_seeds(
    first: tuple[int, tuple[str | int, ...]], second: tuple[int, tuple[str | int, ...]]
) -> None:
    (seed, names), (other_seed, other_names) = first, second
    # 1 == True == 1.0 in Python, but only whole numbers and text come here.
    is_same = (seed, names) == (other_seed, other_names)
    assert (derive(seed, *names) == derive(other_seed, *other_names)) == is_same


def test_seeds_of_runs_rounds_purposes_and_turns_are_all_different() -> None:
    found = {
        derive(derive(seed, purpose, number), "turn", turn)
        for seed in range(20)
        for purpose in ("practice", "explore", "detours")
        for number in range(20)
        for turn in range(10)
    }
    found |= {derive(seed, "practice", n) for seed in range(20) for n in range(20)}
    assert len(found) == 20 * 3 * 20 * 10 + 20 * 20


@pytest.mark.parametrize(
    ("names", "others"),
    [(("1",), (1,)), (("a", "b"), ("ab",)), (("a", ""), ("a",)), ((1, 23), (12, 3)), ((), ("",))],
)
def test_names_that_look_alike_are_told_apart(
    names: tuple[str | int, ...], others: tuple[str | int, ...]
) -> None:
    assert derive(0, *names) != derive(0, *others)


def test_a_seed_stays_what_it_is() -> None:
    # Whoever changes this changes the results of every run.
    assert derive(0) == 7_520_536_977_032_167_579
    assert derive(7, "detours", 3) == 3_711_540_351_220_394_878


@given(Paths)
def test_every_random_generator_takes_it(path: tuple[int, tuple[str | int, ...]]) -> None:
    seed = derive(path[0], *path[1])
    assert 0 <= seed < 2**63
    np.random.default_rng([seed, 1])
    torch.Generator().manual_seed(seed)
