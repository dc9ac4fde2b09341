"""Stand-ins of tests for a benchmark and a language model: a world of boxes, a tiny policy.

In the world of boxes the agent fetches an object. Rooms are in a row; each has two coloured boxes
and says what they hold. The expert goes on until it sees the object, then opens its box.
"""

import signal
import string
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from stepagent.algorithms.sft import SFTConfig, sft
from stepagent.inspection import StepTree, step_trees
from stepagent.model import forward
from stepagent.model.forward import Layers
from stepagent.model.generation import Decoding
from stepagent.model.policy import Policy
from stepagent.model.updates import Metrics, OptimizerConfig
from stepagent.practice import Lesson
from stepagent.rendering.renderer import RenderedTrajectory
from stepagent.rollout import rollout
from stepagent.scratch.small_model import TinyConfig, build_tiny_model
from stepagent.tasks.base import EnvironmentLost, ExpertFailed, Split, Task, TextEnv
from stepagent.tasks.tries import Lost
from stepagent.types import AgentAction, PracticedStep, Step, Trajectory

OBJECTS = ("cup", "hat", "key", "lamp", "pen", "rope")
COLOURS = ("red", "blue", "green")
ROOMS = {"near": (1, 2), "far": (3, 4)}
"""Which room the object may be in, counted from 1, for each group of items."""
SPLITS: dict[Split, range] = {"train": range(40), "dev": range(40, 52), "test": range(52, 64)}
STEP_LIMIT = 8


class BoxEnv(gym.Env[str, str]):
    """One world of boxes; see `stepagent.tasks.base.TextEnv`."""

    observation_space = spaces.Text(500, charset=string.printable)
    action_space = spaces.Text(500, charset=string.printable)

    def __init__(self, world: "BoxWorld") -> None:
        self.world = world
        self.is_closed = False
        self.rooms: list[dict[str, str]] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        items = self.world.items("train")
        self.item = options["item"] if options else items[int(self.np_random.integers(len(items)))]
        self.target, self.rooms = self.world.layout(self.item)
        self.room, self.num_steps, self.score = 0, 0, 0.0
        self.world.lose_if_wanted(self.item, 0)
        return self._look(), {"instruction": f"Fetch the {self.target}.", **self._info()}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.rooms is None:
            raise gym.error.ResetNeeded("reset comes first")
        self.num_steps += 1
        self.world.lose_if_wanted(self.item, self.num_steps)
        before, words = self.score, action.split()
        text = "Nothing happens."
        if action == "go on" and self.room + 1 < len(self.rooms):
            self.room += 1
            text = self._look()
        elif len(words) == 3 and words[0] == "open" and words[1] in self.rooms[self.room]:
            text = f"You find a {self.rooms[self.room][words[1]]}."
            if self.rooms[self.room][words[1]] == self.target:
                self.score = 100.0
        reward = (self.score - before) / 100
        is_solved, is_late = self.score == 100, self.num_steps == STEP_LIMIT
        if is_solved or is_late:
            self.rooms = None
        return text, reward, is_solved, is_late and not is_solved, self._info()

    def close(self) -> None:
        self.is_closed = True

    def _look(self) -> str:
        assert self.rooms is not None
        boxes = self.rooms[self.room]
        if self.target in boxes.values():
            self.score = max(self.score, 50.0)
        return " ".join(f"The {colour} box holds a {what}." for colour, what in boxes.items())

    def _info(self) -> dict[str, Any]:
        return {"score": self.score, "success": self.score == 100}


class BoxWorld:
    """The task; `lost` says how often an item's environment dies at a step (0: at its reset)."""

    name = "boxes"

    def __init__(
        self, *, lost: Mapping[tuple[str, int], int] | None = None, unsolved: Sequence[str] = ()
    ) -> None:
        self.lost = dict(lost or {})
        self.unsolved = unsolved
        self.envs: list[BoxEnv] = []
        self._lock = Lock()

    def items(self, split: Split) -> Sequence[str]:
        return [f"{group}/{number}" for group in ROOMS for number in SPLITS[split]]

    def group(self, item: str) -> str:
        return item.split("/")[0]

    def make_env(self) -> TextEnv:
        self.envs.append(BoxEnv(self))
        return self.envs[-1]

    def layout(self, item: str) -> tuple[str, list[dict[str, str]]]:
        """The object to fetch, and for each room what is in the box of each colour."""
        group, number = item.split("/")
        random = np.random.default_rng([list(ROOMS).index(group), int(number)])
        target = OBJECTS[random.integers(len(OBJECTS))]
        others = [name for name in OBJECTS if name != target]
        rooms = []
        for _ in range(random.choice(ROOMS[group])):
            colours = random.permutation(COLOURS)[:2].tolist()
            rooms.append(dict(zip(colours, random.permutation(others)[:2].tolist(), strict=True)))
        rooms[-1][list(rooms[-1])[random.integers(2)]] = target
        return target, rooms

    def expert(self, item: str) -> Trajectory:
        env = BoxEnv(self)
        observation, info = env.reset(options={"item": item})
        instruction, steps, is_over = info["instruction"], list[Step](), False
        while not is_over:
            boxes = {} if env.rooms is None else env.rooms[env.room]
            found = [colour for colour, what in boxes.items() if what == env.target]
            action = f"open {found[0]} box" if found else "go on"
            after, reward, is_over, _, info = env.step(action)
            steps.append(Step(observation=observation, action=action, reward=reward))
            observation = after
        if item in self.unsolved:
            raise ExpertFailed(f"{item}: the expert is not at home")
        return Trajectory(
            id=item, task=self.name, instruction=instruction, steps=tuple(steps),
            final_observation=observation, score=info["score"], success=info["success"],
        )  # fmt: skip

    def metrics(self, episodes: Sequence[Trajectory]) -> dict[str, float]:
        return {"steps": sum(len(e.steps) for e in episodes) / len(episodes)}

    def facts(self) -> dict[str, Any]:
        return {"task": self.name, "step_limit": STEP_LIMIT}

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def lose_if_wanted(self, item: str, step: int) -> None:
        """Raises `EnvironmentLost` as often as the test wants."""
        with self._lock:
            self.lost[item, step] = self.lost.get((item, step), 0) - 1
            if self.lost[item, step] >= 0:
                raise EnvironmentLost(f"{item}: lost at step {step}")


WORLD: Task = BoxWorld()


@cache
def demonstrations(split: Split = "train") -> tuple[Trajectory, ...]:
    """The expert's trajectories of every item of the split."""
    return tuple(WORLD.expert(item) for item in WORLD.items(split))


@cache
def _random_policy(seed: int, hidden_size: int, scale: float) -> Policy:
    size = TinyConfig(
        vocab_size=320, hidden_size=hidden_size, num_layers=2, num_heads=2, context=512
    )
    with TemporaryDirectory() as folder:
        build_tiny_model(demonstrations(), size, seed=seed, folder=Path(folder))
        # An ordinary Llama with random weights, without the induction heads of a tiny model.
        rope = {"rope_type": "default", "rope_theta": 1e4}
        config = LlamaConfig.from_pretrained(folder, rope_parameters=rope)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            LlamaForCausalLM(config).save_pretrained(folder)
        policy = Policy.load(folder)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return policy


def copy_of(policy: Policy) -> Policy:
    """A copy of the policy with its own weights."""
    return Policy(Layers(deepcopy(policy.model)), policy.renderer)


def random_policy(seed: int = 0, *, hidden_size: int = 64, scale: float = 1.0) -> Policy:
    """A policy with random weights; a `scale` above 1 makes its distributions less even."""
    return copy_of(_random_policy(seed, hidden_size, scale))


@cache
def _novice(epochs: int) -> Policy:
    policy = random_policy()
    optimizer = OptimizerConfig(learning_rate=3e-3)
    config = SFTConfig(optimizer=optimizer, epochs=epochs, batch_size=8)
    sft(policy, rendered(policy, demonstrations()), config, seed=0, log=lambda _: None)
    return policy


def novice(epochs: int = 8) -> Policy:
    """A policy cloned from the expert for this many epochs."""
    return copy_of(_novice(epochs))


def in_float64(policy: Policy) -> Policy:
    """The same policy computing in float64 throughout, for tests of equality."""
    return Policy(Layers(deepcopy(policy.model).double()), policy.renderer)


def with_budget(policy: Policy, token_budget: int) -> Policy:
    """The same policy with another token budget."""
    return Policy(Layers(policy.model, token_budget=token_budget), policy.renderer)


def rendered(policy: Policy, trajectories: Sequence[Trajectory]) -> list[RenderedTrajectory]:
    """The trajectories as the policy's token ids."""
    return [policy.renderer.render(t) for t in trajectories]


def rolled_out(
    policy: Policy,
    task: Task,
    items: Sequence[str],
    decoding: Decoding,
    *,
    seed: int,
    num_parallel: int = 8,
) -> list[RenderedTrajectory]:
    """A rollout's episodes in the order of the items; none may be lost."""
    found = {}
    for outcome in rollout(policy, task, items, decoding, seed=seed, num_parallel=num_parallel):
        assert not isinstance(outcome, Lost)
        found[outcome.trajectory.id] = outcome
    return [found[item] for item in items]


def practised_with(
    policy: Policy, trajectories: Sequence[Trajectory], actions: Sequence[Sequence[str]]
) -> list[PracticedStep]:
    """Practised steps, in order, with the given agent actions: one list for each step."""
    states = [(t, step) for t in trajectories for step in range(len(t.steps))]
    return [
        PracticedStep(
            trajectory_id=t.id,
            step_index=step,
            expert_action=t.steps[step].action,
            agent_actions=tuple(
                AgentAction(text=text, token_ids=policy.renderer.action(text), logprob=-1.0)
                for text in own
            ),
        )
        for (t, step), own in zip(states, actions, strict=True)
    ]


def practised_trees(policy: Policy, count: int = 4, num_actions: int = 2) -> list[StepTree]:
    """Trees of the first demonstrations of both groups; some agent actions are the expert's."""
    own = [*demonstrations()[:count], *demonstrations()[40 : 40 + count]]
    choices = ("go on", "open red box", "open the blue box", "look", "open green box")
    number = sum(len(t.steps) for t in own)
    actions = [[choices[(3 * i + k) % 5] for k in range(num_actions)] for i in range(number)]
    return step_trees(rendered(policy, own), practised_with(policy, own, actions))


def plain_logprobs(
    model: PreTrainedModel, before: Sequence[int], action: Sequence[int]
) -> torch.Tensor:
    """(tokens,) log-probabilities of an action's tokens by one plain call on the whole sequence."""
    ids = torch.tensor([[*before, *action]])
    logits = model(input_ids=ids).logits[0, len(before) - 1 : -1]
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(action)[:, None])[:, 0]


def states_of(demonstration: RenderedTrajectory) -> list[tuple[int, ...]]:
    """All ids before each action of a demonstration."""
    return [tuple(state) for state in demonstration.states]


Log = Callable[[Metrics], None]


def assert_packing_changes_nothing(
    train: Callable[[int, Log], Sequence[torch.nn.Module | Policy]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Checks that `train(token_budget, log)` gives equal logs and weights with any rows.

    Rows: each tree alone, all trees together, each path alone. The gradient norm shows the scale.
    """

    def run(token_budget: int) -> tuple[list[Metrics], list[torch.Tensor]]:
        logged: list[Metrics] = []
        modules = train(token_budget, logged.append)
        return logged, [p.detach() for module in modules for p in module.parameters()]

    expected, weights = run(1)
    assert len(expected) > 2 and any(row["grad_norm"] > 1e-3 for row in expected)
    others = [run(10_000)]
    monkeypatch.setattr(forward, "follows_trees", lambda model: False)
    others += [run(1), run(10_000)]
    for logged, found in others:
        for row, wanted in zip(logged, expected, strict=True):
            # Paths alone share no tokens.
            assert row["tokens"] >= wanted["tokens"] > 0
            assert row == pytest.approx(wanted | {"tokens": row["tokens"]}, rel=1e-9, abs=1e-10)
        torch.testing.assert_close(found, weights, rtol=1e-8, atol=1e-9)


def gradient_norm(loss: torch.Tensor, modules: Sequence[torch.nn.Module]) -> float:
    """Norm of the loss's gradient over all parameters of the modules."""
    parameters = [p for module in modules for p in module.parameters()]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return float(torch.stack([g.norm() for g in gradients if g is not None]).norm())


def hear_ctrl_c() -> None:
    """Restores the handler of Ctrl-C, since tests may run where it is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def lesson_of(
    own: Sequence[RenderedTrajectory],
    practised: Sequence[PracticedStep] = (),
    held_out: Sequence[RenderedTrajectory] = (),
    held_out_practised: Sequence[PracticedStep] = (),
    explored: Sequence[RenderedTrajectory] = (),
) -> Lesson:
    """A lesson of what a test makes itself; measured on what was practised on the held-out part."""
    return Lesson(
        demonstrations=own,
        practised=practised,
        held_out=held_out,
        held_out_practised=held_out_practised,
        explored=explored,
    )
