"""The process that plays ALFWorld's games, with TextWorld's own PDDL engine and ALFWorld's names.

It is a separate process (`python -P -m stepagent.tasks.alfworld.engine CACHE DESCRIPTOR PARENT`,
see `workers`) because the engine is native code with global state that can crash its process, and
because loading a game keeps a core busy. Requests arrive on standard input and answers leave on
the file descriptor, both as JSON, one per line; see `Engine`.

Three things make it faster than the original. A planning problem is translated once instead of four
times per game that is loaded, and the translation is cached as compressed text in the folder CACHE.
The grammar is parsed once: games differ in one sentence of it. And after an action, only the
information that the next action needs is computed.
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
CACHE_SIZE = 8
"""Translated problems and parsed grammars kept in memory; up to two megabytes each."""


class Translator:
    """`fast_downward.pddl2sas` with a cache, in memory and in a folder."""

    def __init__(self, folder: Path) -> None:
        """`folder` is made when it is needed."""
        self._folder = folder
        self._translate = fast_downward.pddl2sas
        self._engine = version("fast-downward-textworld")
        self._cached = lru_cache(CACHE_SIZE)(self._find)

    def __call__(
        self, domain: str, problem: str, verbose: bool = False, optimize: bool = False
    ) -> tuple[Any, str]:
        """The parsed problem and its translation, which does not depend on the options."""
        return self._cached(domain, problem)

    def _find(self, domain: str, problem: str) -> tuple[Any, str]:
        key = hashlib.sha256("\0".join((self._engine, domain, problem)).encode()).hexdigest()
        path = self._folder / key[:2] / f"{key}.sas.gz"
        try:
            sas = gzip.decompress(path.read_bytes()).decode()
            if not sas.startswith("begin_version"):  # an empty file is valid gzip
                raise ValueError
        except (OSError, EOFError, zlib.error, ValueError):
            task, sas = self._translate(domain, problem)
            with contextlib.suppress(OSError):  # without a cache, the next time is only slower
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(path) as file:
                    file.write(gzip.compress(sas.encode(), 6, mtime=0))
            return task, sas
        return _parsed(domain, problem), sas


class LeanEnv(PddlEnv):  # type: ignore[misc]  # no types
    """The engine without unused work: the original lists all facts and entities at every step."""

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

    Games in different slots run side by side. An answer has `text` and `won`, or only `error` for a
    game that does not load or fails at a step; that game is dropped and the others go on. If the
    hash is null, the file is not checked.
    """

    def __init__(self, cache: Path) -> None:
        """Replaces two functions of the engine, in this process, by cached versions."""
        fast_downward.pddl2sas = Translator(cache)
        pddl.pddl_logic.GameLogic = lru_cache(CACHE_SIZE)(SafeLogic)
        self._slots: dict[int, Any] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer of the game in the request's slot."""
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
            raise ValueError("the file changed after it was installed; install the data again")
        game = json.loads(data)
        if not (isinstance(game, dict) and all(isinstance(game.get(f), str) for f in FIELDS)):
            raise ValueError(f"expected an object with the texts {', '.join(FIELDS)}")
        sentences = TASK_SENTENCE.findall(game["grammar"])
        if len(sentences) != 1:
            raise ValueError(f"expected one task in the grammar, found {len(sentences)}")
        # This cache would keep every fact of every game. Facts are compared by value, so clearing
        # it does not disturb games that are running.
        _memento_cache.clear()
        if slot not in self._slots:
            self._slots[slot] = AlfredDemangler(LeanEnv(EnvInfos()), shuffle=False)
        self._slots[slot].load({**game, "grammar": game["grammar"].replace(sentences[0], ANY_TASK)})
        state = self._slots[slot].reset()
        return {"text": state.feedback.replace(ANY_TASK, sentences[0]), "won": bool(state["won"])}


def _parsed(domain: str, problem: str) -> Any:
    """The problem, parsed as the translator does it."""
    from fast_downward.translate import normalize  # reads sys.argv when it is imported
    from fast_downward.translate.pddl_parser import lisp_parser, parsing_functions

    texts = (lisp_parser.parse_nested_list(text.split("\n")) for text in (domain, problem))
    task = parsing_functions.parse_task(*texts)
    normalize.normalize(task)
    return task


def _end_with(parent: int) -> None:
    """Ends this process when its parent has ended, whatever it is doing."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    """Answers requests until standard input is closed or the parent ends."""
    cache, descriptor, parent = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    # The main thread cannot see that its input was closed while it computes, perhaps forever.
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    sys.argv = ["translate.py", "domain", "task"]  # the translator parses these when imported
    engine = Engine(cache)
    with os.fdopen(descriptor, "w", encoding="ascii") as answers:
        for line in sys.stdin:
            answers.write(json.dumps(engine.answer(json.loads(line))) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
