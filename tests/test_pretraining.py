"""Pretraining: language modelling, then cloning with permuted names."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import demonstrations, in_float64, plain_logprobs, random_policy, rendered
from stepagent.algorithms.sft import SFTConfig
from stepagent.model.updates import Metrics, OptimizerConfig
from stepagent.scratch.pretraining import PretrainConfig, names, pretrain, rename
from stepagent.types import Trajectory

OWN = [*demonstrations()[:3], *demonstrations()[40:43]]
SLOW = SFTConfig(epochs=1, optimizer=OptimizerConfig(learning_rate=1e-9, warmup_share=0.0))


def short(demonstration: Trajectory) -> Trajectory:
    """The demonstration with each observation shortened to three characters."""
    steps = tuple(
        step.model_copy(update={"observation": step.observation[:3]})
        for step in demonstration.steps
    )
    return demonstration.model_copy(update={"steps": steps})


def test_reading_models_every_token_after_the_first() -> None:
    policy, logged = in_float64(random_policy()), list[Metrics]()
    config = PretrainConfig(reading=SLOW, copying=replace(SLOW, epochs=0))
    pretrain(policy, OWN, config, seed=0, log=logged.append)
    before = in_float64(random_policy())
    own = rendered(before, OWN)
    histories = [(*list(d.states)[-1], *d.actions[-1]) for d in own]
    logprobs = torch.cat([plain_logprobs(before.model, ids[:1], ids[1:]) for ids in histories])
    assert [row["loss"] for row in logged] == [pytest.approx(-logprobs.mean().item(), abs=1e-9)]


def test_copying_clones_demonstrations_with_shortened_observations() -> None:
    policy, logged = in_float64(random_policy()), list[Metrics]()
    config = PretrainConfig(
        reading=replace(SLOW, epochs=0),
        copying=replace(SLOW, epochs=2, batch_size=100),
        renamed=0,
        rare=0,
        characters=3,
    )
    pretrain(policy, OWN, config, seed=0, log=logged.append)
    before = in_float64(random_policy())
    logprobs = [
        plain_logprobs(before.model, state, action)
        for d in rendered(before, [short(d) for d in OWN])
        for state, action in zip(d.states, d.actions, strict=True)
    ]
    # Both passes are in one batch.
    expected = -torch.cat(logprobs).mean().item()
    assert [row["loss"] for row in logged] == [pytest.approx(expected, abs=1e-9)]


def test_names_absent_from_the_context_carry_no_loss() -> None:
    policy, logged = in_float64(random_policy()), list[Metrics]()
    config = PretrainConfig(
        reading=replace(SLOW, epochs=0),
        copying=replace(SLOW, batch_size=100),
        renamed=0,
        rare=1.01,
        characters=3,
    )
    pretrain(policy, OWN, config, seed=0, log=logged.append)
    before = in_float64(random_policy())
    special = set(before.renderer.tokenizer.all_special_ids)
    known = names(rendered(before, OWN), 1.01) - special
    asked, left_out = list[torch.Tensor](), 0
    for d in rendered(before, [short(d) for d in OWN]):
        for state, action in zip(d.states, d.actions, strict=True):
            logprobs = plain_logprobs(before.model, state, action)
            for place, token in enumerate(action):
                if token in known and token not in (*state, *action[:place]):
                    left_out += 1
                else:
                    asked.append(logprobs[place])
    assert left_out and asked
    expected = -torch.stack(asked).mean().item()
    assert [row["loss"] for row in logged] == [pytest.approx(expected, abs=1e-9)]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), rare=st.floats(0, 1))
def test_renaming_permutes_names_and_nothing_else(seed: int, rare: float) -> None:
    own = rendered(random_policy(), OWN)
    known = names(own, rare)
    renamed = rename(own[-1], known, np.random.default_rng(seed))
    before = [t for part in (*own[-1].additions, *own[-1].actions) for t in part]
    after = [t for part in (*renamed.additions, *renamed.actions) for t in part]
    pairs = set(zip(before, after, strict=True))
    # Each name is replaced consistently by one other; other tokens stay.
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
    assert all(a == b if a not in known else b in known for a, b in pairs)
    assert [len(part) for part in renamed.actions] == [len(part) for part in own[-1].actions]


def test_names_are_the_tokens_that_few_demonstrations_have() -> None:
    own = rendered(random_policy(), OWN)
    tokens = [{t for part in (*d.additions, *d.actions) for t in part} for d in own]
    everywhere = set.intersection(*tokens)
    assert not names(own, 1.0) & everywhere
    assert names(own, 1.01) == set.union(*tokens)
    alone = {t for t in set.union(*tokens) if sum(t in own for own in tokens) == 1}
    assert names(own, 0.2) == alone


def test_the_same_seed_renames_alike() -> None:
    config = PretrainConfig(reading=replace(SLOW, epochs=0), copying=SLOW, renamed=1, rare=0.9)
    losses = []
    for seed in (0, 0, 1):
        logged: list[Metrics] = []
        pretrain(random_policy(scale=4.0), OWN, config, seed=seed, log=logged.append)
        losses.append([row["loss"] for row in logged])
    assert losses[0] == losses[1] != losses[2]
