"""What vLLM and SGLang are sent and what they answer: adapters by path, prompts by token ids.

Everything that shapes a distribution is sent, since both servers otherwise take it from the model's
generation_config.json. Answers are text from outside: types, lengths and numbers are checked here.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

from stepagent.chat.replies import Unreadable
from stepagent.console.printable import printable


@dataclass(frozen=True)
class Ask:
    """What is to be sampled."""

    adapter: str
    """The name under which the server has loaded the adapter."""
    state: list[int]
    """Ids of everything before."""
    room: int
    """Most tokens to sample."""
    temperature: float
    seed: int
    end_id: int
    """The token that ends an action."""


@dataclass(frozen=True)
class Sampled:
    """What a server has sampled."""

    token_ids: list[int]
    """With the token that ended it, if one did."""
    logprobs: list[float]
    """One for each token, in nats."""
    stopped_by: int | None
    """The token that ended it; none if a limit did."""


class Dialect(Protocol):
    """Paths and bodies of one kind of server."""

    name: str
    load: str
    """Path that loads an adapter from a folder."""
    unload: str
    sample: str

    def request(self, ask: Ask) -> dict[str, Any]:
        """The body that asks for one action."""
        ...

    def read(self, content: Any) -> Sampled:
        """What an answer of status 200 says; raises `Unreadable`."""
        ...


class VLLM:
    """vLLM's completions API."""

    name = "vLLM"
    load = "/v1/load_lora_adapter"
    unload = "/v1/unload_lora_adapter"
    sample = "/v1/completions"

    def request(self, ask: Ask) -> dict[str, Any]:
        """The body that asks for one action."""
        return {
            "model": ask.adapter,
            "prompt": ask.state,
            "max_tokens": ask.room,
            "temperature": ask.temperature,
            "seed": ask.seed,
            "stop_token_ids": [ask.end_id],
            # Only our end token ends an action, not what else generation_config.json lists.
            "ignore_eos": True,
            "logprobs": 0,
            "return_token_ids": True,
            **_WHOLE_DISTRIBUTION,
        }

    def read(self, content: Any) -> Sampled:
        """What an answer of status 200 says; raises `Unreadable`."""
        choices = _field(content, "choices", list)
        if len(choices) != 1:
            raise Unreadable(f"{len(choices)} choices; expected one")
        choice = choices[0]
        if isinstance(choice, dict) and choice.get("token_ids") is None:
            raise Unreadable("no token ids in it; expected a vLLM that knows return_token_ids")
        said = _field(_field(choice, "logprobs", dict), "token_logprobs", list)
        stopped_by = choice.get("stop_reason") if choice.get("finish_reason") == "stop" else None
        return _sampled(_field(choice, "token_ids", list), said, stopped_by)


class SGLang:
    """SGLang's own API, whose answers have token ids."""

    name = "SGLang"
    load = "/load_lora_adapter"
    unload = "/unload_lora_adapter"
    sample = "/generate"

    def request(self, ask: Ask) -> dict[str, Any]:
        """The body that asks for one action."""
        return {
            "lora_path": ask.adapter,
            "input_ids": ask.state,
            "return_logprob": True,
            "sampling_params": {
                "max_new_tokens": ask.room,
                "temperature": ask.temperature,
                "sampling_seed": ask.seed,
                # With ignore_eos it would ignore these too. So other ends of text end it as well,
                # after which the caller lets it go on.
                "stop_token_ids": [ask.end_id],
                **_WHOLE_DISTRIBUTION,
            },
        }

    def read(self, content: Any) -> Sampled:
        """What an answer of status 200 says; raises `Unreadable`."""
        about = _field(content, "meta_info", dict)
        reason = _field(about, "finish_reason", dict)
        if reason.get("type") not in ("stop", "length"):
            raise Unreadable(f"it broke off: {printable(str(reason), limit=200)}")
        tokens = _field(about, "output_token_logprobs", list)
        if not all(isinstance(token, list) and len(token) >= 2 for token in tokens):
            raise Unreadable("output_token_logprobs has no pairs")
        ids = _field(content, "output_ids", list)
        if ids != [token[1] for token in tokens]:
            raise Unreadable("output_ids and output_token_logprobs have other tokens")
        return _sampled(ids, [token[0] for token in tokens], reason.get("matched"))


DIALECTS: tuple[Dialect, ...] = (VLLM(), SGLang())

_WHOLE_DISTRIBUTION = {
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Every token may be sampled, with its own probability."""


def check_tokens(part: Sampled, ask: Ask, vocabulary: int) -> None:
    """Raises `Unreadable` unless these are tokens that could be sampled, up to where it ended.

    `vocabulary` is the number of tokens that the policy knows.
    """
    ids = part.token_ids
    if not 0 < len(ids) <= ask.room:
        raise Unreadable(f"{len(ids)} tokens; expected 1 to {ask.room}")
    if strange := [token for token in ids if not 0 <= token < vocabulary]:
        raise Unreadable(f"token {strange[0]}; expected 0 to {vocabulary - 1}")
    if ask.end_id in ids[:-1]:
        raise Unreadable(f"it went on after token {ask.end_id}, which ends an action")
    if ids[-1] == ask.end_id or len(ids) == ask.room:
        return
    if part.stopped_by is None:
        raise Unreadable(
            f"it stopped after {len(ids)} of {ask.room} tokens; its context may be shorter than "
            "the policy's"
        )
    if part.stopped_by != ids[-1]:
        raise Unreadable(f"token {part.stopped_by} ended it, but is not the last one")


def _field(content: Any, name: str, kind: type) -> Any:
    found = content.get(name) if isinstance(content, dict) else None
    if not isinstance(found, kind):
        raise Unreadable(f"no {name} in it")
    return found


def _sampled(ids: list[Any], logprobs: list[Any], stopped_by: Any) -> Sampled:
    if not all(_is_int(token) for token in ids):
        raise Unreadable("its token ids are not integers")
    if len(logprobs) != len(ids):
        raise Unreadable(f"{len(logprobs)} log-probabilities of {len(ids)} tokens")
    if not all(isinstance(p, int | float) and math.isfinite(p) and p < 0.01 for p in logprobs):
        raise Unreadable("its log-probabilities are not numbers up to 0")
    return Sampled(ids, [float(p) for p in logprobs], stopped_by if _is_int(stopped_by) else None)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
