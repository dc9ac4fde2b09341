"""A quick check of an environment before anything is trained on it."""

from collections.abc import Iterable, Iterator, Sequence

from stepagent.console.printable import printable
from stepagent.tasks.adapters.guarded import guarded
from stepagent.tasks.base import EnvironmentFailed, EnvironmentLost, Task, TextEnv
from stepagent.tasks.own import item_of
from stepagent.tasks.playing import Episode
from stepagent.types import Trajectory

ACTIONS = ("look", "", "do something that no environment knows")
"""Actions that any environment has to answer; a policy may also say nothing."""


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
        episode = Episode(env, items[0])
        first = episode.instruction, episode.observation
        for action in ACTIONS:
            if not episode.is_over:
                episode.act(action)
        episode = Episode(env, items[0])
        again = episode.instruction, episode.observation
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
                episode = Episode(env, item)
            except EnvironmentFailed:
                raise
            except EnvironmentLost:
                continue
            yield item, episode.instruction, episode.observation
    finally:
        env.close()


def _replay(env: TextEnv, item: str, demonstration: Trajectory) -> list[str]:
    """What differs from the demonstration when its actions are played again."""
    name, warnings = printable(demonstration.id), []
    episode = Episode(env, item)
    if episode.instruction != demonstration.instruction:
        warnings.append(
            f"{name}: the environment's instruction is {_short(episode.instruction)}, the "
            f"demonstration's {_short(demonstration.instruction)}; the agent learns with one and "
            "plays with the other"
        )
    for number, step in enumerate(demonstration.steps, 1):
        if episode.observation != step.observation:
            warnings.append(
                f"{name}: at step {number} the environment shows {_short(episode.observation)}, "
                f"the demonstration {_short(step.observation)}; detours need an environment that "
                "repeats its demonstrations"
            )
            break
        episode.act(step.action)
        if episode.is_over and number < len(demonstration.steps):
            warnings.append(
                f"{name}: the environment ends the episode after step {number} of "
                f"{len(demonstration.steps)}; is --step-limit too low?"
            )
            break
    else:
        if demonstration.success is not False and not episode.is_success:
            warnings.append(
                f"{name}: its replay ends with score {episode.info['score']:g} of 100, not solved; "
                "is the scoring right (--score, --best, --success-key)?"
            )
    return warnings


def _short(text: str) -> str:
    return f"'{printable(text)}'"
