"""Chat models in commands: their options, their episodes, and what they cost."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from stepagent.bounds import SECONDS
from stepagent.chat.client import ChatClient, ChatConfig, ChatError, Usage
from stepagent.chat.episodes import PromptedPolicy, play
from stepagent.chat.prompts import PromptFormat
from stepagent.commands.episode_journal import journal_path, kept
from stepagent.commands.parsing import UsageError
from stepagent.console.printable import printable
from stepagent.files.lines import Unreadable, read_text
from stepagent.tasks.base import Task
from stepagent.tasks.tries import Lost, Missing
from stepagent.trajectories import read_jsonl, read_trajectories
from stepagent.types import Trajectory

logger = logging.getLogger(__name__)

PREFIX = "openai:"
"""Starts the name of a model on an OpenAI-compatible server."""


@dataclass(frozen=True, kw_only=True)
class PromptedConfig:
    """Options of chat models (openai:MODEL) only."""

    chat: Annotated[ChatConfig, tyro.conf.arg(name="")] = ChatConfig()
    """The server and its requests."""
    prompt_format: PromptFormat = "react"
    """Chat models: `react` asks for a thought before each action, `action` for the action alone."""
    few_shot: int = 0
    """Chat models: expert trajectories in the prompt, of the item's group if there are enough."""
    demonstrations: Path | None = None
    """Chat models: file of trajectories for --few-shot; only those of training items are used."""
    guide: Path | None = None
    """Chat models: text file for the start of the prompt, such as a list of the actions."""
    price_in: float | None = None
    """Chat models: price of a million prompt tokens, in any currency, to print the cost."""
    price_out: float | None = None
    """Chat models: price of a million completion tokens."""

    @property
    def files(self) -> list[Path]:
        """The files that the prompt is made from."""
        return [file for file in (self.demonstrations, self.guide) if file]


PROMPTED = PromptedConfig()


def model_name(policy: str, config: PromptedConfig) -> str | None:
    """The name of the chat model if the policy is one (openai:MODEL), else None.

    Raises `UsageError` for chat options with another policy, and for values out of range.
    """
    if not policy.startswith(PREFIX):
        if config != PROMPTED:
            raise UsageError(
                f"{policy}: not a chat model; --base-url, --few-shot and the like are only for "
                f"{PREFIX}MODEL"
            )
        return None
    if not (name := policy.removeprefix(PREFIX).strip()):
        raise UsageError(f"{policy}: names no model; expected {PREFIX}MODEL")
    chat = config.chat
    for wrong, expected in (
        (config.few_shot < 0, "--few-shot of at least 0"),
        (bool(config.few_shot) != bool(config.demonstrations), "--few-shot with --demonstrations"),
        ((config.price_in is None) != (config.price_out is None), "--price-in with --price-out"),
        (not _are_amounts(config.price_in, config.price_out), "prices of at least 0"),
        (not _are_amounts(chat.temperature), "--temperature of at least 0"),
        (chat.max_tokens < 1, "--max-tokens of at least 1"),
        (chat.timeout_seconds not in SECONDS, f"--timeout-seconds {SECONDS}"),
        (chat.max_retries < 0, "--max-retries of at least 0"),
    ):
        if wrong:
            raise UsageError(f"{policy}: expected {expected}")
    return name


def _are_amounts(*numbers: float | None) -> bool:
    return all(number is None or 0 <= number < math.inf for number in numbers)


def open_client(name: str, config: PromptedConfig) -> ChatClient:
    """A client of the model on its server; sends no request yet."""
    return ChatClient(name, config.chat)


def open_prompted(client: ChatClient, config: PromptedConfig, task: Task) -> PromptedPolicy:
    """The chat model as a policy, with its prompt; raises `UsageError` for too few examples."""
    examples: tuple[Trajectory, ...] = ()
    if config.demonstrations:
        # Only training items may be used in a prompt, whatever else the file holds.
        usable = set(task.items("train"))
        found = read_trajectories(config.demonstrations).trajectories
        examples = tuple(t for t in found if t.id in usable)
        if len(examples) <= config.few_shot:  # one may be the item that is being played
            raise UsageError(
                f"{config.demonstrations}: has {len(examples)} trajectories of training items of "
                f"this task; --few-shot {config.few_shot} needs at least {config.few_shot + 1}"
            )
        if config.prompt_format == "react" and not any(
            s.thought for t in examples for s in t.steps
        ):
            logger.warning(
                "%s: its steps have no thoughts, so the examples show none and the model may not "
                "think either",
                config.demonstrations,
            )
    return PromptedPolicy(
        client=client,
        task=task,
        format=config.prompt_format,
        guide=_text(config.guide) if config.guide else "",
        demonstrations=examples,
        few_shot=config.few_shot,
    )


def _text(file: Path) -> str:
    try:
        return read_text(file).strip()
    except Unreadable as error:
        raise UsageError(f"{printable(str(file), limit=4096)}: {error}") from None


def play_all(
    policy: PromptedPolicy, items: Sequence[str], out: Path, *, num_parallel: int
) -> list[Trajectory | Missing]:
    """The episode or loss of every item, in order; those in the journal are not paid for again."""
    play_items = partial(play, policy, num_parallel=num_parallel)
    try:
        return kept(out, items, policy.settings, play_items, "Episodes")
    except ChatError as error:
        path = journal_path(out)
        done = {t.id for t in read_jsonl(path, Trajectory)} if path.exists() else set()
        count = sum(item in done for item in items)
        raise ChatError(
            f"{error}; {count} of {len(items)} episodes are finished and saved; the same command "
            "resumes"
        ) from None


def print_lost(lost: Sequence[Lost], count: int) -> None:
    """Lists the items that OUT lacks since their environments failed."""
    for one in lost:
        print(f"lost: {one}")
    if lost:
        print(f"lost: {len(lost)} of {count} episodes; the same command retries them")


def print_bill(episodes: Sequence[Trajectory], config: PromptedConfig) -> None:
    """Prints tokens and cost of the episodes, a dash if unknown, and how many ended early."""
    if stopped := sum(bool(episode.metadata["stopped"]) for episode in episodes):
        print(f"stopped  {stopped} of {len(episodes)} episodes; see their metadata for why")
    usage = Usage()
    for episode in episodes:
        read, written = (episode.metadata[f"{kind}_tokens"] for kind in ("prompt", "completion"))
        usage += Usage(
            read if isinstance(read, int) else None, written if isinstance(written, int) else None
        )
    cost = usage.cost(config.price_in, config.price_out)
    counts = ["-" if n is None else str(n) for n in (usage.prompt_tokens, usage.completion_tokens)]
    print(f"tokens   {counts[0]} in, {counts[1]} out")
    if cost is None:
        print("cost     -")
    else:
        prices = f"{config.price_in:g} in and {config.price_out:g} out per million tokens"
        print(f"cost     {cost:.4f} (at {prices})")
