"""Opens a user's own environment as a task, from one string and a few options."""

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast

from stepagent.bounds import COUNT, OutOfBounds, check_bounds
from stepagent.tasks.adapters.agentgym import AgentGymConfig, AgentGymTask
from stepagent.tasks.adapters.agentgym_servers import Environment
from stepagent.tasks.adapters.foreign import SPLITS
from stepagent.tasks.adapters.guarded import explained, guarded
from stepagent.tasks.adapters.gymnasium import STEP_LIMIT, GymTask
from stepagent.tasks.adapters.openenv import OpenEnvConfig, OpenEnvTask
from stepagent.tasks.adapters.python_names import CannotLoad, load_name
from stepagent.tasks.adapters.raised import raised
from stepagent.tasks.adapters.scoring import Scoring
from stepagent.tasks.adapters.seeds import DEV, TEST, TRAIN, seed_items, split_ranges
from stepagent.tasks.base import EnvironmentFailed, Task
from stepagent.types import Trajectory

OPENENV, AGENTGYM = "openenv:", "agentgym:"

FORMS = f"MODULE:NAME, FILE.py:NAME, {OPENENV}URL or {AGENTGYM}NAME@URL"


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """A user's own environment: where it is, and what it does not say itself."""

    env: str | None = None
    """The environment in which the agent plays: MODULE:NAME or FILE.py:NAME of a gymnasium.Env
    class, of a function that returns an environment, or of a Task; openenv:URL or
    agentgym:NAME@URL of a server. None: there is no environment."""
    instruction: str | None = None
    """What the agent is told to do in every episode. None: the environment says it, by
    info["instruction"] of reset or an attribute `instruction`."""
    step_limit: int = STEP_LIMIT
    """Actions after which an episode is cut off, even if the environment never ends it."""
    score: Literal["sum", "last", "info"] | None = None
    """What an episode's score is computed from: the sum of its rewards, the last reward, or a value
    in the info of step (see score-key). None: the sum; for a server, its own score."""
    score_key: str = "score"
    """The value's key in the info, with score info."""
    worst: float = 0.0
    """The sum, reward or value that is worth score 0."""
    best: float = 1.0
    """The sum, reward or value that is worth score 100, the highest that an episode can reach: more
    is an error."""
    success_key: str | None = None
    """The key in the info that says whether the task is solved. None: `success` if the info has it,
    else an episode is solved if its score is 100."""
    train_items: str = TRAIN
    """Seeds of the training episodes, FIRST-LAST; numbers of items with agentgym. A demonstration
    with `seed` in its metadata belongs to the episode of that seed."""
    dev_items: str = DEV
    """Seeds of the dev episodes, on which the best round is chosen."""
    test_items: str = TEST
    """Seeds of the test episodes, which are played once, at the end."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for values that are not allowed."""
        check_bounds(self, {"step_limit": COUNT})
        if not -math.inf < self.worst < math.inf:
            raise OutOfBounds(f"worst must be finite, not {self.worst:g}")
        if not self.worst < self.best < math.inf:
            raise OutOfBounds(
                f"best must be finite and above worst, {self.worst:g}, not {self.best:g}"
            )
        split_ranges(self.train_items, self.dev_items, self.test_items)

    def make_task(self) -> Task:
        """The environment as a task, see `open_environment`."""
        return open_environment(self)


DEFAULTS = {field.name: field.default for field in fields(EnvConfig)}

SCORING = ("score", "score_key", "worst", "best", "success_key")
ITEMS = ("train_items", "dev_items", "test_items")


def open_environment(config: EnvConfig) -> Task:
    """Opens a user's own environment as a task; a server is not contacted yet.

    Args:
        config: Where the environment is (`env`), and its items, scoring and step limit where their
            defaults do not fit.

    Returns:
        The task, with an expert only if `env` names a `Task` that has one.

    Raises:
        CannotLoad: There is no such environment.
        EnvironmentFailed: Its code raises, or an option does not apply to it.
        ServerError: The address is not valid.

    Example:
        >>> import stepagent
        >>> config = stepagent.EnvConfig(
        ...     env="examples/own_environment.py:Household", instruction="Fetch what is asked for."
        ... )
        >>> task = stepagent.open_environment(config)
        >>> task.name, task.items("test")[0]
        ('Household', 'seed/2000000')
    """
    place = config.env
    if not place:
        raise CannotLoad(f"no environment is named; expected {FORMS}")
    if place.startswith(OPENENV):
        return _open_openenv(place.removeprefix(OPENENV), config)
    if place.startswith(AGENTGYM):
        return _open_agentgym(place.removeprefix(AGENTGYM), config)
    if place.startswith(("http://", "https://")):
        raise CannotLoad(f"{place}: an address does not say what server it is; expected {FORMS}")
    if ":" not in place:
        raise CannotLoad(f"{place}: expected {FORMS}")
    return _open_python(place, config)


def item_of(task: Task, trajectory: Trajectory) -> str | None:
    """The item of the task that a demonstration was recorded in; None if it is not known.

    That is the trajectory's id if the task has such an item, else `seed/N` for a number N in
    `metadata["seed"]`.
    """
    seed = trajectory.metadata.get("seed")
    is_number = isinstance(seed, int) and not isinstance(seed, bool)
    candidates = [trajectory.id, *([f"seed/{seed}"] if is_number else [])]
    known = {item for split in SPLITS for item in task.items(split)}
    return next((item for item in candidates if item in known), None)


def _open_python(place: str, config: EnvConfig) -> Task:
    found = load_name(place)
    if isinstance(found, type):
        if not (_is_env(found) or _is_task(found)):
            raise _wrong_kind(f"{place} is a class{_without(found)}")
        _check_needs_nothing(place, found)
        made = found if _is_env(found) else _called(place, found)
    elif _is_env(found):
        raise CannotLoad(
            f"{place} is one environment, but several are played at the same time; name its class, "
            "or a function that returns a new one"
        )
    elif _is_task(found):
        made = found
    elif callable(found):
        _check_needs_nothing(place, found)
        made = _called(place, found)
    else:
        raise _wrong_kind(f"{place} is {_kind(found)}")
    if _is_env(made):
        if made is not found:
            _close(made)
        return _gym_task(place, cast("Callable[[], Any]", found), config)
    if not _is_task(made):
        raise _wrong_kind(f"{place} returned {_kind(made)}")
    _refuse(config, ("instruction", "step_limit", *SCORING, *ITEMS), f"{place} is a Task, which")
    return guarded(cast(Task, made))


def _gym_task(place: str, make_env: Callable[[], Any], config: EnvConfig) -> GymTask:
    return GymTask(
        place.rpartition(":")[2],
        make_env,
        seed_items(config.train_items, config.dev_items, config.test_items),
        instruction=config.instruction,
        scoring=_scoring(config, config.score or "sum"),
        step_limit=config.step_limit,
    )


def _open_openenv(url: str, config: EnvConfig) -> Task:
    server = OpenEnvConfig(
        url=url, fixed_instruction=config.instruction, step_limit=config.step_limit
    )
    if config.score is None:
        _refuse(config, SCORING, "without --score an OpenEnv server")
    else:
        server = replace(server, scoring=_scoring(config, config.score))
    has_seeds = any(getattr(config, name) != DEFAULTS[name] for name in ITEMS)
    items = seed_items(config.train_items, config.dev_items, config.test_items)
    return OpenEnvTask(server, items=items if has_seeds else None)


def _open_agentgym(place: str, config: EnvConfig) -> Task:
    name, at, url = place.partition("@")
    if not (name and at and url):
        raise CannotLoad(f"{AGENTGYM}{place}: expected {AGENTGYM}NAME@URL")
    _refuse(config, ("instruction", *SCORING), "an AgentGym server")
    if missing := [name for name in ITEMS if getattr(config, name) == DEFAULTS[name]]:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise CannotLoad(
            f"{AGENTGYM}{place}: the server does not list its items; give their numbers with "
            f"{options}"
        )
    ranges = split_ranges(config.train_items, config.dev_items, config.test_items)
    return AgentGymTask(
        AgentGymConfig(
            environment=cast(Environment, name),
            url=url,
            train=tuple(ranges["train"]),
            dev=tuple(ranges["dev"]),
            test=tuple(ranges["test"]),
            step_limit=config.step_limit,
        )
    )


def _scoring(config: EnvConfig, of: Literal["sum", "last", "info"]) -> Scoring:
    return Scoring(
        of=of,
        key=config.score_key,
        worst=config.worst,
        best=config.best,
        success=config.success_key,
    )


def _refuse(config: EnvConfig, names: Iterable[str], who: str) -> None:
    """Raises `CannotLoad` for an option that was given but has no effect."""
    for name in names:
        if getattr(config, name) != DEFAULTS[name]:
            option = f"--{name.replace('_', '-')}"
            raise CannotLoad(f"{option} has no effect: {who} decides that itself")


def _is_env(found: object) -> bool:
    return all(callable(getattr(found, name, None)) for name in ("reset", "step"))


def _is_task(found: object) -> bool:
    """Whether it is meant to be a `Task`; `guarded` names what it lacks."""
    return all(callable(getattr(found, name, None)) for name in ("items", "make_env"))


def _check_needs_nothing(place: str, make: Callable[..., Any]) -> None:
    """Raises `CannotLoad` for a class or function that cannot be called without arguments."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):  # compiled code may have no signature
        return
    needed = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        name = place.rpartition(":")[2]
        raise CannotLoad(
            f"{place} needs arguments ({', '.join(needed)}); name a function without any that "
            f"gives them: def make(): return {name}({needed[0]}=...)"
        )


def _called(place: str, make: Callable[[], object]) -> object:
    try:
        return make()
    except EnvironmentFailed:
        raise
    except (Exception, SystemExit) as error:
        raise CannotLoad(f"{place}() raised {raised(error)}") from error


def _close(env: object) -> None:
    """Closes an environment that was only made to see what it is."""
    close = getattr(env, "close", None)
    if callable(close):
        with explained("close()"):
            close()


def _kind(found: object) -> str:
    return "None" if found is None else f"an object of type {type(found).__name__}"


def _without(found: type) -> str:
    missing = [name for name in ("reset", "step") if not callable(getattr(found, name, None))]
    return f" without {missing[0]}" if len(missing) == 1 else ""


def _wrong_kind(what: str) -> CannotLoad:
    return CannotLoad(
        f"{what}, not an environment; expected a gymnasium.Env class, a function that returns an "
        "environment, or a Task"
    )
