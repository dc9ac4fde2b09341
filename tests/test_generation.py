"""Practice and rollouts give what plain calls on the whole history would, whatever runs beside."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from fakes import (
    BoxWorld,
    copy_of,
    demonstrations,
    in_float64,
    novice,
    plain_logprobs,
    random_policy,
    rendered,
    rolled_out,
    states_of,
    with_budget,
)
from stepagent.inspection import agreement, inspect
from stepagent.model.branches import Branches
from stepagent.model.device import OutOfMemory
from stepagent.model.generation import Decoding, Generated
from stepagent.model.policy import Policy
from stepagent.model.running_episodes import RunningEpisodes
from stepagent.model.sampling import choose, random_numbers
from stepagent.rendering.renderer import RenderedTrajectory
from stepagent.rollout import rollout
from stepagent.tasks.tries import MAX_TRIES, Lost
from stepagent.types import Step

OWN = [*demonstrations()[:3], *demonstrations()[40:43]]
"""Demonstrations of one to four steps."""
ITEMS = [f"{group}/{number}" for number in range(4) for group in ("far", "near")]
GREEDY = Decoding(max_new_tokens=6, temperature=0.0)


def actor() -> Policy:
    """A policy that ends some of its actions by itself and is cut off in others."""
    return in_float64(novice())


def generate(policy: Policy, before: Iterable[int], decoding: Decoding) -> tuple[int, ...]:
    """The greedy action by plain `generate` on everything before it."""
    ids = torch.tensor([list(before)])
    found = policy.model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=decoding.max_new_tokens,
        do_sample=False,
        eos_token_id=policy.renderer.end_id,
        pad_token_id=policy.renderer.end_id,
    )
    return tuple(found[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 6])
def test_greedy_practice_equals_plain_generate_from_every_history(max_new_tokens: int) -> None:
    policy, decoding = actor(), Decoding(max_new_tokens=max_new_tokens, temperature=0.0)
    own = rendered(policy, OWN)
    expected = [generate(policy, state, decoding) for d in own for state in states_of(d)]
    for token_budget in (1, 100, 10_000):
        found = inspect(with_budget(policy, token_budget), own, decoding, seed=0, num_actions=2)
        assert [(p.trajectory_id, p.step_index) for p in found] == [
            (t.id, step) for t in OWN for step in range(len(t.steps))
        ]
        assert [[a.token_ids for a in p.agent_actions] for p in found] == [[e, e] for e in expected]
    ended = {ids[-1] == policy.renderer.end_id for ids in expected}
    # "go on" and its end are three tokens, "open red box" and its end are four.
    assert ended == {1: {False}, 2: {False}, 3: {False, True}, 6: {True}}[max_new_tokens]


def test_greedy_practice_of_a_wild_policy_equals_plain_generate() -> None:
    policy, decoding = (
        in_float64(random_policy(scale=6.0)),
        Decoding(max_new_tokens=9, temperature=0.0),
    )
    own = rendered(policy, OWN)
    expected = [generate(policy, state, decoding) for d in own for state in states_of(d)]
    found = inspect(policy, own, decoding, seed=0)
    assert [p.agent_actions[0].token_ids for p in found] == expected
    assert len(set(expected)) > len(expected) / 2


def test_logprobs_of_practice_are_those_of_a_plain_forward_pass_at_temperature_one() -> None:
    policy = actor()
    own = rendered(policy, OWN)
    states = [state for d in own for state in states_of(d)]
    for temperature in (0.0, 0.7, 2.0):
        decoding = Decoding(max_new_tokens=5, temperature=temperature)
        found = inspect(policy, own, decoding, seed=1, num_actions=3)
        with torch.no_grad():
            for state, step in zip(states, found, strict=True):
                for action in step.agent_actions:
                    plain = plain_logprobs(policy.model, state, action.token_ids)
                    assert action.logprob == pytest.approx(float(plain.sum()), rel=1e-9)
                    assert action.text == policy.renderer.parse(action.token_ids).action


def test_the_seed_alone_decides_what_is_sampled() -> None:
    policy = actor()
    own = rendered(policy, OWN)
    decoding = Decoding(max_new_tokens=5, temperature=1.5)

    def sample(seed: int, token_budget: int = 2048, start: int = 0) -> list[tuple[int, ...]]:
        found = inspect(
            with_budget(policy, token_budget), own[start:], decoding, seed=seed, num_actions=3
        )
        return [a.token_ids for p in found for a in p.agent_actions]

    first = sample(7)
    assert sample(7) == first
    assert sample(7, token_budget=1) == first
    assert sample(7, token_budget=130) == first
    later = sample(7, start=2)
    assert later == first[len(first) - len(later) :]
    assert sample(8) != first
    by_state = [set(first[i : i + 3]) for i in range(0, len(first), 3)]
    assert any(len(own_actions) == 3 for own_actions in by_state)


def test_an_action_is_decoded_only_where_it_leaves_its_tree(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = actor()
    episodes = rolled_out(policy, BoxWorld(), ITEMS, GREEDY, seed=0)
    decoded = list[int]()
    step = Branches.step

    def counted(self: Branches, token_ids: Tensor) -> Tensor:
        decoded.extend(token_ids.tolist())
        return step(self, token_ids)

    monkeypatch.setattr(Branches, "step", counted)
    found = inspect(policy, episodes, GREEDY, seed=0)
    # The same agent acts as in its own episodes. Only their last actions are not in the trees.
    assert agreement(found) == 1
    assert sorted(decoded) == sorted(t for e in episodes for t in e.actions[-1][:-1])
    decoded.clear()
    inspect(in_float64(random_policy(scale=6.0)), episodes, GREEDY, seed=0)
    assert len(decoded) > sum(len(e.actions[-1]) for e in episodes)


def test_practice_does_not_change_the_policy_or_its_later_gradients() -> None:
    policy = novice()
    before = [p.detach().clone() for p in policy.model.parameters()]
    inspect(policy, rendered(policy, OWN), GREEDY, seed=0)
    torch.testing.assert_close(list(policy.model.parameters()), before, rtol=0, atol=0)
    policy.model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert all(p.grad is not None for p in policy.model.parameters())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_choose_draws_from_the_softmax(temperature: float) -> None:
    logits = torch.tensor([2.0, 0.5, -1.0, 0.0, 1.0, 1.0, -0.5])
    count = 20_000
    uniform = torch.from_numpy(np.random.default_rng(0).random(count))
    ids, logprobs = choose(logits.expand(count, -1), temperature, uniform)
    observed = torch.bincount(ids, minlength=7).numpy()
    expected = torch.softmax(logits.double() / temperature, -1).numpy() * count
    assert stats.chisquare(observed, expected).pvalue > 0.01
    # The test can tell: another temperature does not pass.
    other = torch.softmax(logits.double() / (temperature * 1.2), -1).numpy() * count
    assert stats.chisquare(observed, other).pvalue < 0.01
    torch.testing.assert_close(logprobs, torch.log_softmax(logits, -1)[ids])


@given(
    st.lists(
        st.one_of(st.floats(-50, 50, width=32), st.just(float("-inf"))), min_size=2, max_size=9
    ),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([0.0, 0.3, 1.0, 3.0]),
)
def test_choose_never_draws_what_is_impossible(
    numbers: list[float], uniform: float, temperature: float
) -> None:
    logits = torch.tensor([[*numbers, 0.0]])
    ids, _ = choose(logits, temperature, torch.tensor([uniform]))
    assert 0 <= int(ids) < logits.shape[1]
    assert float(logits[0, ids]) > float("-inf")


def test_random_numbers_belong_to_one_decision() -> None:
    first = random_numbers(1, "near/3", 2, 0, count=4)
    assert torch.equal(random_numbers(1, "near/3", 2, 0, count=4), first)
    assert torch.equal(random_numbers(1, "near/3", 2, 0, count=2), first[:2])
    others = [(2, "near/3", 2, 0), (1, "near/4", 2, 0), (1, "near/3", 3, 0), (1, "near/3", 2, 1)]
    for seed, name, *key in others:
        assert not torch.equal(random_numbers(seed, name, *key, count=4), first)
    many = torch.cat([random_numbers(0, "far/1", k, count=50) for k in range(100)]).numpy()
    assert stats.kstest(many, "uniform").pvalue > 0.01


def test_logprobs_of_running_episodes_are_those_of_plain_calls_turn_after_turn() -> None:
    policy, decoding = actor(), Decoding(max_new_tokens=5, temperature=1.5)
    demos = rendered(policy, [OWN[0], OWN[3], OWN[4]])
    cache, end_id = RunningEpisodes(policy.layers, 3), policy.renderer.end_id
    histories: list[list[int]] = [[] for _ in demos]
    lengths = set[int]()
    for turn in range(2):
        # What was sampled stays, though it is not what the demonstration goes on with.
        for history, d in zip(histories, demos, strict=True):
            history += d.additions[turn]
        uniform = torch.stack([random_numbers(0, str(i), turn, count=5) for i in range(3)])
        actions = dict[int, Generated]()
        cache.act(histories, decoding, end_id, uniform, range(3), actions.__setitem__)
        assert sorted(actions) == [0, 1, 2]
        for row, action in actions.items():
            with torch.no_grad():
                plain = plain_logprobs(policy.model, histories[row], action.token_ids)
            assert action.logprob == pytest.approx(float(plain.sum()), rel=1e-9)
            histories[row] += action.token_ids
            lengths.add(len(action.token_ids))
    assert len(lengths) > 1


def naive_episode(policy: Policy, item: str, decoding: Decoding) -> RenderedTrajectory:
    """A greedy episode that feeds the whole history again at every step."""
    env = BoxWorld().make_env()
    observation, info = env.reset(options={"item": item})
    fed = [policy.renderer.opening(info["instruction"], observation)]
    sampled, steps, is_over = list[tuple[int, ...]](), list[Step](), False
    history, ask = list(fed[0]), policy.renderer.ask
    instruction = info["instruction"]
    while not is_over:
        ids = generate(policy, [*history, *ask], decoding)
        sampled.append(ids)
        text = policy.renderer.parse(ids).action
        after, reward, terminated, truncated, info = env.step(text)
        is_over = terminated or truncated
        steps.append(
            Step(observation=observation, action=text or "(nothing)", reward=float(reward))
        )
        observation = after
        # A turn that was cut off is closed before the next one.
        end = () if ids[-1] == policy.renderer.end_id else (policy.renderer.end_id,)
        fed.append((*ask, *ids, *end, *policy.renderer.observation(after)))
        history += fed[-1]
    trajectory = OWN[0].model_copy(
        update={
            "id": item, "instruction": instruction, "steps": tuple(steps),
            "final_observation": observation, "score": info["score"],
            "success": info["success"], "truncated": truncated,
        }
    )  # fmt: skip
    return RenderedTrajectory(trajectory, tuple(fed[:-1]), ask, tuple(sampled))


@pytest.mark.parametrize("max_new_tokens", [3, 6])
def test_greedy_rollouts_equal_a_loop_that_feeds_the_whole_history_each_time(
    max_new_tokens: int,
) -> None:
    policy, decoding = actor(), Decoding(max_new_tokens=max_new_tokens, temperature=0.0)
    expected = [naive_episode(policy, item, decoding) for item in ITEMS]
    assert len({len(e.actions) for e in expected}) > (1 if max_new_tokens == 6 else 0)
    for num_parallel in (1, 3, 20):
        world = BoxWorld()
        found = rolled_out(policy, world, ITEMS, decoding, seed=0, num_parallel=num_parallel)
        for episode, wanted in zip(found, expected, strict=True):
            assert episode == wanted
        assert len(world.envs) == min(num_parallel, len(ITEMS))
        assert all(env.is_closed for env in world.envs)


def test_sampled_rollouts_do_not_depend_on_what_runs_beside_them() -> None:
    policy, decoding = actor(), Decoding(max_new_tokens=6, temperature=1.2)
    first = rolled_out(policy, BoxWorld(), ITEMS, decoding, seed=3, num_parallel=2)
    for items, num_parallel in ((ITEMS, 8), (ITEMS[::-1], 3), (ITEMS[2:5], 1)):
        found = rolled_out(policy, BoxWorld(), items, decoding, seed=3, num_parallel=num_parallel)
        assert found == [first[ITEMS.index(item)] for item in items]
    assert rolled_out(policy, BoxWorld(), ITEMS, decoding, seed=4) != first


def test_the_ids_of_an_episode_are_what_its_actions_were_sampled_from() -> None:
    policy = actor()
    for episode in rolled_out(policy, BoxWorld(), ITEMS, GREEDY, seed=0, num_parallel=3):
        assert all(ids[-1] == policy.renderer.end_id for ids in episode.actions)
        for history, action in zip(episode.states, episode.actions, strict=True):
            with torch.no_grad():
                ids = torch.tensor([[*history, *action]])
                greedy = policy.model(input_ids=ids).logits[0, len(history) - 1 : -1].argmax(-1)
            assert tuple(greedy.tolist()) == action
        # Nothing was decoded and encoded again, and here that would have given the same.
        (again,) = rendered(policy, [episode.trajectory])
        assert again == episode


def longest(episodes: list[RenderedTrajectory]) -> RenderedTrajectory:
    return max(episodes, key=lambda e: len(e.actions))


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_a_lost_environment_has_its_episode_repeated_with_the_same_result(
    step: int, times: int
) -> None:
    policy, decoding = actor(), Decoding(max_new_tokens=6, temperature=1.2)
    expected = rolled_out(policy, BoxWorld(), ITEMS, decoding, seed=5, num_parallel=3)
    item = longest(expected).trajectory.id
    assert len(longest(expected).actions) > 3
    world = BoxWorld(lost={(item, step): times})
    assert rolled_out(policy, world, ITEMS, decoding, seed=5, num_parallel=3) == expected
    assert world.lost[item, step] < 0


def test_several_environments_lost_at_once_are_repeated() -> None:
    policy = actor()
    expected = rolled_out(policy, BoxWorld(), ITEMS, GREEDY, seed=0, num_parallel=4)
    lost = {(item, 0 if n % 2 else 1): 1 for n, item in enumerate(ITEMS)}
    world = BoxWorld(lost=lost)
    assert rolled_out(policy, world, ITEMS, GREEDY, seed=0, num_parallel=4) == expected


@pytest.mark.parametrize("num_parallel", [1, 2])
@pytest.mark.parametrize("step", [0, 1])
def test_an_environment_that_is_always_lost_costs_its_own_episode_only(
    step: int, num_parallel: int
) -> None:
    policy = actor()
    expected = rolled_out(policy, BoxWorld(), ITEMS, GREEDY, seed=0)
    world = BoxWorld(lost={(ITEMS[2], step): 100})
    outcomes = rollout(policy, world, ITEMS, GREEDY, seed=0, num_parallel=num_parallel)
    found = {o.item if isinstance(o, Lost) else o.trajectory.id: o for o in outcomes}
    assert found.pop(ITEMS[2]) == Lost(ITEMS[2], f"{ITEMS[2]}: lost at step {step}")
    assert [found[e.trajectory.id] for e in expected if e.trajectory.id != ITEMS[2]] == [
        e for e in expected if e.trajectory.id != ITEMS[2]
    ]
    # Beside others first, and once more alone.
    assert world.lost[ITEMS[2], step] == 100 - MAX_TRIES * num_parallel
    assert all(env.is_closed for env in world.envs)


def test_where_memory_runs_out_fewer_episodes_run_at_once_to_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, decoding = actor(), Decoding(max_new_tokens=6, temperature=1.2)
    expected = rolled_out(policy, BoxWorld(), ITEMS, decoding, seed=5)
    act, sizes = RunningEpisodes.act, list[int]()

    def small(self: RunningEpisodes, states: Sequence[Sequence[int]], *more: Any) -> Any:
        sizes.append(len(states))
        if len(states) > limit:
            raise torch.OutOfMemoryError
        return act(self, states, *more)

    monkeypatch.setattr(RunningEpisodes, "act", small)
    limit = 2
    world = BoxWorld()
    assert rolled_out(policy, world, ITEMS, decoding, seed=5, num_parallel=6) == expected
    assert sizes[:3] == [6, 3, 2]
    assert all(env.is_closed for env in world.envs)
    limit = 0
    with pytest.raises(OutOfMemory, match="out of memory with a single episode"):
        rolled_out(policy, BoxWorld(), ITEMS, decoding, seed=5, num_parallel=6)


def test_a_rollout_that_is_closed_early_closes_its_environments() -> None:
    world = BoxWorld()
    outcomes = rollout(actor(), world, ITEMS, GREEDY, seed=0, num_parallel=2)
    next(outcomes)
    outcomes.close()
    assert len(world.envs) == 2 and all(env.is_closed for env in world.envs)


def test_an_episode_that_outgrows_the_context_ends_truncated() -> None:
    policy = actor()
    whole = longest(rolled_out(policy, BoxWorld(), ITEMS, GREEDY, seed=0))
    item = whole.trajectory.id
    # The third action and the end of its turn still fit behind the third state.
    enough = len(list(whole.states)[2]) + GREEDY.max_new_tokens + 1
    for context, num_steps in ((enough, 3), (enough - 1, 2)):
        narrow = copy_of(policy)
        narrow.model.config.max_position_embeddings = context
        (cut,) = rolled_out(narrow, BoxWorld(), [item], GREEDY, seed=0)
        assert cut.actions == whole.actions[:num_steps]
        assert cut.trajectory.steps == whole.trajectory.steps[:num_steps]
        assert cut.trajectory.truncated


def test_no_items_give_no_episodes() -> None:
    assert rolled_out(actor(), BoxWorld(), [], GREEDY, seed=0) == []


def test_agreement_counts_equal_actions() -> None:
    policy = actor()
    own = rendered(policy, OWN)
    found = inspect(policy, own, GREEDY, seed=0, num_actions=2)
    experts = list(chain.from_iterable([s.action for s in t.steps] for t in OWN))
    same = [
        a.text == expert for p, expert in zip(found, experts, strict=True) for a in p.agent_actions
    ]
    assert 0 < sum(same) < len(same)
    assert agreement(found) == sum(same) / len(same)
