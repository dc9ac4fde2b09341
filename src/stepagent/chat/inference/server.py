"""An inference server that samples the agent's actions: adapters go there, token ids come back.

All else stays here: rendering, parsing, training, and log-probabilities, which are read again. What
the server says of its own is only compared with them, so that a wrong model or adapter is noticed.
"""

import atexit
import hashlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import cache
from itertools import islice
from pathlib import Path
from uuid import uuid4

import anyio.from_thread

from stepagent.chat.inference.dialects import DIALECTS, Ask, Dialect, check_tokens
from stepagent.chat.inference.requests import InferenceError, Requests, is_missing, succeeded
from stepagent.chat.replies import Unreadable, parse
from stepagent.model.forward import Layers
from stepagent.model.generation import Decoding, Generated
from stepagent.model.lora import Adapter
from stepagent.model.packs import read_paths
from stepagent.model.prefix_tree import ROOT, PrefixTree
from stepagent.model.reading import read
from stepagent.processes import ranks

logger = logging.getLogger(__name__)

AT_ONCE = 64
"""Requests that wait for an answer at the same time."""

PROBES, PROBE_TOKENS = 8, 32
"""Actions, and their tokens, on which a new adapter is compared."""
MOST_DIFFERENCE = 0.1
"""Nats per token by which log-probabilities of the server may differ from ours.

As much as bfloat16 may change them when a policy is opened. Two adapters of a model can be closer
than that: what keeps rounds apart are the names of their adapters, not this.
"""


@cache
def server_at(url: str) -> "InferenceServer":
    """The server at an address: one object for all policies that act there one after another."""
    return InferenceServer(url)


class InferenceServer:
    """A `Sampler` that asks vLLM or SGLang."""

    def __init__(self, url: str) -> None:
        """Sends no request yet; raises what `Requests` raises."""
        self._requests = Requests(url)
        self.url = self._requests.url
        self._dialect: Dialect = DIALECTS[0]
        self._is_found = False
        self._adapter = ""
        """The name of the adapter on the server."""
        self._vocabulary = self._context = 0
        self._hash = ""
        self._folder: Path | None = None
        """What the first process handed over last; the server may read it again."""
        atexit.register(self.take_back)

    def find(self) -> None:
        """Finds out which kind it is; raises `InferenceError` if it cannot load adapters."""
        if self._is_found:
            return
        for dialect in DIALECTS:
            # Not what is expected there, so it is refused, and nothing is done.
            answer = self._requests.send(dialect.load, [])
            if answer.status in (401, 403):
                raise InferenceError(
                    f"{self.url}: refuses the key, which is read from OPENAI_API_KEY; it says: "
                    f"{self._requests.said(answer)}"
                )
            if not is_missing(answer):
                self._dialect, self._is_found = dialect, True
                return
        raise InferenceError(
            f"{self.url}: cannot load adapters; start vLLM with --enable-lora and "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment, or SGLang with "
            "--enable-lora"
        )

    def hand_over(self, layers: Layers, state: Sequence[int], end_id: int) -> None:
        """Saves the adapter and lets the server load it, if it is another than the last one.

        Each gets a new name, since the server keeps what it has read of a prompt by that name.
        """
        adapter = layers.adapter
        if adapter is None:
            raise InferenceError(
                f"{self.url}: whole models cannot be handed over, only adapters; train one "
                "(--lora.rank 16), or leave out --practise-with"
            )
        before = self._adapter
        with layers.in_full_precision():
            if ranks.is_first():
                self._take(adapter)
        self._adapter, number = ranks.from_first((self._adapter, DIALECTS.index(self._dialect)))
        self._dialect = DIALECTS[number]
        self._vocabulary = layers.config.vocab_size
        self._context = layers.config.max_position_embeddings
        if self._adapter != before:
            try:
                self._probe(layers, state, end_id)
            except BaseException:
                self.take_back()  # so that nothing is sampled by it
                raise

    def _take(self, adapter: Adapter) -> None:
        """Hands an adapter over, unless the server has it already."""
        folder = Path(tempfile.mkdtemp(prefix="stepagent-adapter-"))
        try:
            adapter.save(folder)
            found = hashlib.sha256()
            for path in sorted(folder.iterdir()):
                found.update(path.read_bytes())
            if found.hexdigest() == self._hash:
                return
            self.take_back()
            name = f"stepagent-{uuid4().hex[:12]}"
            self._load(name, folder)
            self._adapter, self._hash, self._folder = name, found.hexdigest(), folder
            logger.info("%s: has the adapter %s", self.url, name)
        finally:
            if self._folder != folder:
                shutil.rmtree(folder)

    def _load(self, name: str, folder: Path) -> None:
        self.find()
        body = {"lora_name": name, "lora_path": str(folder)}
        answer = self._requests.send(self._dialect.load, body)
        if not succeeded(answer):
            raise InferenceError(
                f"{self.url}: cannot load the adapter in {folder}, which it must see (TMPDIR says "
                f"where such folders are made); it says: {self._requests.said(answer)}"
            )

    def take_back(self) -> None:
        """Unloads the adapter and deletes its folder, if one was handed over."""
        name, folder = self._adapter, self._folder
        self._adapter, self._hash, self._folder = "", "", None
        if folder:
            # If the server was stopped, it has no adapter any more.
            self._requests.try_to_send(self._dialect.unload, {"lora_name": name})
            shutil.rmtree(folder, ignore_errors=True)

    def _probe(self, layers: Layers, state: Sequence[int], end_id: int) -> None:
        """Compares log-probabilities of a few actions that the server samples in a state."""
        actions, decoding = list[Generated](), Decoding(max_new_tokens=PROBE_TOKENS)
        if ranks.is_first():
            asked = [(state, number / PROBES) for number in range(PROBES)]
            self.act(asked, decoding, end_id, lambda _, action: actions.append(action))
        actions = ranks.from_first(actions)
        tree = PrefixTree()
        last = tree.add(ROOT, state)[-1]
        for action in actions:
            tree.add_path(last, action.token_ids)
        (logprobs,) = read_paths(
            layers, [tree], lambda packed: packed.sum_by_path(read(layers, packed).logprobs)
        )
        self.check(actions, logprobs.tolist(), decoding.temperature)

    def check(
        self, actions: Sequence[Generated], logprobs: Sequence[float], temperature: float
    ) -> None:
        """Raises `InferenceError` if its log-probabilities and ours differ by too much."""
        if temperature not in (0.0, 1.0):
            return  # SGLang tells those at the temperature
        tokens = sum(len(action.token_ids) for action in actions)
        differences = [abs(a.logprob - own) for a, own in zip(actions, logprobs, strict=True)]
        if tokens and not sum(differences) / tokens <= MOST_DIFFERENCE:
            raise InferenceError(
                f"{self.url}: its log-probabilities differ from ours by "
                f"{sum(differences) / tokens:.2f} nats per token; expected at most "
                f"{MOST_DIFFERENCE:g}: it serves another base model than that of the policy, or "
                f"applies the adapter {self._adapter} otherwise"
            )

    def act(
        self,
        asked: Iterable[tuple[Sequence[int], float]],
        decoding: Decoding,
        end_id: int,
        ended: Callable[[int, Generated], None],
    ) -> None:
        """Asks for many actions at a time; raises `InferenceError`, and then stops the others."""
        numbered = enumerate(asked)
        with anyio.from_thread.start_blocking_portal() as portal:
            running = dict[Future[Generated], int]()
            while True:
                for number, (state, uniform) in islice(numbered, AT_ONCE - len(running)):
                    own = portal.start_task_soon(self._action, state, uniform, decoding, end_id)
                    running[own] = number
                if not running:
                    return
                complete, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in complete:
                    ended(running.pop(future), future.result())

    async def _action(
        self, state: Sequence[int], uniform: float, decoding: Decoding, end_id: int
    ) -> Generated:
        """One action, in several requests if another token than ours has ended a part of it."""
        ids, total = list[int](), 0.0
        # Servers go no further than the context, so an action may end there without its end token.
        longest = min(decoding.max_new_tokens, self._context - len(state))
        while True:
            ask = Ask(
                adapter=self._adapter,
                state=[*state, *ids],
                room=longest - len(ids),
                temperature=decoding.temperature,
                seed=(int(uniform * 2**31) + len(ids)) % 2**31,
                end_id=end_id,
            )
            body = self._dialect.request(ask)
            answer = await self._requests.answer(self._dialect.sample, body)
            if not succeeded(answer):
                raise InferenceError(
                    f"{self.url}: error {answer.status}; if it was started again it has lost the "
                    f"adapter, then continue with --resume; it says: {self._requests.said(answer)}"
                )
            try:
                part = self._dialect.read(parse(answer.body))
                check_tokens(part, ask, self._vocabulary)
            except Unreadable as error:
                raise InferenceError(
                    f"{self.url}: not an answer of {self._dialect.name}: "
                    f"{self._requests.quoted(str(error))}"
                ) from None
            ids += part.token_ids
            total += sum(part.logprobs)
            if ids[-1] == end_id or len(ids) == longest:
                return Generated(tuple(ids), min(0.0, total))
