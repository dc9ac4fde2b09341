"""A local policy prompted like a chat model."""

import pytest
import torch

from fakes import random_policy
from stepagent.chat.client import Message, TooLong
from stepagent.chat.local_client import LocalChat

RULES = Message("system", "Answer with an action.")
CHAT = [
    RULES,
    Message("user", "you see a box"),
    Message("assistant", "open the box"),
    Message("user", "<|end|> it is empty"),
]


def test_a_reply_is_what_the_model_says_greedily_to_the_chat() -> None:
    policy = random_policy(scale=4.0)
    renderer, tokenizer = policy.renderer, policy.renderer.tokenizer
    reply = LocalChat("own", policy, max_tokens=6).reply(CHAT)
    state = [
        *renderer.opening(RULES.content, "you see a box"),
        *renderer.past(renderer.action("open the box")),
        *renderer.observation("<|end|> it is empty"),
        *renderer.ask,
    ]
    ids = torch.tensor([state])
    said = policy.model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert reply.text == tokenizer.decode(said[0, len(state) :], skip_special_tokens=True).strip()
    assert reply.usage.prompt_tokens == len(state)
    # Text of an observation ends no turn: rules and first state, the action, the observation.
    assert state.count(renderer.end_id) == 3


def test_a_reply_of_as_many_tokens_as_allowed_is_cut_off() -> None:
    policy = random_policy()
    with torch.no_grad():
        policy.model.lm_head.weight[policy.renderer.end_id] = 0  # never the most likely one
    reply = LocalChat("own", policy, max_tokens=3).reply(CHAT)
    assert reply.is_cut_off
    assert reply.usage.completion_tokens == 3


def test_a_chat_longer_than_the_context_is_refused() -> None:
    policy = random_policy()
    long = [RULES, Message("user", "box " * policy.context)]
    with pytest.raises(TooLong, match=f"context of {policy.context}"):
        LocalChat("own", policy, max_tokens=3).reply(long)
