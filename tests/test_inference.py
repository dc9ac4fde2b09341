"""Actions by an inference server: the same as our own, and no wrong ones taken for right."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from fakes import WORLD, BoxWorld, demonstrations, hear_ctrl_c, random_policy, rendered, rolled_out
from inference_server import Answer, InferenceServer
from stepagent import cli
from stepagent.algorithms.sft import SFTConfig, sft
from stepagent.chat.client import ChatError
from stepagent.chat.inference import requests, server
from stepagent.chat.inference.requests import InferenceError
from stepagent.commands.inspect import main as inspect_main
from stepagent.commands.reflect import main as reflect_main
from stepagent.experiment.config import DataConfig, SettingsError, TrainConfig
from stepagent.experiment.pipeline import train
from stepagent.experiment.run_json import RunError
from stepagent.inspection import inspect, path_logprobs, step_trees
from stepagent.model.generation import Decoding
from stepagent.model.lora import LoRAConfig
from stepagent.model.policy import Policy
from stepagent.model.updates import OptimizerConfig
from stepagent.trajectories import read_jsonl, write_jsonl
from stepagent.types import PracticedStep
from test_evaluate import Killed, World, evaluation
from test_evaluate import run as evaluate_in
from test_pipeline import CONFIG, files, open_run
from test_ranks import ENVIRONMENT, STEPAGENT, succeed, torchrun

FAST = OptimizerConfig(learning_rate=4e-3, warmup_share=0.0)
GREEDY = Decoding(max_new_tokens=8, temperature=0.0)
SAMPLED = Decoding(max_new_tokens=8)
KINDS: tuple[Literal["vllm", "sglang"], ...] = ("vllm", "sglang")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    random_policy(scale=4.0).save(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Taught so much that its actions are not those of its base."""
    folder = tmp_path_factory.mktemp("adapters") / "taught"
    policy = Policy.load(base, lora=LoRAConfig(rank=8))
    teach(policy)
    policy.save(folder)
    return folder


@pytest.fixture(autouse=True)
def forgets_servers() -> Iterator[None]:
    yield
    server.server_at.cache_clear()


def teach(policy: Policy) -> None:
    own = rendered(policy, [*demonstrations()[:8], *demonstrations()[40:48]])
    sft(policy, own, SFTConfig(optimizer=FAST, epochs=12, batch_size=4), seed=0, log=lambda _: None)


def acting_at(served: InferenceServer, adapter: Path) -> Policy:
    policy = Policy.load(adapter)
    policy.sampler = server.InferenceServer(served.url)
    return policy


def practised(policy: Policy, decoding: Decoding, **more: Any) -> list[PracticedStep]:
    how = {"seed": 3, **more}
    return inspect(policy, rendered(policy, demonstrations()[40:43]), decoding, **how)


def ids_of(steps: list[PracticedStep]) -> list[tuple[int, ...]]:
    return [action.token_ids for step in steps for action in step.agent_actions]


def logprobs_of(steps: list[PracticedStep]) -> torch.Tensor:
    return torch.tensor([action.logprob for step in steps for action in step.agent_actions])


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_practice_is_that_of_our_own_engine(
    base: Path, adapter: Path, kind: Literal["vllm", "sglang"]
) -> None:
    own = practised(Policy.load(adapter), GREEDY)
    with InferenceServer(base, kind) as served:
        found = practised(acting_at(served, adapter), GREEDY)
        assert len(served.asked()) >= len(own) == 10
    assert ids_of(found) == ids_of(own)
    assert len({*ids_of(own)}) > 1 and any(len(ids) < 8 for ids in ids_of(own))
    torch.testing.assert_close(logprobs_of(found), logprobs_of(own), rtol=0, atol=1e-4)
    plain = [s.model_copy(update={"agent_actions": ()}) for s in found]
    assert plain == [s.model_copy(update={"agent_actions": ()}) for s in own]


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_practice_is_repeatable_and_its_log_probabilities_are_ours(
    base: Path, adapter: Path, kind: Literal["vllm", "sglang"]
) -> None:
    with InferenceServer(base, kind) as served:
        policy = acting_at(served, adapter)
        first, again = (practised(policy, SAMPLED, num_actions=3) for _ in range(2))
        other = practised(policy, SAMPLED, num_actions=3, seed=4)
        fewer = practised(policy, SAMPLED, num_actions=1)
    assert first == again != other
    # Random numbers belong to a state and the number of the action in it.
    assert ids_of(fewer) == ids_of(first)[::3]
    assert any(len({a.token_ids for a in step.agent_actions}) > 1 for step in first)
    assert_read_here(policy, first)


def test_greedy_episodes_are_those_of_our_own_engine(base: Path, adapter: Path) -> None:
    items = WORLD.items("dev")[:4]
    own = rolled_out(Policy.load(adapter), BoxWorld(), items, GREEDY, seed=0)
    with InferenceServer(base) as served:
        policy = acting_at(served, adapter)
        assert rolled_out(policy, BoxWorld(), items, GREEDY, seed=0) == own
        sampled = [
            rolled_out(policy, BoxWorld(), items, SAMPLED, seed=seed, num_parallel=n)
            for seed, n in ((0, 4), (0, 1), (1, 4))
        ]
    assert sampled[0] == sampled[1] != sampled[2]


def test_everything_that_shapes_the_distribution_is_sent(base: Path, adapter: Path) -> None:
    whole = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    for kind in KINDS:
        with InferenceServer(base, kind) as served:
            policy = acting_at(served, adapter)
            practised(policy, SAMPLED)
            sent = served.asked()[-1]
        how = sent if kind == "vllm" else sent["sampling_params"]
        assert how.items() >= whole.items()
        assert how["stop_token_ids"] == [policy.renderer.end_id]
        assert ("ignore_eos" in how) == (kind == "vllm")


def test_an_adapter_is_handed_over_when_it_has_changed_and_the_former_is_taken_back(
    base: Path, adapter: Path
) -> None:
    with InferenceServer(base) as served:
        policy = acting_at(served, adapter)
        practised(policy, GREEDY)
        (first,) = served.adapters
        folder = Path(served.loads()[0]["lora_path"])
        assert folder.is_dir()
        practised(policy, SAMPLED)
        assert [*served.adapters] == [first]
        teach(policy)
        found = practised(policy, GREEDY)
        (second,) = served.adapters
        assert second != first and not folder.exists()
        assert served.asked()[-1]["model"] == second
        policy.sampler = None
        assert ids_of(practised(policy, GREEDY)) == ids_of(found)
        server.InferenceServer(served.url)  # another object changes nothing
        assert [*served.adapters] == [second]


def test_what_was_handed_over_is_taken_back_in_the_end(base: Path, adapter: Path) -> None:
    with InferenceServer(base) as served:
        policy = acting_at(served, adapter)
        practised(policy, GREEDY)
        folder = Path(served.loads()[0]["lora_path"])
        assert isinstance(policy.sampler, server.InferenceServer)
        policy.sampler.take_back()
        assert not served.adapters and not folder.exists()


def test_a_server_of_another_base_model_is_noticed(
    adapter: Path, tmp_path: Path, base: Path
) -> None:
    random_policy(seed=1, scale=4.0).save(tmp_path / "other")
    with InferenceServer(tmp_path / "other") as served:
        with pytest.raises(InferenceError, match=r"nats per token; .*another base model"):
            practised(acting_at(served, adapter), GREEDY)
        assert not served.adapters


def test_a_server_that_does_not_apply_the_adapter_is_noticed(base: Path, adapter: Path) -> None:
    with InferenceServer(base, ignores_adapters=True) as served:
        policy = acting_at(served, adapter)
        for _ in range(2):
            with pytest.raises(InferenceError, match="nats per token"):
                rolled_out(policy, BoxWorld(), WORLD.items("dev")[:1], GREEDY, seed=0)


def test_a_server_that_changes_while_it_is_used_is_noticed(base: Path, adapter: Path) -> None:
    with InferenceServer(base) as served:
        policy = acting_at(served, adapter)
        practised(policy, SAMPLED)
        served.ignores_adapters = True
        with pytest.raises(InferenceError, match="nats per token"):
            practised(policy, SAMPLED)


def test_a_whole_model_cannot_be_handed_over(base: Path) -> None:
    with InferenceServer(base) as served:
        with pytest.raises(InferenceError, match=r"only adapters; .*--lora.rank 16"):
            practised(acting_at(served, base), GREEDY)
        assert not served.requests


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_loads_no_adapters_is_told_how_to_start(
    base: Path, adapter: Path, kind: Literal["vllm", "sglang"]
) -> None:
    with (
        InferenceServer(base, kind, has_adapters=False) as served,
        pytest.raises(InferenceError, match="--enable-lora"),
    ):
        practised(acting_at(served, adapter), GREEDY)


def test_a_server_that_cannot_see_the_adapter_says_so(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with InferenceServer(base) as served:
        monkeypatch.setattr(served, "_load", lambda _: (404, {"error": {"message": "No adapter"}}))
        with pytest.raises(InferenceError, match=r"must see \(TMPDIR .*it says: 'No adapter'"):
            practised(acting_at(served, adapter), GREEDY)


def test_other_ends_of_text_do_not_end_an_action(base: Path, adapter: Path) -> None:
    own = practised(Policy.load(adapter), GREEDY)
    inner = {token for ids in ids_of(own) for token in ids[:-1]}
    assert inner
    for kind in KINDS:
        with InferenceServer(base, kind, other_ends=tuple(inner)) as served:
            assert ids_of(practised(acting_at(served, adapter), GREEDY)) == ids_of(own)


Change = Callable[[dict[str, Any]], Any]


def choice_with(**fields: Any) -> Change:
    def change(answer: dict[str, Any]) -> dict[str, Any]:
        (choice,) = answer["choices"]
        return {"choices": [choice | fields]}

    return change


def tokens_of(make: Callable[[list[int]], list[Any]]) -> Change:
    """Other tokens, each with a log-probability."""

    def change(answer: dict[str, Any]) -> dict[str, Any]:
        (choice,) = answer["choices"]
        ids = make(choice["token_ids"])
        said = {"token_logprobs": [-1.0] * len(ids)}
        return {"choices": [choice | {"token_ids": ids, "logprobs": said}]}

    return change


BROKEN: dict[str, tuple[Change, str]] = {
    "text": (lambda _: "<html>", "not JSON"),
    "list": (lambda _: [], "no choices"),
    "no choice": (lambda _: {"choices": []}, "0 choices"),
    "two": (lambda a: {"choices": a["choices"] * 2}, "2 choices"),
    "old server": (choice_with(token_ids=None), "return_token_ids"),
    "words": (choice_with(token_ids=["a"]), "not integers"),
    "truths": (tokens_of(lambda ids: [True] * len(ids)), "not integers"),
    "no logprobs": (choice_with(logprobs=None), "no logprobs"),
    "few logprobs": (choice_with(logprobs={"token_logprobs": []}), "0 log-probabilities"),
    "empty": (tokens_of(lambda _: []), "0 tokens"),
    "foreign": (tokens_of(lambda ids: [310, *ids[1:]]), "token 310; expected 0 to 309"),
    "negative": (tokens_of(lambda ids: [-1, *ids[1:]]), "token -1"),
    "long": (tokens_of(lambda ids: ids * 40), "tokens; expected 1 to 32"),
    "cut": (
        lambda a: choice_with(stop_reason=None)(tokens_of(lambda ids: [5])(a)),
        "stopped after 1 of 32",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_answer_that_cannot_be_right_is_one_line(base: Path, adapter: Path, name: str) -> None:
    change, expected = BROKEN[name]
    with InferenceServer(base, change=change) as served:
        with pytest.raises(InferenceError, match=expected) as raised:
            practised(acting_at(served, adapter), SAMPLED)
        assert "\n" not in str(raised.value) and served.url in str(raised.value)
        assert not served.adapters


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.5, None, "x"])
def test_log_probabilities_that_are_none_are_one_line(
    base: Path, adapter: Path, value: object
) -> None:
    def change(answer: dict[str, Any]) -> dict[str, Any]:
        (choice,) = answer["choices"]
        said = {"token_logprobs": [value] * len(choice["token_ids"])}
        return {"choices": [choice | {"logprobs": said}]}

    with (
        InferenceServer(base, change=change) as served,
        pytest.raises(InferenceError, match="log-probabilities are not numbers"),
    ):
        practised(acting_at(served, adapter), SAMPLED)


def test_the_end_token_must_be_the_last_one_and_there(base: Path, adapter: Path) -> None:
    end = Policy.load(adapter).renderer.end_id
    for make, expected in (
        (lambda ids: [end, 5], f"went on after token {end}"),
        (lambda ids: [5], f"token {end} ended it, but is not the last one"),
    ):
        with InferenceServer(base) as served:
            served.change = lambda a, make=make: choice_with(  # type: ignore[misc]
                finish_reason="stop", stop_reason=end
            )(tokens_of(make)(a))
            with pytest.raises(InferenceError, match=expected):
                practised(acting_at(served, adapter), SAMPLED)


def test_sglang_may_break_off_or_contradict_itself(base: Path, adapter: Path) -> None:
    def aborted(answer: dict[str, Any]) -> dict[str, Any]:
        answer["meta_info"]["finish_reason"] = {"type": "abort", "message": "out of\nmemory"}
        return answer

    def others(answer: dict[str, Any]) -> dict[str, Any]:
        return {**answer, "output_ids": [5]}

    for change, expected in ((aborted, "broke off"), (others, "have other tokens")):
        with (
            InferenceServer(base, "sglang", change=change) as served,
            pytest.raises(InferenceError, match=expected) as raised,
        ):
            practised(acting_at(served, adapter), SAMPLED)
        assert "\n" not in str(raised.value)


def test_a_server_that_hangs_is_given_up(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "LONGEST_ANSWER", 0.2)
    with InferenceServer(base) as served:
        served.hangs.set()
        policy = acting_at(served, adapter)
        # Loading takes its time too, but not that of actions.
        monkeypatch.setattr(policy.sampler, "_take", lambda _: None)
        monkeypatch.setattr(policy.sampler, "_probe", lambda *_: None)
        with pytest.raises(InferenceError, match=r"/v1/completions: no answer within 0\.2 s"):
            practised(policy, GREEDY)


def test_actions_end_where_the_context_does(base: Path) -> None:
    policy = Policy.load(base, lora=LoRAConfig(rank=8))
    own, long = rendered(policy, demonstrations()[40:43]), replace(GREEDY, max_new_tokens=150)
    whole = ids_of(inspect(policy, own, long, seed=0))
    rooms = [220 - len(state) for played in own for state in played.states]
    assert min(rooms) < 150 < max(rooms) and {len(ids) for ids in whole} == {150}
    # Each demonstration fits into this context, but not every longest action after it.
    policy.layers.config.max_position_embeddings = 220
    with InferenceServer(base, context=220) as served:
        policy.sampler = server.InferenceServer(served.url)
        found = ids_of(inspect(policy, own, long, seed=0))
    assert found == [ids[:room] for ids, room in zip(whole, rooms, strict=True)]


def test_errors_that_pass_are_tried_again_and_others_are_not(base: Path, adapter: Path) -> None:
    busy: list[Answer] = [(503, {"error": {"message": "overloaded"}}), (429, "slow down")]
    with InferenceServer(base) as served:
        policy = acting_at(served, adapter)
        found = practised(policy, GREEDY)
        served.script = [*busy]
        assert practised(policy, GREEDY) == found and not served.script
        served.script = [(400, {"error": {"message": "maximum context\nlength"}})]
        before = len(served.asked())
        with pytest.raises(InferenceError, match=r"error 400.*maximum context") as raised:
            rolled_out(policy, BoxWorld(), WORLD.items("dev")[:1], GREEDY, seed=0)
        assert len(served.asked()) == before + 1 and "\n" not in str(raised.value)


def test_a_server_that_was_started_again_has_lost_the_adapter(base: Path, adapter: Path) -> None:
    with InferenceServer(base) as served:
        policy = acting_at(served, adapter)
        practised(policy, GREEDY)
        served.adapters.clear()
        with pytest.raises(InferenceError, match=r"started again.*does not exist"):
            practised(policy, SAMPLED)


def test_a_server_that_is_not_there_is_one_line(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "usual_pause", lambda _: 0.0)
    with InferenceServer(base) as served:
        policy = acting_at(served, adapter)
    with pytest.raises(InferenceError, match=r"cannot be reached .* tried 6 times"):
        practised(policy, GREEDY)


def test_ctrl_c_does_not_wait_for_the_server(base: Path, adapter: Path, tmp_path: Path) -> None:
    data = tmp_path / "demonstrations.jsonl"
    write_jsonl(data, demonstrations()[:2])
    with InferenceServer(base) as served:
        started = subprocess.Popen(
            [
                sys.executable, *STEPAGENT, "inspect", "--policy", str(adapter), "--demonstrations",
                str(data), "--out", str(tmp_path / "steps.jsonl"), "--practise-with", served.url,
            ],
            env=ENVIRONMENT, preexec_fn=hear_ctrl_c, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while len(served.asked()) < server.PROBES:
            assert started.poll() is None
            time.sleep(0.01)
        served.hangs.set()
        while len(served.asked()) == server.PROBES and started.poll() is None:
            time.sleep(0.01)
        started.send_signal(signal.SIGINT)
        _, said = started.communicate(timeout=60)
        assert started.returncode != 0 and "Traceback" not in said
        assert not served.adapters


def test_two_sharded_processes_ask_for_their_shares_and_hand_over_once(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    data = tmp_path / "demonstrations.jsonl"
    write_jsonl(data, [*demonstrations()[:3], *demonstrations()[40:42]])
    with InferenceServer(base) as served:
        given = ["--policy", str(adapter), "--demonstrations", str(data)]
        given += ["--practise-with", served.url, "--out"]
        inspect_main([*given, str(tmp_path / "1.jsonl")])
        server.server_at(served.url).take_back()
        alone = len(served.asked())
        served.requests.clear()
        given += [str(tmp_path / "2.jsonl"), "--compute.shard"]
        succeed(torchrun(2, "inspect", *given, module=STEPAGENT))
        assert len(served.loads()) == 1 and len(served.asked()) == alone
        assert not served.adapters
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()


def test_not_too_many_requests_wait_at_once(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "AT_ONCE", 3)
    with InferenceServer(base) as served:
        practised(acting_at(served, adapter), GREEDY)
        assert 1 < served.most_at_once <= 3


def test_the_key_is_sent_and_hidden(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789abcdef")
    with InferenceServer(base) as served:
        policy = acting_at(served, adapter)
        practised(policy, GREEDY)
        assert {*served.keys} == {"Bearer sk-0123456789abcdef"}
        served.script = [(401, {"error": {"message": "wrong key sk-0123456789abcdef"}})]
        with pytest.raises(InferenceError, match=r"wrong key \*\*\*'"):
            rolled_out(policy, BoxWorld(), WORLD.items("dev")[:1], GREEDY, seed=0)


def test_a_key_that_is_refused_ends_a_run_before_sft(base: Path, tmp_path: Path) -> None:
    with (
        InferenceServer(base, refuses_keys=True) as served,
        pytest.raises(InferenceError, match="refuses the key, which is read from OPENAI_API_KEY"),
    ):
        finish(tmp_path / "run", settings(base, served.url))
    assert [*(tmp_path / "run" / "units").iterdir()] == []


def test_addresses_end_with_or_without_v1_and_hold_no_secrets() -> None:
    assert server.InferenceServer("http://h:8000/v1/").url == "http://h:8000"
    with pytest.raises(ChatError, match="expected one like http://localhost:8000"):
        server.InferenceServer("h:8000")
    with pytest.raises(InferenceError) as raised:
        server.InferenceServer("http://me:secret@h:8000")
    assert "secret" not in str(raised.value)


def settings(base: Path, url: str | None) -> TrainConfig:
    return replace(
        CONFIG,
        model=str(base),
        lora=LoRAConfig(rank=8),
        data=DataConfig(sft=2, reflection=2, shared=1, dev=1, test=1),
        methods=("implicit", "rft"),
        rounds=1,
        detours=1,
        practise_with=url,
    )


def finish(folder: Path, config: TrainConfig, *, resume: bool = False) -> Path:
    with open_run(folder, config, resume=resume) as run:
        train(config, run, BoxWorld())
    return folder


def test_a_run_whose_server_failed_ends_the_same_with_another_one(
    base: Path, tmp_path: Path
) -> None:
    with InferenceServer(base) as served:
        whole = finish(tmp_path / "whole", settings(base, served.url))
        half = len(served.asked()) // 2
        assert len(served.loads()) > 2 and len(served.adapters) == 1
    with InferenceServer(base) as served:
        served.change = lambda answer: answer if len(served.asked()) < half else "broken"
        with pytest.raises(InferenceError, match=r"not JSON|no choices"):
            finish(tmp_path / "broken", settings(base, served.url))
    with InferenceServer(base) as served:
        broken = finish(tmp_path / "broken", settings(base, served.url), resume=True)
        assert 0 < len(served.asked()) < 2 * half
    expected, found = files(whole), files(broken)
    assert expected.keys() == found.keys()
    assert [name for name in expected if expected[name] != found[name]] == []
    said = json.loads((broken / "config.json").read_text())["config"]["practise_with"]
    assert said.startswith("http://127.0.0.1:")


def test_a_run_without_its_server_ends_before_sft(base: Path, tmp_path: Path) -> None:
    with (
        InferenceServer(base, has_adapters=False) as served,
        pytest.raises(InferenceError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
    ):
        finish(tmp_path / "run", settings(base, served.url))
    assert [*(tmp_path / "run" / "units").iterdir()] == []


def test_a_run_goes_on_with_what_acted_in_it(base: Path, tmp_path: Path) -> None:
    for number, (first, then) in enumerate([("http://h:1", None), (None, "http://h:1")]):
        folder = tmp_path / str(number)
        with open_run(folder, settings(base, first)):
            pass
        with pytest.raises(RunError, match=r"practise_with was .*, is now"):
            open_run(folder, settings(base, then), resume=True)
        with open_run(folder, settings(base, first), resume=True):
            pass


def test_whole_models_are_refused_before_a_run(base: Path) -> None:
    with pytest.raises(SettingsError, match=r"--practise-with: .*--lora.rank 16"):
        replace(CONFIG, model=str(base), practise_with="http://h:1")
    with pytest.raises(ChatError, match="expected one like"):
        replace(settings(base, None), practise_with="localhost:8000")


def test_commands_practise_with_a_server(base: Path, adapter: Path, tmp_path: Path) -> None:
    data, steps = tmp_path / "demonstrations.jsonl", tmp_path / "steps.jsonl"
    write_jsonl(data, demonstrations()[:2])
    with InferenceServer(base) as served:
        at = ["--practise-with", served.url, "--decoding.max-new-tokens", "8"]
        given = ["--policy", str(adapter), "--demonstrations", str(data)]
        inspect_main([*given, "--out", str(steps), *at])
        found = list(read_jsonl(steps, PracticedStep))
        assert len(served.asked()) == len(found) + server.PROBES
        served.requests.clear()
        at[2] = "--inspection.decoding.max-new-tokens"
        reflect_main(
            [
                "--method", "implicit", *given, "--held-out", str(data), *at,
                "--out", str(tmp_path / "reflected"),
            ]
        )  # fmt: skip
        assert len(served.asked()) > 2 * len(found)
    assert (tmp_path / "reflected" / "units" / "implicit-round1").is_dir()


def test_an_evaluation_goes_on_at_another_server_but_not_without_one(
    base: Path,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    with InferenceServer(base) as served:
        at = ["--practise-with", served.url, "--decoding.temperature", "1"]
        evaluate_in(monkeypatch, evaluation(adapter, whole, *at), World())
        with pytest.raises(Killed):
            evaluate_in(monkeypatch, evaluation(adapter, out, *at), World(die_at=3))
    with pytest.raises(SystemExit):
        evaluate_in(monkeypatch, evaluation(adapter, out, *at[2:]), World())
    assert "practised_with" in capsys.readouterr().err
    with InferenceServer(base) as served:
        evaluate_in(
            monkeypatch, evaluation(adapter, out, "--practise-with", served.url, *at[2:]), World()
        )
    assert out.read_bytes() == whole.read_bytes()


def test_the_message_of_a_server_that_does_not_serve_it_is_one_line(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "demonstrations.jsonl"
    write_jsonl(data, demonstrations()[:2])
    given = ["--policy", str(adapter), "--demonstrations", str(data), "--out"]
    with InferenceServer(base, ignores_adapters=True) as served, pytest.raises(SystemExit):
        cli.main(["inspect", *given, str(tmp_path / "o.jsonl"), "--practise-with", served.url])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "nats per token" in said and said.count("http") == 1
    assert not (tmp_path / "o.jsonl").exists()


def assert_read_here(policy: Policy, steps: list[PracticedStep]) -> None:
    trees = step_trees(rendered(policy, demonstrations()[40:43]), steps)
    read = [v[~t.is_expert] for t, v in zip(trees, path_logprobs(policy, trees), strict=True)]
    torch.testing.assert_close(logprobs_of(steps), torch.cat(read), rtol=0, atol=1e-5)


def test_log_probabilities_of_the_server_are_never_taken_over(base: Path, adapter: Path) -> None:
    def shifted(answer: dict[str, Any]) -> dict[str, Any]:
        (choice,) = answer["choices"]
        said = [p - 0.05 for p in choice["logprobs"]["token_logprobs"]]
        return {"choices": [choice | {"logprobs": {"token_logprobs": said}}]}

    with InferenceServer(base, change=shifted) as served:
        policy = acting_at(served, adapter)
        assert_read_here(policy, practised(policy, SAMPLED))
    # SGLang tells those at the temperature, which say nothing about the model.
    with InferenceServer(base, "sglang") as served:
        policy = acting_at(served, adapter)
        assert_read_here(policy, practised(policy, replace(SAMPLED, temperature=0.25)))
