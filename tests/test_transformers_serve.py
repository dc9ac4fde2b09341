"""The chat client against a real server, `transformers serve`, that runs on loopback.

`STEPAGENT_SMOLLM2` may name the folder of a chat model, such as SmolLM2; without it the model is a
tiny one with random weights.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from fakes import STEP_LIMIT, BoxWorld, demonstrations, random_policy
from stepagent.chat.client import ChatClient, ChatConfig, ChatError, Message
from stepagent.chat.episodes import PromptedPolicy, play

pytestmark = pytest.mark.slow

for package in ("openai", "fastapi", "uvicorn"):
    pytest.importorskip(package, reason="transformers serve needs it")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model that is served."""
    if "STEPAGENT_SMOLLM2" in os.environ:
        return Path(os.environ["STEPAGENT_SMOLLM2"])
    folder = tmp_path_factory.mktemp("model")
    random_policy(scale=4.0).save(folder)
    return folder


@pytest.fixture(scope="module")
def url(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the server, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    code = "from transformers.cli.transformers import main; main()"
    args = [sys.executable, "-c", code, "serve", str(model), "--host", "127.0.0.1",
            "--port", str(port), "--device", "cpu"]  # fmt: skip
    with open(log, "wb") as file, subprocess.Popen(args, stdout=file, stderr=file) as server:
        try:
            for _ in range(600):
                assert server.poll() is None, log.read_text()
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.2)
            else:
                pytest.fail(f"the server did not come up: {log.read_text()}")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.kill()


def test_a_reply_is_what_the_model_says_and_its_tokens_are_counted(model: Path, url: str) -> None:
    client = ChatClient(str(model), ChatConfig(base_url=url, max_tokens=6))
    messages = [Message("system", "Be brief."), Message("user", "Fetch the cup.")]
    reply = client.reply(messages)
    tokenizer = AutoTokenizer.from_pretrained(model)
    plain = [{"role": m.role, "content": m.content} for m in messages]
    inputs = tokenizer.apply_chat_template(
        plain, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    length = inputs["input_ids"].shape[1]
    served = AutoModelForCausalLM.from_pretrained(model)
    written = served.generate(**inputs, max_new_tokens=6, do_sample=False)[0, length:]
    assert reply.text == tokenizer.decode(written, skip_special_tokens=True)
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (length, len(written))
    assert reply.is_cut_off == (len(written) == 6)


def test_episodes_of_a_served_model_are_whole(model: Path, url: str) -> None:
    client = ChatClient(str(model), ChatConfig(base_url=url, max_tokens=6))
    policy = PromptedPolicy(client, BoxWorld(), "react", "", demonstrations()[:3], few_shot=1)
    found = {t.id: t for t in play(policy, ["near/40", "far/41"], num_parallel=2)}
    assert set(found) == {"near/40", "far/41"}
    for episode in found.values():
        replies = len(episode.steps)
        read, written = (episode.metadata[f"{kind}_tokens"] for kind in ("prompt", "completion"))
        assert isinstance(read, int) and isinstance(written, int)
        assert read > 50 * replies and 0 < written <= 6 * replies
        assert episode.success or episode.truncated
        assert episode.metadata["stopped"] or replies == STEP_LIMIT or episode.success


def test_a_model_that_is_not_served_is_one_line(url: str) -> None:
    with pytest.raises(ChatError, match=r"error 400 for model 'other'; it says: .*pinned to"):
        ChatClient("other", ChatConfig(base_url=url)).reply([Message("user", "Hello?")])
