"""Rollouts: the policy acts in the environments of a task, many episodes at a time.

Running episodes keep their keys and values between turns, so each turn forwards new tokens only.
The token ids of an episode are those that were fed and sampled; nothing is decoded and encoded
again. The result of an episode does not depend on the other episodes in its batch.
"""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from functools import partial

import torch

from stepagent.console.progress import track
from stepagent.model.device import OutOfMemory, beside_environments, until_it_fits
from stepagent.model.generation import Decoding, Generated
from stepagent.model.opening import PolicyError
from stepagent.model.policy import Policy
from stepagent.model.running_episodes import RunningEpisodes
from stepagent.model.sampling import random_numbers
from stepagent.processes import ranks
from stepagent.rendering.renderer import RenderedTrajectory
from stepagent.tasks.base import Task, TextEnv
from stepagent.tasks.playing import Episode
from stepagent.tasks.tries import Lost, Tries, play_all

logger = logging.getLogger(__name__)


class _Running:
    """An episode of the policy: its record, and the token ids that were fed and sampled."""

    def __init__(self, policy: Policy, env: TextEnv, item: str, room: int) -> None:
        """Does not begin the episode yet; a state may have at most `room` tokens."""
        self.policy = policy
        self.env = env
        self.item = item
        self.room = room
        self.tries = Tries(item)
        self.lost: Lost | None = None
        self.episode: Episode
        self.additions: list[tuple[int, ...]]
        """As in `RenderedTrajectory`, up to the current state."""
        self.actions: list[tuple[int, ...]]
        """The sampled token ids of each action."""

    @property
    def is_over(self) -> bool:
        return self.lost is not None or self.episode.is_over

    def state(self) -> list[int]:
        """All tokens before the next action."""
        ask = self.policy.renderer.ask
        return [*(token for addition in self.additions for token in addition), *ask]

    def begin(self) -> None:
        """Resets the environment to the item."""
        self._play(self._begin)

    def act(self, action: Generated) -> None:
        """Plays an action; if the environment is lost, the episode is begun again."""
        self._play(lambda: self._act(action.token_ids))

    def _play(self, move: Callable[[], None]) -> None:
        outcome = self.tries.play(move, again=self._begin)
        if isinstance(outcome, Lost):
            self.lost = outcome

    def _begin(self) -> None:
        episode = self.episode = Episode(self.env, self.item)
        opening = self.policy.renderer.opening(episode.instruction, episode.observation)
        self.actions, self.additions = [], [opening]
        if (length := len(self.state())) > self.room:
            raise PolicyError(
                f"{self.item}: its first state has {length} tokens, the policy's context of "
                f"{self.policy.context} leaves room for {max(self.room, 0)} beside an action; "
                "use a model with a longer context, or shorten the observations"
            )

    def _act(self, ids: tuple[int, ...]) -> None:
        renderer, episode = self.policy.renderer, self.episode
        thought, action = renderer.parse(ids)
        episode.act(action, thought)
        self.actions.append(ids)
        seen = renderer.observation(episode.observation)
        self.additions.append((*renderer.past(ids), *seen))
        if not episode.is_over and len(self.state()) > self.room:
            episode.truncate()

    def finish(self, task_name: str) -> RenderedTrajectory:
        """The finished episode with its token ids."""
        details = self.episode.info.get("details")
        return RenderedTrajectory(
            trajectory=self.episode.trajectory(task_name, {"details": details} if details else {}),
            additions=tuple(self.additions[:-1]),
            ask=self.policy.renderer.ask,
            actions=tuple(self.actions),
        )


def rollout(
    policy: Policy,
    task: Task,
    items: Sequence[str],
    decoding: Decoding,
    *,
    seed: int,
    num_parallel: int = 8,
) -> Generator[RenderedTrajectory | Lost, None, None]:
    """Yields one episode for each item, in the order in which they finish.

    If an environment is lost, its episode is repeated; after `MAX_TRIES` losses beside others and
    as many alone, the item is yielded as `Lost`. An episode that outgrows the policy's context is
    truncated. When memory runs out, the number of parallel episodes is halved; raises `OutOfMemory`
    if a single episode does not fit, `PolicyError` if a first state is too long, and what the
    policy's sampler raises. With a sampler, all processes must call this.
    """
    policy.ready_sampler()
    play = partial(_rollout, policy, task, decoding, seed)
    return play_all(play, items, num_parallel)


def outcomes_by_item(
    policy: Policy,
    task: Task,
    items: Sequence[str],
    decoding: Decoding,
    *,
    seed: int,
    num_parallel: int,
    description: str,
) -> dict[str, RenderedTrajectory | Lost]:
    """As `rollout`, but all at once, with a progress bar; several processes share the items."""
    own = ranks.every_other(items)
    outcomes = rollout(policy, task, own, decoding, seed=seed, num_parallel=num_parallel)
    with policy.acting():
        found = {
            outcome.item if isinstance(outcome, Lost) else outcome.trajectory.id: outcome
            for outcome in track(outcomes, description, total=len(own))
        }
    return ranks.gathered(found)


def _rollout(
    policy: Policy,
    task: Task,
    decoding: Decoding,
    seed: int,
    items: Sequence[str],
    num_parallel: int,
) -> Generator[RenderedTrajectory | Lost, None, None]:
    width = policy.layers.width
    with ThreadPoolExecutor(max_workers=8) as threads, beside_environments(width):
        batch = _Batch(policy, task, decoding, seed, items, num_parallel, threads)
        try:
            while batch.running:
                yield from batch.finished()
                batch.play()
        finally:
            batch.close()


class _Batch:
    """Episodes that run in parallel: in each turn every one of them plays one action.

    Environments play in threads. The next action is played as soon as it is sampled, while those of
    other episodes are still being decoded. An episode that begins misses a turn, so the others do
    not wait for it, and which episodes are decoded together does not depend on the time it takes.
    """

    def __init__(
        self,
        policy: Policy,
        task: Task,
        decoding: Decoding,
        seed: int,
        items: Sequence[str],
        num_parallel: int,
        threads: Executor,
    ) -> None:
        """Begins an episode for each of the first `num_parallel` items."""
        self.policy, self.task, self.decoding, self.seed = policy, task, decoding, seed
        self.threads = threads
        self.waiting = list(reversed(items))
        count = min(num_parallel, len(items))
        self.running = [self._next(task.make_env()) for _ in range(count)]
        self.moves = {r: threads.submit(r.begin) for r in self.running}
        """What environments are playing now."""
        self.cache = RunningEpisodes(policy.layers, count)

    def _next(self, env: TextEnv) -> _Running:
        # After every state there must be room for an action and its end token.
        room = self.policy.context - self.decoding.max_new_tokens - 1
        return _Running(self.policy, env, self.waiting.pop(), room)

    def finished(self) -> Iterator[RenderedTrajectory | Lost]:
        """Yields the episodes that are over and replaces them with waiting items, if any are left.

        Waits for all environments first. Afterwards no running episode is over.
        """
        self._wait()
        for row, running in enumerate(self.running):
            if running.is_over:
                yield running.lost or running.finish(self.task.name)
                if self.waiting:
                    begun = self.running[row] = self._next(running.env)
                    self.moves[begun] = self.threads.submit(begun.begin)
        keep = [row for row, r in enumerate(self.running) if r in self.moves or not r.is_over]
        if len(keep) < len(self.running):
            _close(r for row, r in enumerate(self.running) if row not in keep)
            self.running = [self.running[row] for row in keep]
            self.cache.keep_rows(keep)

    def play(self) -> None:
        """Each episode that has begun plays an action; there are fewer if memory ran out."""
        until_it_fits(self._play, self._halve)

    def _play(self) -> None:
        # If memory ran out during this turn, some have their actions already.
        rows = [row for row, running in enumerate(self.running) if running not in self.moves]
        if not rows:
            return
        ready, count = [self.running[row] for row in rows], self.decoding.max_new_tokens
        uniform = [random_numbers(self.seed, r.item, len(r.actions), count=count) for r in ready]

        def ended(row: int, action: Generated) -> None:
            running = self.running[row]
            self.moves[running] = self.threads.submit(running.act, action)

        states, end_id = [running.state() for running in ready], self.policy.renderer.end_id
        if sampler := self.policy.sampler:
            asked = zip(states, (float(numbers[0]) for numbers in uniform), strict=True)
            sampler.act(asked, self.decoding, end_id, lambda i, action: ended(rows[i], action))
        else:
            self.cache.act(states, self.decoding, end_id, torch.stack(uniform), rows, ended)

    def _wait(self) -> None:
        """Waits until all environments have played; raises what they raise."""
        wait(self.moves.values())
        for move in self.moves.values():
            move.result()
        self.moves.clear()

    def _halve(self) -> None:
        """Postpones half of the episodes; they are begun again later."""
        if len(self.running) == 1:
            raise OutOfMemory(
                f"{self.running[0].item}: out of memory with a single episode; a smaller model or "
                "a shorter --step-limit would need less"
            )
        wait(self.moves.values())
        keep = (len(self.running) + 1) // 2
        put_back = self.running[keep:]
        self.waiting += [running.item for running in put_back]
        for running in put_back:
            self.moves.pop(running, None)
        _close(put_back)
        del self.running[keep:]
        self.cache = RunningEpisodes(self.policy.layers, keep)
        logger.info("out of memory: from now on %d episodes at once", keep)

    def close(self) -> None:
        """Closes all environments, once they have played."""
        wait(self.moves.values())
        _close(self.running)


def _close(episodes: Iterable[_Running]) -> None:
    for running in episodes:
        running.env.close()
