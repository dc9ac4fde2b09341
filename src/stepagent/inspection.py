"""Inspection: in every state of the expert's trajectories the agent produces its own action.

No environment is needed. All states of a trajectory share one trunk, which is forwarded once; then
the actions of all states decode together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepagent.backends.generation import (
    Branch,
    Decoding,
    Generated,
    decode_branches,
    random_numbers,
)
from stepagent.policy import Policy
from stepagent.prefix_tree import ROOT, PrefixTree, fill_rows
from stepagent.progress import track
from stepagent.renderer import RenderedTrajectory
from stepagent.types import AgentAction, PracticedStep


def practise(
    policy: Policy,
    demonstrations: Sequence[RenderedTrajectory],
    decoding: Decoding,
    *,
    seed: int,
    num_actions: int = 1,
    token_budget: int = 2048,
) -> list[PracticedStep]:
    """The agent's actions at every step of every demonstration, in the order of the demonstrations.

    `token_budget` bounds the trunk tokens that are forwarded together. `num_actions` actions are
    sampled in each state; the same seed gives the same actions.
    """
    states = [len(d.actions) for d in demonstrations]
    generated: list[list[Generated]] = [[] for _ in demonstrations]
    trunks = [_trunk(d) for d in demonstrations]
    groups = fill_rows([len(t) for t in trunks], token_budget)
    for group in track(groups, "Inspection"):
        branches = [
            Branch(
                place, length, random_numbers(seed, name, step, k, count=decoding.max_new_tokens)
            )
            for place, i in enumerate(group)
            for name in (demonstrations[i].trajectory.id,)
            for step, length in enumerate(_prefix_lengths(demonstrations[i]))
            for k in range(num_actions)
        ]
        actions = iter(
            decode_branches(
                policy.model, [trunks[i] for i in group], branches, decoding, policy.renderer.end_id
            )
        )
        for i in group:
            generated[i] = [next(actions) for _ in range(states[i] * num_actions)]
    return [
        PracticedStep(
            trajectory_id=d.trajectory.id,
            step_index=step,
            expert_action=d.trajectory.steps[step].action,
            agent_actions=tuple(
                AgentAction(
                    text=policy.renderer.action_text(g.token_ids),
                    token_ids=g.token_ids,
                    logprob=g.logprob,
                )
                for g in own[step * num_actions : (step + 1) * num_actions]
            ),
        )
        for d, own, count in zip(demonstrations, generated, states, strict=True)
        for step in range(count)
    ]


def _trunk(demonstration: RenderedTrajectory) -> list[int]:
    """Ids up to the last state; nobody acts after the last action."""
    ids = [*demonstration.observations[0]]
    for action, observation in zip(
        demonstration.actions[:-1], demonstration.observations[1:], strict=True
    ):
        ids += [*action, *observation]
    return ids


def _prefix_lengths(demonstration: RenderedTrajectory) -> list[int]:
    """Length of every state on the trunk."""
    lengths, total = [], 0
    for observation, action in zip(demonstration.observations, demonstration.actions, strict=True):
        lengths.append(total + len(observation))
        total = lengths[-1] + len(action)
    return lengths


@dataclass(frozen=True)
class StepTree:
    """A demonstration as a prefix tree: of each step the expert's path, then the agent's paths."""

    tree: PrefixTree
    is_expert: Tensor
    """(paths,) bool."""
    is_same: Tensor
    """(paths,) bool, true where the action is the expert's, its own included."""


def step_tree(
    demonstration: RenderedTrajectory, practised: Sequence[PracticedStep] = ()
) -> StepTree:
    """The tree of one demonstration, with the actions that were practised on its steps, if any."""
    if practised and [p.step_index for p in practised] != list(range(len(demonstration.actions))):
        name = demonstration.trajectory.id
        raise ValueError(f"{name}: expected one practised step for each of its steps, in order")
    tree, node = PrefixTree(), ROOT
    is_expert, is_same = [], []
    for step, (observation, action) in enumerate(
        zip(demonstration.observations, demonstration.actions, strict=True)
    ):
        state = tree.add(node, observation)[-1]
        node = tree.add_path(state, action)[-1]
        is_expert.append(True)
        is_same.append(True)
        for own in practised[step].agent_actions if practised else ():
            tree.add_path(state, own.token_ids)
            is_expert.append(False)
            # Other ids can spell the same text: that is no mistake to learn from.
            is_same.append(own.text == practised[step].expert_action.strip())
    return StepTree(tree, torch.tensor(is_expert), torch.tensor(is_same))


def step_trees(
    demonstrations: Sequence[RenderedTrajectory], practised: Sequence[PracticedStep]
) -> list[StepTree]:
    """The trees of all demonstrations, each with its own practised steps."""
    by_id: dict[str, list[PracticedStep]] = {}
    for step in practised:
        by_id.setdefault(step.trajectory_id, []).append(step)
    return [step_tree(d, by_id[d.trajectory.id]) for d in demonstrations]


def expert_path_of_step(is_expert: Tensor) -> Tensor:
    """(paths,) the expert's path of each path's step: the last expert path up to itself."""
    index = torch.arange(len(is_expert), device=is_expert.device)
    return torch.cummax(torch.where(is_expert, index, 0), 0).values


def agreement(practised: Sequence[PracticedStep]) -> float:
    """Share of agent actions that equal the expert's action, 0 to 1."""
    same = [
        own.text == step.expert_action.strip() for step in practised for own in step.agent_actions
    ]
    return sum(same) / len(same)
