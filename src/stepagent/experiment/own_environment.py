"""Which of the user's demonstrations belong to which item of the user's environment."""

from dataclasses import replace
from pathlib import Path

from stepagent.evaluation import choose_items
from stepagent.experiment.config import SettingsError, TrainConfig
from stepagent.experiment.own import OpenRenderer, OwnData, OwnDataError
from stepagent.tasks.base import Task
from stepagent.tasks.demonstrations import collect
from stepagent.tasks.own import EnvConfig, item_of
from stepagent.types import Trajectory

SAMPLED = 8
"""Items that an expert plays to find out how long its actions are."""


def in_items(data: OwnData, task: Task) -> OwnData:
    """The demonstrations under the ids of their items; those without an item are counted.

    Of several demonstrations of an item only the first gets its id: ids are unique in a run.
    """
    taken = set[str]()

    def renamed(trajectory: Trajectory) -> Trajectory:
        item = item_of(task, trajectory)
        if item is None or item in taken:
            return trajectory
        taken.add(item)
        return trajectory.model_copy(update={"id": item})

    own = tuple(renamed(t) for t in data.demonstrations)
    known = sum(t.id in taken for t in own)
    held_out = tuple(renamed(t) for t in data.held_out)
    return replace(data, demonstrations=own, held_out=held_out, without_item=len(own) - known)


def sampled_from_expert(task: Task, open_renderer: OpenRenderer) -> OwnData:
    """A few demonstrations of the environment's expert, to choose settings by.

    Raises `OwnDataError` if the expert solves none of them, or there is no expert.
    """
    items = choose_items(task, "train", SAMPLED, seed=0)[:SAMPLED]
    found = collect(task, items)
    if not found.trajectories:
        first = next(iter(found.failed), "no training items")
        raise OwnDataError(
            f"the environment's expert solves none of {len(items)} training items: {first}; name a "
            "file of demonstrations with --demonstrations"
        )
    renderer, _ = open_renderer(found.trajectories)
    rendered = [renderer.render(t) for t in found.trajectories]
    return OwnData(
        demonstrations=found.trajectories,
        held_out=(),
        left_out={},
        longest_action=max(len(action) for r in rendered for action in r.actions),
    )


def check_items(config: TrainConfig, data: OwnData, task: Task) -> None:
    """Raises `SettingsError` if something is to be played in items that the environment lacks."""
    if data.without_item < len(data.demonstrations):
        return
    if config.played:
        raise SettingsError(
            f"{config.played[0]}: played in the demonstrations' items, but {task.name} has none of "
            "them; expected an item's name as the id of a demonstration, or its seed in the "
            "metadata"
        )


def named_without_folder(env: EnvConfig) -> EnvConfig:
    """The environment for config.json: a Python file is identified by its content, not its path."""
    if file := python_file(env):
        assert env.env is not None
        return replace(env, env=f"{file.name}:{env.env.rpartition(':')[2]}")
    return env


def python_file(env: EnvConfig) -> Path | None:
    """The file that the environment is defined in, if it is named by one."""
    file = Path((env.env or "").rpartition(":")[0])
    return file if file.suffix == ".py" and file.is_file() else None
