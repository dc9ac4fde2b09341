"""The process that plays ALFWorld's games, with TextWorld's own PDDL engine and ALFWorld's names.

It runs apart (`python -P -m stepagent.tasks.alfworld.engine CACHE DESCRIPTOR PARENT`, see
`alfworld_workers`) because the engine is native code with state of its own, which can end its
process, and because a game that loads keeps a core busy. Requests come by the standard input and
answers leave by the descriptor, both are JSON, one a line, see `Engine`.

What the engine does again and again is done once. A planning problem is translated once, not four
times for each game that is loaded and begun, and the translation is kept as compressed text in the
folder CACHE. The grammar is parsed once: games differ by one sentence of it. And after an action
only that is found out which the next action needs.
"""

import contextlib
import gzip
import hashlib
import json
import os
import re
import sys
import threading
import time
import zlib
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fast_downward
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from mementos.core import _memento_cache  # type: ignore[import-untyped]
from textworld import EnvInfos
from textworld.envs.pddl import PddlEnv, pddl

from stepagent.files.atomic import atomic_write
from stepagent.tasks.alfworld.grammar import SafeLogic

TASK_SENTENCE = re.compile(r'Your task is to: [^"\\\n]+')
ANY_TASK = "Your task is to: ANY."
FIELDS = ("pddl_domain", "grammar", "pddl_problem")
KEPT = 8
"""Translated problems in memory; up to two megabytes each."""


class Translator:
    """`fast_downward.pddl2sas`, which remembers what it said, in memory and in a folder."""

    def __init__(self, folder: Path) -> None:
        """Texts are kept in the folder, which is made when needed."""
        self._folder = folder
        self._translate = fast_downward.pddl2sas
        self._engine = version("fast-downward-textworld")
        self._remembered = lru_cache(KEPT)(self._find)

    def __call__(
        self, domain: str, problem: str, verbose: bool = False, optimize: bool = False
    ) -> tuple[Any, str]:
        """The parsed problem and its translation; a planner (`optimize`) gets no other one."""
        return self._remembered(domain, problem)

    def _find(self, domain: str, problem: str) -> tuple[Any, str]:
        key = hashlib.sha256("\0".join((self._engine, domain, problem)).encode()).hexdigest()
        path = self._folder / key[:2] / f"{key}.sas.gz"
        try:
            sas = gzip.decompress(path.read_bytes()).decode()
            if not sas.startswith("begin_version"):  # an empty file is valid gzip
                raise ValueError
        except (OSError, EOFError, zlib.error, ValueError):
            task, sas = self._translate(domain, problem)
            with contextlib.suppress(OSError):  # slower the next time, no more
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(path) as file:
                    file.write(gzip.compress(sas.encode(), 6, mtime=0))
            return task, sas
        return _parsed(domain, problem), sas


class LeanEnv(PddlEnv):  # type: ignore[misc]  # no types
    """The engine without what nobody asked for: it also lists facts and entities every time."""

    def _gather_infos(self) -> None:
        world = self._pddl_state
        actions = list(world.all_applicable_actions())
        facts: list[Any] = []  # grammars ask the state itself
        commands = []
        for action in actions:
            context = {
                "state": world,
                "facts": facts,
                "variables": {
                    k.name: self._entity_infos[v.name] for k, v in action.mapping.items()
                },
                "mapping": action.mapping,
                "entity_infos": self._entity_infos,
            }
            commands.append(self._logic.grammar.derive(action.command_template, context))
        self.state["won"], self.state["lost"] = world.check_goal(), False
        self.state["_valid_actions"], self.state["_valid_commands"] = actions, commands


class Engine:
    """Answers requests: `{"begin": PATH, "sha256": HASH, "slot": 0}`, `{"step": COMMAND, ...}`.

    Games in different slots run side by side. An answer has `text` and `won`; or only `error`, for
    a game that does not load or that fails at a step: it is forgotten, the others go on.
    Without a hash (null) any file will do.
    """

    def __init__(self, cache: Path) -> None:
        """Puts what remembers in the place of two functions of the engine, in this process."""
        fast_downward.pddl2sas = Translator(cache)
        pddl.pddl_logic.GameLogic = lru_cache(KEPT)(SafeLogic)
        self._slots: dict[int, Any] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the game in the slot says."""
        slot = request["slot"]
        try:
            if "begin" in request:
                return self._begin(slot, Path(request["begin"]).read_bytes(), request["sha256"])
            state, _, _ = self._slots[slot].step(request["step"])
        except (Exception, SystemExit) as error:  # the translator exits on bad problems
            self._slots.pop(slot, None)
            reason = " ".join(str(error).split()) or "no reason given"
            return {"error": f"{type(error).__name__}: {reason[:300]}"}
        return {"text": state.feedback, "won": bool(state["won"])}

    def _begin(self, slot: int, data: bytes, sha256: str | None) -> dict[str, Any]:
        if sha256 not in (None, hashlib.sha256(data).hexdigest()):
            raise ValueError("it changed since it was prepared; prepare the data again")
        game = json.loads(data)
        if not (isinstance(game, dict) and all(isinstance(game.get(f), str) for f in FIELDS)):
            raise ValueError(f"expected an object with texts named {', '.join(FIELDS)}")
        sentences = TASK_SENTENCE.findall(game["grammar"])
        if len(sentences) != 1:
            raise ValueError(f"expected one task in the grammar, found {len(sentences)}")
        # Every fact of every game would stay in it. Facts are equal by value: other games that run
        # now can do without.
        _memento_cache.clear()
        if slot not in self._slots:
            self._slots[slot] = AlfredDemangler(LeanEnv(EnvInfos()), shuffle=False)
        self._slots[slot].load({**game, "grammar": game["grammar"].replace(sentences[0], ANY_TASK)})
        state = self._slots[slot].reset()
        return {"text": state.feedback.replace(ANY_TASK, sentences[0]), "won": bool(state["won"])}


def _parsed(domain: str, problem: str) -> Any:
    """The problem as the translator parses it."""
    from fast_downward.translate import normalize  # reads sys.argv when it is imported
    from fast_downward.translate.pddl_parser import lisp_parser, parsing_functions

    texts = (lisp_parser.parse_nested_list(text.split("\n")) for text in (domain, problem))
    task = parsing_functions.parse_task(*texts)
    normalize.normalize(task)
    return task


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone, whatever it is doing."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    """Answers until the standard input ends or the parent does."""
    cache, descriptor, parent = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    # Who computes does not see that its input ended: nobody would stop a game without end.
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    sys.argv = ["translate.py", "domain", "task"]  # what the translator wants to find there
    engine = Engine(cache)
    with os.fdopen(descriptor, "w", encoding="ascii") as answers:
        for line in sys.stdin:
            answers.write(json.dumps(engine.answer(json.loads(line))) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
