"""The prefix tree gives the same values and gradients as its paths one at a time."""

from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from stepagent.model.forward import Layers
from stepagent.model.prefix_tree import ROOT, Pack, PrefixTree, fill_rows, pack


def packed_all(
    trees: Sequence[PrefixTree], token_budget: int, *, shared: bool = True
) -> list[Pack]:
    return list(pack(trees, token_budget, shared=shared))


VOCAB = 11


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128,
        initializer_range=0.4,
    )  # fmt: skip
    net = LlamaForCausalLM(config)
    # Llama's own norm computes in float32 whatever the model's type; these tests need all of it in
    # float64.
    for layer in net.model.layers:
        layer.input_layernorm = torch.nn.RMSNorm(16, eps=1e-6)
        layer.post_attention_layernorm = torch.nn.RMSNorm(16, eps=1e-6)
    net.model.norm = torch.nn.RMSNorm(16, eps=1e-6)
    return net.double().eval()


def read(net: LlamaForCausalLM, packed: Pack) -> Tensor:
    layers = Layers(net)
    logits = layers.logits(layers.hidden(packed))
    return torch.log_softmax(logits, -1)[packed.target_predictor, packed.target_ids]


def one_path_at_a_time(net: LlamaForCausalLM, tree: PrefixTree, path: tuple[int, ...]) -> Tensor:
    """The path's token log-probabilities by a plain call on the whole sequence."""
    ids = [tree.tokens[n] for n in tree.ancestors(path[-1])]
    logits = net(input_ids=torch.tensor([ids])).logits[0]
    first = len(ids) - len(path)
    targets = torch.tensor(ids[first:])
    return torch.log_softmax(logits[first - 1 : -1], -1).gather(1, targets[:, None])[:, 0]


def weighted(values: Tensor) -> Tensor:
    """A loss that weights every path token differently, so that mix-ups are noticed."""
    return (values * torch.linspace(0.3, 1.7, len(values), dtype=values.dtype)).sum()


def assert_equal_to_naive(trees: list[PrefixTree], token_budget: int, *, shared: bool) -> None:
    net = model()
    packs = packed_all(trees, token_budget, shared=shared)
    expected, found = [], []
    for packed in packs:
        naive = [one_path_at_a_time(net, trees[i], p) for i in packed.trees for p in trees[i].paths]
        expected.append(torch.cat(naive))
        found.append(read(net, packed))
        lengths = [len(p) for i in packed.trees for p in trees[i].paths]
        assert torch.bincount(packed.target_path).tolist() == lengths
        by_path = torch.stack([values.sum() for values in naive])
        torch.testing.assert_close(packed.sum_by_path(found[-1]), by_path, rtol=1e-10, atol=1e-10)
    values, naive_values = torch.cat(found), torch.cat(expected)
    torch.testing.assert_close(values, naive_values, rtol=1e-10, atol=1e-10)
    parameters = list(net.parameters())
    gradients = torch.autograd.grad(weighted(values), parameters)
    naive_gradients = torch.autograd.grad(weighted(naive_values), parameters)
    for gradient, naive_gradient in zip(gradients, naive_gradients, strict=True):
        torch.testing.assert_close(gradient, naive_gradient, rtol=1e-8, atol=1e-10)


def comb(num_steps: int = 4, num_agent_actions: int = 1) -> PrefixTree:
    """An expert trunk with agent actions in every state, in pieces of 2 to 4 tokens."""
    tree = PrefixTree()
    node = ROOT
    generator = torch.Generator().manual_seed(7)
    for step in range(num_steps):
        length = 2 + step % 3
        state = tree.add(node, torch.randint(VOCAB, (length,), generator=generator).tolist())[-1]
        node = tree.add_path(state, torch.randint(VOCAB, (3,), generator=generator).tolist())[-1]
        for k in range(num_agent_actions):
            tree.add_path(
                state, torch.randint(VOCAB, (1 + k + step % 2,), generator=generator).tolist()
            )
    return tree


def test_a_comb_equals_its_paths_one_at_a_time() -> None:
    assert_equal_to_naive([comb()], 1000, shared=True)


def test_several_agent_actions_for_each_state_equal_their_paths_one_at_a_time() -> None:
    assert_equal_to_naive([comb(3, 4)], 1000, shared=True)


def test_branches_of_branches_equal_their_paths_one_at_a_time() -> None:
    tree = PrefixTree()
    trunk = tree.add(ROOT, [1, 2, 3, 4])
    left = tree.add_path(trunk[1], [5, 6, 7])
    tree.add_path(left[1], [8, 9])
    deep = tree.add_path(left[2], [10, 0, 1])
    tree.add_path(deep[0], [2])
    tree.add_path(trunk[3], [1, 1, 1])
    assert_equal_to_naive([tree], 1000, shared=True)


def test_branches_that_share_their_first_tokens_share_the_nodes_and_keep_their_own_values() -> None:
    tree = PrefixTree()
    state = tree.add(ROOT, [3, 1, 4])[-1]
    expert = tree.add_path(state, [5, 6, 7, 8])
    near_miss = tree.add_path(state, [5, 6, 9])
    same = tree.add_path(state, [5, 6, 7, 8])
    stem = tree.add_path(state, [5])
    assert near_miss[:2] == expert[:2] and same == expert and stem == expert[:1]
    assert len(tree) == 3 + 4 + 1
    assert_equal_to_naive([tree], 1000, shared=True)


def test_several_trees_in_a_row_do_not_attend_to_each_other() -> None:
    trees = [comb(2), comb(3, 2), comb(4)]
    packs = packed_all(trees, 1000)
    assert len(packs) == 1 and len(packs[0].rows) == 1
    assert_equal_to_naive(trees, 1000, shared=True)


def test_rows_under_a_budget_cover_every_path_once() -> None:
    trees = [comb(n) for n in (2, 5, 3, 4, 2)]
    budget = max(map(len, trees)) + 3
    packs = packed_all(trees, budget)
    assert len(packs) > 1
    assert all(p.num_tokens <= budget for p in packs)
    assert sum(p.num_paths for p in packs) == sum(len(t.paths) for t in trees)
    assert_equal_to_naive(trees, budget, shared=True)


def test_separate_rows_are_plain_sequences_with_the_same_values_in_the_same_order() -> None:
    trees = [comb(2, 2), comb(3)]
    packs = packed_all(trees, 1000, shared=False)
    assert all(row.is_sequence for p in packs for row in p.rows)
    assert sum(len(p.rows) for p in packs) == sum(len(t.paths) for t in trees)
    assert_equal_to_naive(trees, 1000, shared=False)
    net = model()
    shared, separate = packed_all(trees, 1000)[0], packs[0]
    assert shared.trees == separate.trees
    torch.testing.assert_close(read(net, shared), read(net, separate), rtol=1e-10, atol=1e-10)


def test_each_path_has_the_same_hidden_state_packed_and_separate() -> None:
    net, trees = model(), [comb(3, 2), comb(2)]
    shared, separate = packed_all(trees, 1000)[0], packed_all(trees, 1000, shared=False)[0]
    hidden = Layers(net).hidden(shared)
    alone = Layers(net).hidden(separate)
    torch.testing.assert_close(hidden[shared.path_state], alone[separate.path_state])


def test_the_mask_of_a_small_tree_equals_one_made_by_hand() -> None:
    #   a - b - c        preorder: a b c d
    #    \- d            ends:     4 3 3 4
    tree = PrefixTree()
    a = tree.add(ROOT, [1])[0]
    tree.add_path(a, [2, 3])
    tree.add_path(a, [4])
    (packed,) = pack([tree], 10)
    row = packed.rows[0]
    assert row.token_ids.tolist() == [1, 2, 3, 4]
    assert row.positions.tolist() == [0, 1, 2, 1]
    assert row.subtree_end.tolist() == [4, 3, 3, 4]
    assert row.mask()[0, 0].int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [1, 0, 0, 1],
    ]
    # a predicts both b and d: its logits are read once and used twice.
    assert row.predictors.tolist() == [0, 1]
    assert packed.target_predictor.tolist() == [0, 1, 0]
    assert packed.path_state.tolist() == [0, 0]


@st.composite
def random_trees(draw: st.DrawFn) -> PrefixTree:
    tree = PrefixTree()
    tree.add(ROOT, draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4)))
    for _ in range(draw(st.integers(1, 6))):
        parent = draw(st.integers(0, len(tree) - 1))
        tree.add_path(parent, draw(st.lists(st.integers(0, 2), min_size=1, max_size=4)))
    return tree


@settings(max_examples=25, deadline=None)
@given(st.lists(random_trees(), min_size=1, max_size=3), st.integers(1, 40), st.booleans())
def test_any_tree_equals_its_paths_one_at_a_time(
    trees: list[PrefixTree], token_budget: int, shared: bool
) -> None:
    assert_equal_to_naive(trees, token_budget, shared=shared)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 60))
def test_rows_hold_every_item_once_and_only_single_items_exceed_the_budget(
    sizes: list[int], budget: int
) -> None:
    rows = fill_rows(sizes, budget)
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
    assert all(len(row) == 1 or sum(sizes[i] for i in row) <= budget for row in rows)


def test_packs_that_are_not_chosen_are_left_out() -> None:
    trees = [path_tree(range(start, start + 6)) for start in (0, 10, 20)]
    asked = []

    def choose(sizes: Sequence[float]) -> list[int]:
        asked.append(list(sizes))
        return [2, 0]

    found = [packed.trees for packed in pack(trees, 6, choose=choose)]
    assert asked == [[6.0, 6.0, 6.0]] and found == [(2,), (0,)]


def path_tree(tokens: Sequence[int]) -> PrefixTree:
    """A tree of a single path after its first token."""
    tree = PrefixTree()
    tree.add_path(tree.add(ROOT, tokens[:1])[-1], tokens[1:])
    return tree
