"""Collecting demonstrations: in order, failures named, lost environments tried again."""

import pytest

from fakes import BoxWorld
from stepagent.tasks.base import EnvironmentLost
from stepagent.tasks.demonstrations import collect
from stepagent.tasks.tries import MAX_TRIES, Lost

ITEMS = ["far/2", "near/1", "far/0", "near/0", "near/2"]


@pytest.mark.parametrize("num_parallel", [1, 4])
def test_trajectories_come_in_the_order_of_the_items(num_parallel: int) -> None:
    world = BoxWorld()
    found = collect(world, ITEMS, num_parallel=num_parallel)
    assert found.trajectories == tuple(world.expert(item) for item in ITEMS)
    assert all(t.success for t in found.trajectories)
    assert found.failed == ()


def test_items_that_the_expert_does_not_solve_are_left_out_and_named() -> None:
    found = collect(BoxWorld(unsolved=["near/1", "near/0"]), ITEMS)
    assert [t.id for t in found.trajectories] == ["far/2", "far/0", "near/2"]
    assert found.failed == (
        "near/1: the expert is not at home",
        "near/0: the expert is not at home",
    )


def test_a_lost_environment_is_tried_again_and_costs_its_own_item_only() -> None:
    whole = collect(BoxWorld(), ITEMS)
    assert collect(BoxWorld(lost={("far/0", 1): 2, ("near/1", 0): 2}), ITEMS) == whole
    unsolved = collect(BoxWorld(lost={("far/0", 1): 1}, unsolved=["far/0"]), ITEMS)
    assert unsolved.failed == ("far/0: the expert is not at home",)
    world = BoxWorld(lost={("far/0", 1): 100})
    found = collect(world, ITEMS)
    assert found.lost == (Lost("far/0", "far/0: lost at step 1"),)
    assert found.trajectories == tuple(t for t in whole.trajectories if t.id != "far/0")
    assert world.lost["far/0", 1] == 100 - 2 * MAX_TRIES


def test_nothing_but_lost_environments_is_an_error() -> None:
    lost = {(item, 0): 100 for item in ITEMS}
    message = r"^all 5 environments were lost; the first: far/2: lost at step 0$"
    with pytest.raises(EnvironmentLost, match=message):
        collect(BoxWorld(lost=lost), ITEMS)


def test_no_items_give_no_demonstrations() -> None:
    assert collect(BoxWorld(), []).trajectories == ()
