"""The client against a real vLLM, which needs an environment of its own.

These tests run if STEPAGENT_VLLM is the path of the Python of such an environment. On a machine
without a GPU a build of vLLM for CPUs will do.
"""

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import pytest
import torch

from fakes import WORLD, BoxWorld, demonstrations, random_policy, rendered, rolled_out
from stepagent.chat.inference import server
from stepagent.chat.inference.requests import InferenceError
from stepagent.inspection import inspect
from stepagent.model.generation import Decoding
from stepagent.model.lora import LoRAConfig
from stepagent.model.policy import Policy
from test_inference import (
    GREEDY,
    SAMPLED,
    assert_read_here,
    finish,
    ids_of,
    logprobs_of,
    practised,
    settings,
    teach,
)
from test_pipeline import files

PYTHON = os.environ.get("STEPAGENT_VLLM")

pytestmark = pytest.mark.skipif(PYTHON is None, reason="STEPAGENT_VLLM is not set")

LONGEST_START = 300.0
"""Seconds."""


class Served(NamedTuple):
    url: str
    base: Path
    context: int = 512

    def names(self) -> list[str]:
        """What it serves: its base model and the adapters that it has loaded."""
        with urlopen(f"{self.url}/v1/models", timeout=60) as answer:
            return [model["id"] for model in json.load(answer)["data"]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A vLLM whose base model asks for another distribution and more ends than ours."""
    folder = tmp_path_factory.mktemp("vllm")
    random_policy(scale=4.0).save(folder / "base")
    path = folder / "base" / "generation_config.json"
    hostile = {"temperature": 0.1, "top_k": 2, "top_p": 0.3, "repetition_penalty": 1.8}
    ends = {"eos_token_id": [3, *range(40, 120)]}
    path.write_text(json.dumps(json.loads(path.read_text()) | hostile | ends))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # All prompts are read at once: vLLM on CPUs cannot read a part of one that has a seed.
    command = [
        str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "base"),
        "--host", "127.0.0.1", "--port", str(port), "--enable-lora", "--max-lora-rank", "16",
        "--dtype", "float32", "--max-num-batched-tokens", "32768",
    ]  # fmt: skip
    environment = {**os.environ, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "HF_HUB_OFFLINE": "1"}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment.pop("PYTHONPATH", None)
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=folder
        )
    try:
        found, started = Served(f"http://127.0.0.1:{port}", folder / "base"), time.monotonic()
        while not _answers(found):
            is_late = time.monotonic() - started > LONGEST_START
            assert process.poll() is None and not is_late, log.read_text()[-3000:]
            time.sleep(1)
        yield found
    finally:
        process.terminate()
        process.wait(timeout=60)


def _answers(served: Served) -> bool:
    try:
        return bool(served.names())
    except OSError:
        return False


@pytest.fixture
def policy(served: Served) -> Iterator[Policy]:
    """A taught policy whose actions the server samples."""
    made = Policy.load(served.base, lora=LoRAConfig(rank=8))
    teach(made)
    made.sampler = found = server.InferenceServer(served.url)
    yield made
    found.take_back()


@contextmanager
def acting_here(policy: Policy) -> Iterator[Policy]:
    """The policy, with its actions sampled by our own engine for now."""
    sampler, policy.sampler = policy.sampler, None
    yield policy
    policy.sampler = sampler


def test_greedy_actions_are_those_of_our_own_engine(policy: Policy) -> None:
    items = WORLD.items("dev")[:4]
    found = practised(policy, GREEDY)
    played = rolled_out(policy, BoxWorld(), items, GREEDY, seed=0)
    with acting_here(policy):
        expected = practised(policy, GREEDY)
        assert played == rolled_out(policy, BoxWorld(), items, GREEDY, seed=0)
    assert ids_of(found) == ids_of(expected)
    torch.testing.assert_close(logprobs_of(found), logprobs_of(expected), rtol=0, atol=1e-4)


def test_first_tokens_are_as_frequent_as_we_read_them(policy: Policy) -> None:
    (one, *_), count = rendered(policy, demonstrations()[40:41]), 2000
    steps = inspect(policy, [one], Decoding(max_new_tokens=1), seed=9, num_actions=count)
    sampled = torch.tensor([action.token_ids[0] for action in next(iter(steps)).agent_actions])
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([next(iter(one.states))])).logits[0, -1]
    probs, generator = logits.softmax(-1), torch.Generator().manual_seed(0)

    def distance(tokens: torch.Tensor) -> float:
        shares = torch.bincount(tokens, minlength=len(probs)) / count
        return float((shares - probs).abs().sum() / 2)

    by_chance = [
        distance(torch.multinomial(probs, count, replacement=True, generator=generator))
        for _ in range(100)
    ]
    assert distance(sampled) < 1.3 * max(by_chance)


def test_sampled_actions_are_read_here_and_those_of_their_seed(policy: Policy) -> None:
    first, again = (practised(policy, SAMPLED, num_actions=3) for _ in range(2))
    assert first == again != practised(policy, SAMPLED, num_actions=3, seed=4)
    assert_read_here(policy, first)


def test_adapters_are_exchanged_and_taken_back(served: Served, policy: Policy) -> None:
    practised(policy, GREEDY)
    (_, first) = served.names()
    teach(policy)
    found = practised(policy, GREEDY)
    (_, second) = served.names()
    assert first != second
    with acting_here(policy):
        assert ids_of(found) == ids_of(practised(policy, GREEDY))
    assert isinstance(policy.sampler, server.InferenceServer)
    policy.sampler.take_back()
    assert len(served.names()) == 1


def test_actions_end_where_the_context_does(served: Served) -> None:
    policy = Policy.load(served.base, lora=LoRAConfig(rank=8))
    policy.sampler = found = server.InferenceServer(served.url)
    (one, *_) = rendered(policy, demonstrations()[40:41])
    state = next(iter(one.states)) * 30
    ended = dict[int, tuple[int, ...]]()
    asked = [(state[: served.context - room], 0.5) for room in (1, 5, 30)]
    policy.ready_sampler()
    longest = Decoding(max_new_tokens=20, temperature=0.0)
    # No token of this number is sampled, so nothing but a limit ends an action.
    found.act(asked, longest, 0, lambda i, action: ended.update({i: action.token_ids}))
    found.take_back()
    assert [len(ended[i]) for i in range(3)] == [1, 5, 20]


def test_another_base_and_a_lost_adapter_are_one_line(
    served: Served, policy: Policy, tmp_path: Path
) -> None:
    practised(policy, GREEDY)
    policy.sampler._requests.send(  # type: ignore[union-attr]
        "/v1/unload_lora_adapter", {"lora_name": served.names()[1]}
    )
    with pytest.raises(InferenceError, match=r"started again.*does not exist") as raised:
        practised(policy, SAMPLED)
    assert "\n" not in str(raised.value)
    random_policy(seed=1, scale=4.0).save(tmp_path / "other")
    other = Policy.load(tmp_path / "other", lora=LoRAConfig(rank=8))
    other.sampler = server.InferenceServer(served.url)
    with pytest.raises(InferenceError, match="another base model"):
        practised(other, GREEDY)
    assert len(served.names()) == 1


def test_a_whole_run_is_repeatable(served: Served, tmp_path: Path) -> None:
    first, again = (
        files(finish(tmp_path / name, settings(served.base, served.url))) for name in "ab"
    )
    assert first == again
    server.server_at(served.url).take_back()
