"""A hand-coded expert for ALFWorld, which knows the goal and otherwise only reads observations.

It knows no more of the room than an agent can read. It searches first where objects of a kind tend
to be (`places`), prefers receptacles that need not be opened, and remembers every object that it
has seen.
"""

import re
from collections.abc import Collection, Generator
from dataclasses import dataclass, field

from stepagent.tasks.alfworld.games import Generation
from stepagent.tasks.alfworld.places import PLACES

THING = re.compile(r"\ba ([a-z]+ \d+)")
TOOLS = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
CLOSED = ("cabinet", "drawer", "fridge", "microwave", "safe", "box", "laundryhamper")
"""Kinds of receptacles that must be opened, so that looking inside takes two actions."""

Plan = Generator[str, str, None]
"""Yields an action and is sent the observation after it."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a game asks for, in the words of its texts."""

    kind: str
    """Short name of the task type, see `TASK_TYPES`."""
    thing: str
    place: str
    """The receptacle to put it into, or the lamp to examine it under."""


@dataclass
class Expert:
    """Chooses the actions of one episode: call it with each observation; None means it gives up."""

    goal: Goal
    generation: Generation
    _unseen: list[str] = field(default_factory=list)
    _seen: dict[str, str] = field(default_factory=dict)
    """Objects, and the receptacle where each was last seen."""
    _open: dict[str, bool] = field(default_factory=dict)
    """Visited receptacles, and whether they are open."""
    _at: str = ""
    _plan: Plan | None = None

    def __call__(self, observation: str) -> str | None:
        """The next action."""
        try:
            if self._plan is None:
                self._unseen = THING.findall(observation)
                self._plan = self._solve()
                return next(self._plan)
            return self._plan.send(observation)
        except StopIteration:
            return None

    def _solve(self) -> Plan:
        room, goal = tuple(self._unseen), self.goal
        if goal.kind == "examine":
            thing = yield from self._fetch(goal.thing, ())
            lamp = (yield from self._find(goal.place, ())) if thing else None
            if lamp:
                yield from self._go(self._seen[lamp])
                yield f"use {lamp}"
            return
        places = [name for name in room if _kind(name) == goal.place]
        tool = next((name for name in room if _kind(name) == TOOLS.get(goal.kind)), None)
        done: list[str] = []
        place = None
        for _ in range(2 if goal.kind == "pick_two" else 1):
            if place is not None:
                done += [name for name, where in self._seen.items() if where == place]
            thing = yield from self._fetch(goal.thing, done)
            if thing is None:
                return
            if tool is not None:
                yield from self._go(tool, opening=False)
                yield f"{goal.kind} {thing} with {tool}"
            place = place or self._best(places)
            if place is None:
                return
            yield from self._go(place)
            if self.generation == "put":
                yield f"put {thing} in/on {place}"
            else:
                yield f"move {thing} to {place}"
            self._seen[thing] = place

    def _best(self, places: list[str]) -> str | None:
        """The receptacle with the most objects of the goal already in it, then one that is open."""

        def worth(place: str) -> tuple[int, bool]:
            here = [_kind(name) for name, where in self._seen.items() if where == place]
            return here.count(self.goal.thing), self._open.get(place, False)

        return max(places, key=worth, default=None)

    def _fetch(self, kind: str, but_not: Collection[str]) -> Generator[str, str, str | None]:
        """Finds an object of a kind and takes it; returns its name, or None."""
        thing = yield from self._find(kind, but_not)
        if thing is not None:
            yield from self._go(self._seen[thing])
            yield f"take {thing} from {self._seen.pop(thing)}"
        return thing

    def _find(self, kind: str, but_not: Collection[str]) -> Generator[str, str, str | None]:
        """Looks into receptacles until one holds an object of a kind; returns its name, or None."""
        chances = PLACES.get(kind, "").split()
        chance = dict(zip(chances[::2], map(int, chances[1::2]), strict=True))

        def worth(place: str) -> float:
            return chance.get(_kind(place), 0.5) / (2 if _kind(place) in CLOSED else 1)

        while True:
            seen = [name for name in self._seen if _kind(name) == kind and name not in but_not]
            if seen:
                return next((name for name in seen if self._seen[name] == self._at), seen[0])
            if not self._unseen:
                return None
            yield from self._go(max(self._unseen, key=worth))

    def _go(self, place: str, *, opening: bool = True) -> Plan:
        """Goes to a receptacle, unless already there, and opens it, unless it is open."""
        if place != self._at:
            self._note(place, (yield f"go to {place}"))
        if opening and not self._open[place]:
            self._note(place, (yield f"open {place}"))
            self._forget(place)  # even if it is still closed: opening it again would fail again

    def _note(self, place: str, observation: str) -> None:
        self._at, self._open[place] = place, "is closed" not in observation
        if self._open[place]:
            self._forget(place)
            here = THING.findall(observation.partition("you see")[2])
            self._seen.update(dict.fromkeys(here, place))

    def _forget(self, place: str) -> None:
        self._unseen = [name for name in self._unseen if name != place]


def _kind(name: str) -> str:
    return name.split()[0]
