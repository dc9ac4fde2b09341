"""A stand-in for vLLM and SGLang on loopback: their paths and bodies, and a real small model.

It loads adapters from folders with PEFT and samples by plain calls of transformers, so what it does
is independent of our own engine.
"""

import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

NOT_FOUND = (404, {"detail": "Not Found"})
Answer = tuple[int, Any]


class Sampled(NamedTuple):
    ids: list[int]
    logprobs: list[float]
    """At the temperature; vLLM's are at temperature 1, which is all that tests ask it for."""
    stopped_by: int | None


@dataclass
class InferenceServer:
    """Serves a base model and the adapters it is told to load; `with` starts and stops it."""

    base: Path
    kind: Literal["vllm", "sglang"] = "vllm"
    has_adapters: bool = True
    """Whether it was started with --enable-lora and what else that needs."""
    other_ends: tuple[int, ...] = ()
    """Tokens that end a text beside those asked for, by generation_config.json."""
    context: int = 512
    refuses_keys: bool = False
    ignores_adapters: bool = False
    """A fault: it samples from the base model."""
    change: Callable[[dict[str, Any]], Any] = lambda answer: answer
    """Faults in an answer to a request for an action."""
    script: list[Answer] = field(default_factory=list)
    """Answers to the next requests for actions, before it samples."""
    hangs: threading.Event = field(default_factory=threading.Event)
    """While set, a request for an action gets no answer."""
    requests: list[tuple[str, Any]] = field(default_factory=list)
    """Paths and bodies, in order of arrival."""
    keys: list[str] = field(default_factory=list)
    adapters: dict[str, nn.Module] = field(default_factory=dict)
    most_at_once: int = 0

    def __enter__(self) -> "InferenceServer":
        self._model = AutoModelForCausalLM.from_pretrained(self.base).eval()
        self._lock, self._sampling, self._now = threading.Lock(), threading.Lock(), 0
        self._stopped = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    server.requests.append((self.path, body))
                    server.keys.append(self.headers["Authorization"])
                    server._now += 1
                    server.most_at_once = max(server.most_at_once, server._now)
                try:
                    status, answer = server._answer(self.path, body)
                finally:
                    with server._lock:
                        server._now -= 1
                content = answer if isinstance(answer, str) else json.dumps(answer)
                self.send_response(status)
                self.send_header("Content-Length", str(len(content.encode())))
                self.send_header("Retry-After-Ms", "1")  # short, so that tests are fast
                self.end_headers()
                self.wfile.write(content.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.request_queue_size = 128
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # client left
        threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.socket.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def loads(self) -> list[dict[str, Any]]:
        """The bodies that asked to load an adapter."""
        return [b for path, b in self.requests if "/load_" in path and isinstance(b, dict)]

    def asked(self) -> list[dict[str, Any]]:
        """The bodies that asked for actions."""
        paths = ("/v1/completions", "/generate")
        return [body for path, body in self.requests if path in paths]

    def _answer(self, path: str, body: dict[str, Any]) -> Answer:
        if self.refuses_keys:
            return 401, {"error": "Unauthorized"}
        if self.kind == "vllm":
            paths = {"/v1/completions": self._complete}
            changes = {"/v1/load_lora_adapter": self._load, "/v1/unload_lora_adapter": self._unload}
            paths |= changes if self.has_adapters else {}
        else:
            paths = {"/generate": self._generate, "/load_lora_adapter": self._load_sglang}
            paths["/unload_lora_adapter"] = self._unload
        if path not in paths:
            return NOT_FOUND
        return paths[path](body) if isinstance(body, dict) else (422, {"detail": "an object"})

    def _load(self, body: dict[str, Any]) -> Answer:
        name, folder = body["lora_name"], Path(body["lora_path"])
        if name in self.adapters:
            return _error(400, f"The lora adapter '{name}' has already been loaded.")
        if not (folder / "adapter_config.json").is_file():
            return _error(404, f"Loading lora {name} failed: No adapter found for {folder}")
        base = AutoModelForCausalLM.from_pretrained(self.base)
        self.adapters[name] = PeftModel.from_pretrained(base, str(folder)).eval()
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _load_sglang(self, body: dict[str, Any]) -> Answer:
        if not self.has_adapters:
            said = "LoRA is not enabled. Please set `--enable-lora` to enable LoRA."
            return 400, {"success": False, "error_message": said, "loaded_adapters": {}}
        status, said = self._load(body)
        return status, {"success": status == 200, "error_message": str(said)}

    def _unload(self, body: dict[str, Any]) -> Answer:
        if self.adapters.pop(body["lora_name"], None) is None:
            return _error(404, "cannot be found")
        return 200, {"success": True} if self.kind == "sglang" else "Success: removed."

    def _complete(self, body: dict[str, Any]) -> Answer:
        if (early := self._early(body["model"])) is not None:
            return early
        room = min(body["max_tokens"], self.context - len(body["prompt"]))
        if room < 1:
            return _error(400, "max_tokens must be at least 1, got 0.")
        ends = {*body["stop_token_ids"], *(() if body["ignore_eos"] else self.other_ends)}
        found = self._sampled(
            body["model"], body["prompt"], room, body["temperature"], body["seed"], ends,
        )  # fmt: skip
        choice = {
            "index": 0,
            "text": "",
            "finish_reason": "length" if found.stopped_by is None else "stop",
            "stop_reason": found.stopped_by,
            "logprobs": {"token_logprobs": found.logprobs},
        }
        if body.get("return_token_ids"):
            choice["token_ids"] = found.ids
        return 200, self.change({"object": "text_completion", "choices": [choice]})

    def _generate(self, body: dict[str, Any]) -> Answer:
        if (early := self._early(body["lora_path"])) is not None:
            return early
        how = body["sampling_params"]
        ends = {*how["stop_token_ids"], *self.other_ends}
        found = self._sampled(
            body["lora_path"], body["input_ids"], how["max_new_tokens"], how["temperature"],
            how["sampling_seed"], ends,
        )  # fmt: skip
        reason: dict[str, Any] = {"type": "length", "length": how["max_new_tokens"]}
        if found.stopped_by is not None:
            reason = {"type": "stop", "matched": found.stopped_by}
        pairs = [[p, token, None] for p, token in zip(found.logprobs, found.ids, strict=True)]
        about = {"finish_reason": reason, "output_token_logprobs": pairs}
        return 200, self.change({"text": "", "output_ids": found.ids, "meta_info": about})

    def _early(self, adapter: str) -> Answer | None:
        """An answer without sampling."""
        while self.hangs.is_set() and not self._stopped.is_set():
            self._stopped.wait(0.01)
        with self._lock:
            if self.script:
                return self.script.pop(0)
        if adapter not in self.adapters:
            return _error(404, f"The model `{adapter}` does not exist.")
        return None

    @torch.inference_mode()
    def _sampled(
        self,
        adapter: str,
        state: list[int],
        room: int,
        temperature: float,
        seed: int,
        ends: Iterable[int],
    ) -> Sampled:
        model = self._model if self.ignores_adapters else self.adapters[adapter]
        generator, ids, logprobs = torch.Generator().manual_seed(seed), list[int](), list[float]()
        with self._sampling:
            fed, cache = torch.tensor([state]), None
            while len(ids) < room:
                out = model(input_ids=fed, past_key_values=cache, use_cache=True)
                logits, cache = out.logits[0, -1].float(), out.past_key_values
                scaled = torch.log_softmax(logits / (temperature or 1.0), -1)
                token = int(
                    torch.multinomial(scaled.exp(), 1, generator=generator)
                    if temperature
                    else logits.argmax()
                )
                ids.append(token)
                logprobs.append(float(scaled[token]))
                if token in ends:
                    return Sampled(ids, logprobs, token)
                fed = torch.tensor([[token]])
        return Sampled(ids, logprobs, None)


def _error(status: int, message: str) -> Answer:
    return status, {"error": {"message": message, "type": "Error", "code": status}}
