"""Inspection: in every state of the expert's trajectories the agent samples its own action.

It needs no environment. The states of a trajectory are nested prefixes, so the trajectory is
forwarded once, and then the actions in all states of many trajectories are decoded together.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from stepagent.console.progress import track
from stepagent.model.asking import ask, read_again
from stepagent.model.device import until_all_fit
from stepagent.model.generation import (
    Branch,
    Decoding,
    Generated,
    decode_alone,
    decode_trees,
    decoding_groups,
)
from stepagent.model.packs import read_paths
from stepagent.model.policy import Policy
from stepagent.model.prefix_tree import PrefixTree, lay_out
from stepagent.model.sampling import random_numbers
from stepagent.model.states import add_states
from stepagent.processes import ranks
from stepagent.rendering.actions import same_action
from stepagent.rendering.renderer import RenderedTrajectory
from stepagent.types import AgentAction, PracticedStep

T = TypeVar("T")


def inspect(
    policy: Policy,
    demonstrations: Sequence[RenderedTrajectory],
    decoding: Decoding,
    *,
    seed: int,
    num_actions: int = 1,
) -> list[PracticedStep]:
    """Samples the agent's actions in every state of every demonstration, in their order.

    `num_actions` actions are sampled in each state; the same seed gives the same actions. Raises
    `OutOfMemory` if a single demonstration does not fit, and what the policy's sampler raises.
    """
    if sampler := policy.ready_sampler():
        end_id = policy.renderer.end_id
        found = ask(sampler, demonstrations, decoding, end_id, seed=seed, num_actions=num_actions)
    else:
        with policy.layers.whole():
            found = until_all_fit(
                lambda: _actions(policy, demonstrations, decoding, seed, num_actions),
                policy.layers.halve_budget,
            )
    actions_of = ranks.gathered(found)
    if sampler:
        temperature = decoding.temperature
        actions_of = read_again(sampler, policy.layers, demonstrations, actions_of, temperature)
    return [
        PracticedStep(
            trajectory_id=d.trajectory.id,
            step_index=step,
            expert_action=d.trajectory.steps[step].action,
            agent_actions=tuple(
                _agent_action(policy, d, g)
                for g in actions_of[number][step * num_actions : (step + 1) * num_actions]
            ),
        )
        for number, d in enumerate(demonstrations)
        for step in range(len(d.actions))
    ]


def _actions(
    policy: Policy,
    demonstrations: Sequence[RenderedTrajectory],
    decoding: Decoding,
    seed: int,
    num_actions: int,
) -> dict[int, list[Generated]]:
    """For each demonstration of this process's share the actions, `num_actions` for each state."""
    layers, end_id = policy.layers, policy.renderer.end_id

    def uniforms(number: int) -> list[Tensor]:
        d = demonstrations[number]
        return [
            random_numbers(seed, d.trajectory.id, step, k, count=decoding.max_new_tokens)
            for step in range(len(d.actions))
            for k in range(num_actions)
        ]

    if not layers.takes_attention:
        share = ranks.own([float(d.num_tokens) for d in demonstrations])
        return {
            i: [
                decode_alone(layers, state, uniform, decoding, end_id)
                for state, uniform in zip(
                    _repeated(demonstrations[i].states, num_actions), uniforms(i), strict=True
                )
            ]
            for i in track(share, "Inspection")
        }
    trees = [_state_tree(d) for d in demonstrations]
    counts = [num_actions * len(d.actions) for d in demonstrations]
    groups = decoding_groups(layers, [len(tree) for tree, _ in trees], counts)
    costs = [float(sum(len(trees[i][0]) for i in group)) for group in groups]
    actions_of = dict[int, list[Generated]]()
    for group in track([groups[n] for n in ranks.own(costs)], "Inspection"):
        rows, branches = [], []
        for number, i in enumerate(group):
            tree, states = trees[i]
            row, (places,) = lay_out([tree], [states])
            rows.append(row)
            branches += [
                Branch(number, int(places[states[index // num_actions]]), uniform.tolist())
                for index, uniform in enumerate(uniforms(i))
            ]
        actions = iter(decode_trees(layers, rows, branches, decoding, end_id))
        for i in group:
            actions_of[i] = list(islice(actions, counts[i]))
    return actions_of


def _repeated(items: Iterable[T], times: int) -> Iterator[T]:
    return (item for item in items for _ in range(times))


def _agent_action(
    policy: Policy, demonstration: RenderedTrajectory, generated: Generated
) -> AgentAction:
    said = policy.renderer.of(demonstration).parse(generated.token_ids)
    return AgentAction(
        text=said.action,
        thought=said.thought,
        token_ids=generated.token_ids,
        logprob=generated.logprob,
    )


def _state_tree(demonstration: RenderedTrajectory) -> tuple[PrefixTree, list[int]]:
    """The prefix tree of all states of a demonstration, and the last node of each state."""
    tree = PrefixTree()
    return tree, add_states(tree, demonstration)


@dataclass(frozen=True)
class StepTree:
    """A demonstration as a prefix tree: for each step the expert's path, then the agent's."""

    tree: PrefixTree
    is_expert: Tensor
    """(paths,) bool."""
    is_same: Tensor
    """(paths,) bool, true where the action equals the expert's, so also on expert paths."""
    is_end: Tensor
    """(paths,) bool, true where no later reward depends on the action. In inspected steps that is
    everywhere, because the next state is the expert's whatever the agent does."""


def step_tree(
    demonstration: RenderedTrajectory, practised: Sequence[PracticedStep] = ()
) -> StepTree:
    """The tree of one demonstration, with the agent's actions in its states, if any.

    Raises ValueError unless there is one practised step for each step, in order.
    """
    steps = len(demonstration.actions)
    if practised and [p.step_index for p in practised] != list(range(steps)):
        name = demonstration.trajectory.id
        raise ValueError(f"{name}: expected one practised step for each of its steps, in order")
    tree, states = _state_tree(demonstration)
    is_expert, is_same = [], []
    for step, (state, action) in enumerate(zip(states, demonstration.actions, strict=True)):
        tree.add_path(state, action)
        is_expert.append(True)
        is_same.append(True)
        for own in practised[step].agent_actions if practised else ():
            tree.add_path(state, own.token_ids)
            is_expert.append(False)
            # Different token ids can spell the same text, which is not a mistake to learn from.
            is_same.append(same_action(own.text, practised[step].expert_action))
    every = torch.ones(len(is_expert), dtype=torch.bool)
    return StepTree(tree, torch.tensor(is_expert), torch.tensor(is_same), every)


def rollout_tree(
    episodes: Sequence[RenderedTrajectory], demonstration: RenderedTrajectory | None = None
) -> StepTree:
    """The tree of the agent's own episodes of an item, after the expert's trajectory, if any.

    Each of the expert's steps ends an episode of its own, as in inspection.
    """
    tree = PrefixTree()
    is_expert, is_end = [], []
    for played in [demonstration, *episodes] if demonstration else episodes:
        by_expert = played is demonstration
        for state, action in zip(add_states(tree, played), played.actions, strict=True):
            tree.add_path(state, action)
            is_expert.append(by_expert)
            is_end.append(by_expert)
        is_end[-1] = True
    experts = torch.tensor(is_expert)
    return StepTree(tree, is_expert=experts, is_same=experts, is_end=torch.tensor(is_end))


def step_trees(
    demonstrations: Sequence[RenderedTrajectory], practised: Sequence[PracticedStep]
) -> list[StepTree]:
    """The trees of all demonstrations with their practised steps."""
    by_id: dict[str, list[PracticedStep]] = {}
    for step in practised:
        by_id.setdefault(step.trajectory_id, []).append(step)
    return [step_tree(d, by_id[d.trajectory.id]) for d in demonstrations]


def path_logprobs(policy: Policy, practised: Sequence[StepTree]) -> list[Tensor]:
    """For each tree the log-probabilities of its paths (paths,), in nats, without gradient."""
    return read_paths(policy.layers, [p.tree for p in practised], policy.path_logprobs)


def num_expert_tokens(practised: StepTree) -> int:
    """Number of tokens of the expert's paths."""
    pairs = zip(practised.tree.paths, practised.is_expert.tolist(), strict=True)
    return sum(len(path) for path, by_expert in pairs if by_expert)


def expert_path_of_step(is_expert: Tensor) -> Tensor:
    """(paths,) for each path the index of the expert's path at the same step."""
    index = torch.arange(len(is_expert), device=is_expert.device)
    return torch.cummax(torch.where(is_expert, index, 0), 0).values


def agreement(practised: Sequence[PracticedStep]) -> float:
    """How often the agent did what the expert did.

    Args:
        practised: Steps from an inspection, such as `lesson.practised`.

    Returns:
        Share of agent actions that equal the expert's action, 0 to 1.

    Raises:
        ValueError: There are no steps.

    Example:
        >>> import stepagent
        >>> lesson = stepagent.inspect(policy, demonstrations, held_out)
        >>> 0 <= stepagent.agreement(lesson.practised) <= 1
        True
    """
    if not practised:
        raise ValueError("agreement: no practised steps; expected at least one")
    same = [
        same_action(own.text, step.expert_action)
        for step in practised
        for own in step.agent_actions
    ]
    return sum(same) / len(same)
