"""A quick check of an environment before anything is trained on it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from stepagent.console.printable import printable
from stepagent.tasks.adapters.guarded import guarded
from stepagent.tasks.base import EnvironmentFailed, EnvironmentLost, Task, TextEnv
from stepagent.tasks.own import item_of
from stepagent.types import Trajectory

ACTIONS = ("look", "", "do something that no environment knows")
"""What any environment has to answer; a policy may well say nothing."""


def check_environment(task: Task, demonstrations: Sequence[Trajectory] = ()) -> tuple[str, ...]:
    """Plays a short episode of a training item; returns warnings of one line each.

    Raises `EnvironmentFailed` for the first fault, `EnvironmentLost` or `ServerError` if a server
    does not answer. Warns if the same item begins differently when it is reset again, and if the
    first of the demonstrations that belong to an item differs from its replay (detours
    need both) or is not solved by it.
    """
    task = guarded(task)
    items = task.items("train")
    if not items:
        raise EnvironmentFailed(f"{task.name} has no training items")
    env = task.make_env()
    try:
        first = _begin(env, items[0])
        _play(env, ACTIONS)
        again = _begin(env, items[0])
        warnings = [
            f"{items[0]}: {what} is {_short(after)} after another reset, not {_short(before)}; "
            "detours and comparisons of policies need the same episode for the same seed"
            for what, before, after in zip(SEEN_FIRST, first, again, strict=True)
            if before != after
        ]
        known = ((item_of(task, found), found) for found in demonstrations)
        replayed = next(((item, found) for item, found in known if item is not None), None)
        if replayed is not None and not warnings:
            warnings += _replay(env, *replayed)
    finally:
        env.close()
    return tuple(warnings)


SEEN_FIRST = ("the instruction", "the first observation")


def _begin(env: TextEnv, item: str) -> tuple[str, str]:
    """Instruction and first observation."""
    observation, info = env.reset(options={"item": item})
    return info["instruction"], observation


def first_states(task: Task, items: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Resets every item once; yields it with its instruction and its first observation.

    An item that cannot begin is thus found before anything is trained: raises `EnvironmentFailed`
    for the first one whose environment fails. One that is only lost may be there again when it is
    played, and is left out.
    """
    env = guarded(task).make_env()
    try:
        for item in items:
            try:
                yield item, *_begin(env, item)
            except EnvironmentFailed:
                raise
            except EnvironmentLost:
                continue
    finally:
        env.close()


def _play(env: TextEnv, actions: Sequence[str]) -> None:
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            return


def _replay(env: TextEnv, item: str, demonstration: Trajectory) -> list[str]:
    """What differs from the demonstration when its actions are played again."""
    name, warnings = printable(demonstration.id), []
    instruction, observation = _begin(env, item)
    if instruction != demonstration.instruction:
        warnings.append(
            f"{name}: the environment's instruction is {_short(instruction)}, the demonstration's "
            f"{_short(demonstration.instruction)}; the agent learns with one and plays with the "
            "other"
        )
    info: Mapping[str, Any] = {}
    for number, step in enumerate(demonstration.steps, 1):
        if observation != step.observation:
            warnings.append(
                f"{name}: at step {number} the environment shows {_short(observation)}, the "
                f"demonstration {_short(step.observation)}; there can be no detours in "
                "demonstrations that the environment does not repeat"
            )
            break
        observation, _, terminated, truncated, info = env.step(step.action)
        if (terminated or truncated) and number < len(demonstration.steps):
            warnings.append(
                f"{name}: the environment ends the episode after step {number} of "
                f"{len(demonstration.steps)}; is --step-limit too low?"
            )
            break
    else:
        if demonstration.success is not False and not info["success"]:
            warnings.append(
                f"{name}: its replay ends with score {info['score']:g} of 100, not solved; is the "
                "scoring right (--score, --best, --success-key)?"
            )
    return warnings


def _short(text: str) -> str:
    return f"'{printable(text)}'"
