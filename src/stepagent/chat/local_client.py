"""A policy of our own, asked like a chat model: prompting as a baseline.

Rules, examples and thoughts are those of any prompted model; token ids come from the policy's
renderer, so that no text can write control tokens.
"""

from collections.abc import Sequence
from threading import Lock

import torch

from stepagent.chat.client import ChatConfig, Message, Reply, TooLong, Usage
from stepagent.chat.server_errors import Option
from stepagent.model.generation import Decoding, decode_alone
from stepagent.model.policy import Policy


class LocalChat:
    """A policy that replies to messages, greedily; any thread may ask it, one is served."""

    def __init__(self, name: str, policy: Policy, *, max_tokens: int) -> None:
        """`name` is told in the episodes; a reply is cut off after `max_tokens`."""
        self.model = name
        self.config = ChatConfig(max_tokens=max_tokens)
        self.refused: frozenset[Option] = frozenset()
        self._policy = policy
        self._lock = Lock()

    def reply(self, messages: Sequence[Message]) -> Reply:
        """The reply to a system message and turns; raises `TooLong` if they do not fit."""
        renderer, limit = self._policy.renderer, self.config.max_tokens
        rules, first, *later = messages
        state = list(renderer.opening(rules.content, first.content))
        for message in later:
            if message.role == "assistant":
                state += renderer.past(renderer.action(message.content))
            else:
                state += renderer.observation(message.content)
        state += renderer.ask
        if len(state) + limit > self._policy.context:
            raise TooLong(
                f"{len(state)} tokens and a reply of {limit} do not fit into the context of "
                f"{self._policy.context}"
            )
        greedy = Decoding(max_new_tokens=limit, temperature=0.0)
        with self._lock:
            said = decode_alone(
                self._policy.layers, state, torch.zeros(limit), greedy, renderer.end_id
            )
        ids = list(said.token_ids)
        is_cut_off = ids[-1] != renderer.end_id
        text = str(renderer.tokenizer.decode(ids, skip_special_tokens=True))
        return Reply(text.strip(), is_cut_off, Usage(len(state), len(ids)))
