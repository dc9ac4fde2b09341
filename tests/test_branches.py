"""Decoding with a cache gives what one plain call on the whole history for every token gives."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig

from fakes import demonstrations, in_float64, novice, random_policy, rendered, with_budget
from stepagent.inspection import inspect
from stepagent.model import generation, kv_cache
from stepagent.model.branches import Branches
from stepagent.model.forward import Layers
from stepagent.model.generation import Decoding, Generated, decoding_groups
from stepagent.model.kv_cache import NewTokens, TreeCache
from stepagent.model.policy import Policy
from stepagent.model.row_ends import RowEnds
from stepagent.model.running_episodes import RunningEpisodes
from stepagent.model.sampling import choose, random_numbers

SIZE = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "max_position_embeddings": 1024,
}
MODELS = {
    "llama": LlamaConfig(**SIZE),
    "sliding window": MistralConfig(**SIZE, sliding_window=6),
    "softcap": Gemma2Config(
        **SIZE,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=7,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=2.0,
    ),
}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.4}
LENGTHS = (23, 9, 40)
"""Lengths of the rows; branches leave the first two at several tokens and the last at one."""
STATES = ((4, 9, 9, 22), (3, 8), (39,))


def layers_of(name: str, dtype: torch.dtype = torch.float32, token_budget: int = 512) -> Layers:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[name]).to(dtype).eval()
    return Layers(model, token_budget=token_budget)


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(320, shape, generator=torch.Generator().manual_seed(sum(shape)))


def plain_logits(layers: Layers, history: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return layers.model(input_ids=history[None]).logits[0, -1].float()


def sequence(row: int, token_ids: torch.Tensor, start: int = 0) -> NewTokens:
    positions = torch.arange(start, start + len(token_ids))
    ends = torch.full_like(positions, kv_cache.NEVER)
    return NewTokens(row=row, token_ids=token_ids, positions=positions, ends=ends)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_branches_of_several_rows_equal_plain_calls_token_by_token(
    name: str, dtype: torch.dtype
) -> None:
    layers = layers_of(name, dtype)
    rows = [ids(length) for length in LENGTHS]
    cache = TreeCache(layers, len(rows))
    hidden = cache.extend([sequence(n, row) for n, row in enumerate(rows)]).split(LENGTHS)
    at = [(row, state) for row, states in enumerate(STATES) for state in states]
    histories = [rows[row][: state + 1] for row, state in at]
    latest = torch.stack([hidden[row][state] for row, state in at])
    branches = Branches(cache, *torch.tensor(at).T, length=12)
    for step in range(12):
        expected = torch.stack([plain_logits(layers, history) for history in histories])
        torch.testing.assert_close(
            layers.logits(latest).float(), expected, rtol=0, atol=TOLERANCE[dtype]
        )
        if step in (3, 6, 8):
            # Some end, and at last the branches of one row only remain, in fewer places.
            going = torch.arange(len(histories)) % 3 != step % 2
            branches.keep(going)
            histories = [h for h, goes in zip(histories, going.tolist(), strict=True) if goes]
        token_ids = ids(len(histories), step + 1)[:, -1]
        histories = [torch.cat([h, t[None]]) for h, t in zip(histories, token_ids, strict=True)]
        latest = branches.step(token_ids)
    assert 0 < len(histories) < len(at) / 2


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_the_ends_of_rows_equal_plain_calls_token_by_token(name: str, dtype: torch.dtype) -> None:
    layers = layers_of(name, dtype)
    histories, cache = [ids(length) for length in (*LENGTHS, 5)], TreeCache(layers, 4)
    cache.extend([sequence(n, row) for n, row in enumerate(histories)])
    rows = torch.tensor([0, 2, 3])  # the other one has ended before
    ends = RowEnds(cache, rows)
    for step in range(12):
        if step in (4, 8):
            # The middle one ends, so that a row between the others has; then all but one.
            going = torch.arange(len(rows)) != 5 - len(rows) - step // 4
            ends.keep(going)
            rows = rows[going]
        token_ids = ids(len(rows), step + 1)[:, -1]
        for row, token in zip(rows.tolist(), token_ids, strict=True):
            histories[row] = torch.cat([histories[row], token[None]])
        expected = torch.stack([plain_logits(layers, histories[row]) for row in rows.tolist()])
        found = layers.logits(ends.step(token_ids)).float()
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[dtype])
    assert len(rows) == 1
    assert cache.lengths == [len(history) for history in histories]


@pytest.mark.parametrize("token_budget", [7, 64, 512])
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_rows_that_are_extended_in_parts_equal_plain_calls(
    name: str, token_budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_cache, "QUERY_BLOCK", 16)
    layers = layers_of(name, token_budget=token_budget)
    rows, cache = [ids(50), ids(31)], TreeCache(layers, 2)
    for row, cuts in enumerate(((0, 20, 21, 50), (0, 30, 31))):
        for start, stop in pairwise(cuts):
            hidden = cache.extend([sequence(row, rows[row][start:stop], start)])
            logits = layers.logits(hidden[-1])
            torch.testing.assert_close(
                logits, plain_logits(layers, rows[row][:stop]), rtol=0, atol=1e-4
            )
    # What is cut off is overwritten, and other rows stay.
    cache.lengths = [25, 10]
    again = [torch.cat([rows[0][:25], ids(4)]), torch.cat([rows[1][:10], ids(45)])]
    hidden = cache.extend([sequence(0, again[0][25:], 25), sequence(1, again[1][10:], 10)])
    for last, row in zip((3, -1), again, strict=True):
        expected = plain_logits(layers, row)
        torch.testing.assert_close(layers.logits(hidden[last]), expected, rtol=0, atol=1e-4)


@torch.inference_mode()
def naive(
    layers: Layers, state: Sequence[int], uniform: torch.Tensor, decoding: Decoding, end_id: int
) -> Generated:
    """An action by one plain call on the whole history for each token."""
    tokens, total = list[int](), 0.0
    for number in uniform[: decoding.max_new_tokens]:
        logits = plain_logits(layers, torch.tensor([*state, *tokens]))[None].double()
        probability = torch.softmax(logits[0] / decoding.temperature, -1)
        token = int(torch.searchsorted(probability.cumsum(-1), number))
        total += float(torch.log_softmax(logits[0], -1)[token])
        tokens.append(token)
        if token == end_id:
            break
    return Generated(tuple(tokens), total)


@pytest.mark.parametrize("name", ["llama", "sliding window"])
def test_sampled_practice_of_many_trees_equals_naive_decoding(name: str) -> None:
    layers, renderer = layers_of(name), random_policy().renderer
    policy = Policy(layers, renderer)
    own = rendered(policy, [*demonstrations()[:2], *demonstrations()[40:42]])
    assert len({d.num_tokens for d in own}) > 2
    decoding = Decoding(max_new_tokens=7, temperature=0.8)
    steps = inspect(policy, own, decoding, seed=3, num_actions=2)
    states = [state for d in own for state in d.states]
    assert len(states) == len(steps)
    for state, step in zip(states, steps, strict=True):
        for k, action in enumerate(step.agent_actions):
            uniform = random_numbers(3, step.trajectory_id, step.step_index, k, count=7)
            expected = naive(layers, list(state), uniform, decoding, renderer.end_id)
            assert action.token_ids == expected.token_ids
            assert action.logprob == pytest.approx(expected.logprob, abs=1e-3)


def test_a_trunk_of_several_budgets_gives_the_same_actions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, decoding = in_float64(novice()), Decoding(max_new_tokens=6, temperature=1.3)
    own = rendered(policy, demonstrations()[40:44])
    forwarded = list[int]()
    forward = Layers.forward_with

    def counted(self: Layers, attention: object, token_ids: torch.Tensor, *more: object) -> object:
        forwarded.append(len(token_ids))
        return forward(self, attention, token_ids, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Layers, "forward_with", counted)
    expected = inspect(policy, own, decoding, seed=0, num_actions=3)
    assert max(forwarded) > 200
    budget = min(d.num_tokens for d in own) // 4
    forwarded.clear()
    found = inspect(with_budget(policy, budget), own, decoding, seed=0, num_actions=3)
    # In each group of branches one token of each is forwarded at once.
    assert max(forwarded) <= generation.DECODED_TOGETHER * budget
    for step, wanted in zip(found, expected, strict=True):
        for action, other in zip(step.agent_actions, wanted.agent_actions, strict=True):
            assert action.token_ids == other.token_ids
            assert action.logprob == pytest.approx(other.logprob, rel=1e-9)


def test_trees_are_decoded_together_as_branches_and_memory_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers = layers_of("llama", token_budget=10)
    # 20 branches; keys and values of 2 layers, 2 heads of width 8, in float32, for 120 tokens.
    monkeypatch.setattr(kv_cache, "KEPT_BYTES", 120 * 2 * 2 * 2 * 8 * 4)
    assert decoding_groups(layers, [30, 50, 40, 45], [6, 6, 6, 6]) == [[1, 3], [2, 0]]
    assert decoding_groups(layers, [30, 50, 40, 45], [6, 6, 15, 15]) == [[1], [3], [2], [0]]
    assert decoding_groups(layers, [500, 50], [50, 6]) == [[0], [1]]
    assert decoding_groups(layers, [], []) == []


@torch.inference_mode()
def test_some_of_the_running_episodes_act_while_others_wait() -> None:
    layers, decoding, end_id = layers_of("llama"), Decoding(max_new_tokens=5), 7
    episodes = RunningEpisodes(layers, 4)
    histories = [ids(length).tolist() for length in (20, 5, 33, 12)]
    for turn, rows in enumerate(([0, 1, 2, 3], [1, 3], [0, 1, 2], [2], [0, 1, 2, 3])):
        uniform = torch.stack([random_numbers(turn, str(row), count=5) for row in rows])
        acted = dict[int, Generated]()
        states = [histories[row] for row in rows]
        episodes.act(states, decoding, end_id, uniform, rows, acted.__setitem__)
        assert sorted(acted) == rows
        for row, numbers in zip(rows, uniform, strict=True):
            expected = naive(layers, histories[row], numbers, decoding, end_id)
            assert acted[row].token_ids == expected.token_ids
            assert acted[row].logprob == pytest.approx(expected.logprob, abs=1e-3)
            # The history may go on otherwise than with what was sampled.
            histories[row] += [*acted[row].token_ids[: 3 + turn % 3], *ids(turn + 4).tolist()]


@pytest.mark.parametrize("size", [5, 256, 1000])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_choose_inverts_the_cumulative_distribution(size: int, temperature: float) -> None:
    logits = 4 * torch.randn(50, size, generator=torch.Generator().manual_seed(size))
    logits[::3, : size // 2] = float("-inf")
    uniform = torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    uniform[:4] = torch.tensor([0, 0, 1 - 2**-53, 1 - 2**-53])
    exact = torch.softmax(logits.double() / temperature, -1)
    cumulative = exact.cumsum(-1)
    expected = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[
        :, 0
    ]
    found, logprobs = choose(logits, temperature, uniform)
    assert (exact[torch.arange(50), found] > 0).all()
    assert torch.equal(found[4:], expected[4:])
    wanted = torch.log_softmax(logits, -1)[torch.arange(50), found]
    torch.testing.assert_close(logprobs, wanted, rtol=0, atol=1e-5)


def test_a_model_whose_attention_cannot_be_replaced_decodes_alone_to_the_same_actions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, decoding = in_float64(novice()), Decoding(max_new_tokens=6, temperature=1.3)
    own = rendered(policy, demonstrations()[:3])
    expected = inspect(policy, own, decoding, seed=0, num_actions=2)
    monkeypatch.setattr(type(policy.model), "_supports_attention_backend", False)
    assert not policy.layers.takes_attention
    found = inspect(policy, own, decoding, seed=0, num_actions=2)
    for step, wanted in zip(found, expected, strict=True):
        assert [a.token_ids for a in step.agent_actions] == [
            a.token_ids for a in wanted.agent_actions
        ]
