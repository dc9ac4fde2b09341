"""Environments on the servers of AgentGym, over HTTP.

AgentGym (Xi et al. 2024, arXiv 2406.04151; github.com/WooooDyy/AgentGym) runs one server per
environment. All have the same routes but different fields: see `agentgym_servers`. An item is
`ENVIRONMENT_NUMBER` as in AgentGym's data sets, e.g. `webshop_6`. Servers do not define splits, so
the config lists the item numbers of each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from stepagent.bounds import SECONDS, check_bounds
from stepagent.tasks.adapters.agentgym_servers import SERVERS, Environment, field_of
from stepagent.tasks.adapters.foreign import (
    Answer,
    Expert,
    ForeignEnv,
    ForeignTask,
)
from stepagent.tasks.adapters.remote import CLOSE_SECONDS, JsonServer, ServerError
from stepagent.tasks.adapters.replies import Unusable, flag, number, quoted, text
from stepagent.tasks.adapters.scoring import Scoring
from stepagent.tasks.base import EnvironmentLost, Split


@dataclass(frozen=True, kw_only=True)
class AgentGymConfig:
    """The server, and the items of each split."""

    environment: Environment
    """The environment that the server runs."""
    url: str = "http://127.0.0.1:36001"
    """The server's address."""
    train: tuple[int, ...] = ()
    """Numbers of the training items."""
    dev: tuple[int, ...] = ()
    """Numbers of the dev items."""
    test: tuple[int, ...] = ()
    """Numbers of the test items; AgentGym's are in its data set AgentEval."""
    step_limit: int = 30
    """Step limit of an episode."""
    timeout_seconds: float = 60.0
    """Timeout of one answer, in seconds."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for a timeout that is not positive."""
        check_bounds(self, {"timeout_seconds": SECONDS})


class AgentGymTask(ForeignTask):
    """An AgentGym server as a task; it has an expert only if one is given."""

    def __init__(self, config: AgentGymConfig, *, expert: Expert | None = None) -> None:
        """Raises `ServerError` for an invalid address or environment; sends nothing yet."""
        numbers: dict[Split, tuple[int, ...]] = {
            "train": config.train, "dev": config.dev, "test": config.test
        }  # fmt: skip
        if config.environment not in SERVERS:
            raise ServerError(
                f"AgentGym has no environment {quoted(config.environment)}; "
                f"it has: {', '.join(SERVERS)}"
            )
        self.config = config
        self.fields = SERVERS[config.environment]
        super().__init__(
            f"agentgym-{config.environment}",
            {
                split: {f"{config.environment}_{n}": {"number": n} for n in those}
                for split, those in numbers.items()
            },
            scoring=Scoring(
                of="info",
                key=self.fields.score,
                best=self.fields.best,
                success=self.fields.success,
            ),
            step_limit=config.step_limit,
            expert=expert,
        )
        url = config.url.rstrip("/").removesuffix(self.fields.prefix) + self.fields.prefix
        self.server = JsonServer(url, timeout_seconds=config.timeout_seconds, headers={})

    def build_env(self, step_limit: int | None) -> "AgentGymEnv":
        """A fresh environment."""
        return AgentGymEnv(self, step_limit)

    def facts(self) -> dict[str, Any]:
        """The protocol for reports, with the server's address."""
        return super().facts() | {"engine": "a server of AgentGym", "url": self.server.url}


class AgentGymEnv(ForeignEnv):
    """A session on the server, created at the first reset and again after a failure."""

    def __init__(self, task: AgentGymTask, step_limit: int | None) -> None:
        """Sends nothing yet."""
        super().__init__(task, step_limit)
        self._server = task.server
        self._fields = task.fields
        self._session: int | None = None

    def start(self, item: str, arguments: Mapping[str, Any]) -> tuple[str, str]:
        """Resets the session, or a new one, to the item."""
        fields = self._fields
        try:
            if self._session is None:
                self._session = _session(self._checked("/create", dict(fields.create) or None))
            body = {fields.session: self._session, fields.item: arguments["number"]}
            reply = self._checked("/reset", body | dict(fields.reset))
            return fields.start(reply, self._get)
        except Unusable as error:
            self.end()
            raise self._lost("/reset", f"{item}: {error}") from None
        except (EnvironmentLost, ServerError):
            self.end()
            raise

    def play(self, action: str) -> Answer:
        """Plays the action in the session."""
        fields = self._fields
        try:
            reply = self._checked("/step", {fields.session: self._session, "action": action})
            observation = text(field_of(reply, fields.observation), "the observation")
            is_over = flag(field_of(reply, fields.done), f"{fields.done!r}")
            score = number(field_of(reply, fields.score), "the score")
            return Answer(
                observation=observation,
                reward=number(field_of(reply, "reward"), "the reward"),
                terminated=is_over,
                info={
                    fields.done: is_over,
                    fields.score: min(score, fields.best) if fields.exceeds_best else score,
                },
            )
        except Unusable as error:
            self.end()
            raise self._lost("/step", str(error)) from None
        except (EnvironmentLost, ServerError):
            self.end()
            raise

    def unscored(self, reason: str) -> ServerError:
        """Ends the session: the server's scores are not on the scale of our table."""
        self.end()
        return ServerError(f"{self._server.url}: {self._item}: {reason}")

    def end(self) -> None:
        """Ends the session, also after a failure; ignores servers that cannot."""
        session, self._session = self._session, None
        if session is not None:
            try:
                self._server.post(
                    "/close", {self._fields.session: session}, timeout_seconds=CLOSE_SECONDS
                )
            except (EnvironmentLost, ServerError):
                return

    def _get(self, path: str) -> JsonValue:
        reply = self._server.get(path, **{self._fields.session: self._session})
        return self._without_error(path, reply)

    def _checked(self, path: str, body: JsonValue) -> JsonValue:
        return self._without_error(path, self._server.post(path, body))

    def _without_error(self, path: str, reply: JsonValue) -> JsonValue:
        """The reply; some servers report errors with status 200."""
        if isinstance(reply, dict) and "error" in reply:
            raise self._lost(path, f"it says: {quoted(reply['error'])}")
        return reply

    def _lost(self, path: str, reason: str) -> EnvironmentLost:
        return EnvironmentLost(f"{self._server.url}{path}: {reason}")


def _session(reply: JsonValue) -> int:
    """The number of the session, which some servers wrap in an object."""
    found = reply.get("id", reply.get("env_idx")) if isinstance(reply, dict) else reply
    if not isinstance(found, int) or isinstance(found, bool):
        raise Unusable(f"expected the number of a session, got {quoted(reply)}")
    return found
