"""LoRA: several trained versions of one model in memory, and folders that others can open."""

from contextlib import suppress
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fakes import demonstrations, lesson_of, practised_trees, random_policy, rendered
from stepagent.algorithms.discriminator import (
    DiscriminatorConfig,
)
from stepagent.algorithms.dpo import DPOConfig
from stepagent.algorithms.sft import SFTConfig, sft
from stepagent.inspection import StepTree, inspect, path_logprobs
from stepagent.learners.base import LearnerStopped
from stepagent.learners.implicit import Implicit
from stepagent.learners.inverse import Inverse, InverseConfig
from stepagent.model.device import ComputeConfig
from stepagent.model.generation import Decoding
from stepagent.model.lora import LoRAConfig
from stepagent.model.policy import Policy
from stepagent.model.updates import Metrics, OptimizerConfig
from stepagent.practice import Lesson

FAST = OptimizerConfig(learning_rate=1e-2, warmup_share=0.0)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    random_policy(scale=2.0).save(folder)
    return folder


@pytest.fixture
def policy(base: Path) -> Policy:
    torch.manual_seed(0)
    return Policy.load(base, lora=LoRAConfig(rank=4))


def taught(policy: Policy) -> Policy:
    """After a few updates, so that its adapter is not the one that changes nothing."""
    own = rendered(policy, demonstrations()[:8])
    sft(policy, own, SFTConfig(optimizer=FAST, epochs=2), seed=0, log=lambda _: None)
    return policy


def lesson(policy: Policy) -> Lesson:
    own, held = (rendered(policy, demonstrations()[i : i + 6]) for i in (0, 8))
    practised = [inspect(policy, part, Decoding(), seed=0) for part in (own, held)]
    return lesson_of(own, practised[0], held, practised[1])


def values(policy: Policy, trees: list[StepTree]) -> torch.Tensor:
    return torch.cat(path_logprobs(policy, trees))


def test_a_new_adapter_changes_nothing_and_training_changes_only_adapters(
    base: Path, policy: Policy
) -> None:
    trees = practised_trees(policy)
    plain = Policy.load(base)
    torch.testing.assert_close(values(policy, trees), values(plain, trees))
    before = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    start = values(policy, trees)
    taught(policy)
    changed = {n for n, p in policy.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all("lora_" in name for name in changed)
    assert len(changed) == len(policy.parameters())
    assert not torch.allclose(values(policy, trees), start)


@pytest.mark.parametrize("rank", [0, 4])
def test_the_discriminator_starts_equal_and_is_trained_apart(base: Path, rank: int) -> None:
    policy = taught(Policy.load(base, lora=LoRAConfig(rank=rank)))
    trees = practised_trees(policy)
    start = values(policy, trees)
    learner = Inverse(
        InverseConfig(discriminator=DiscriminatorConfig(optimizer=FAST, warmup_epochs=1)), policy
    )
    assert (learner.discriminator.model is policy.model) == (rank > 0)  # another adapter on it
    pairs = list(zip(learner.discriminator.parameters(), policy.parameters(), strict=True))
    assert all(torch.equal(p, q) and p.data_ptr() != q.data_ptr() for p, q in pairs)
    copied = [p.detach().clone() for p in learner.discriminator.parameters()]
    # It may be at chance after so little training, which is not what this is about.
    with suppress(LearnerStopped):
        learner.measure(policy, lesson(policy), seed=0, log=lambda *_: None)
    now = zip(learner.discriminator.parameters(), copied, strict=True)
    assert not all(torch.equal(p, q) for p, q in now)
    torch.testing.assert_close(values(policy, trees), start, rtol=0, atol=0)


def test_a_discriminator_that_is_an_adapter_is_the_same_after_saving_and_loading(
    policy: Policy, tmp_path: Path
) -> None:
    taught(policy)
    policy.save(tmp_path / "policy")
    learner = Inverse(
        InverseConfig(discriminator=DiscriminatorConfig(optimizer=FAST, warmup_epochs=1)), policy
    )
    own, trees = lesson(policy), practised_trees(policy)
    with suppress(LearnerStopped):
        learner.measure(policy, own, seed=0, log=lambda *_: None)
    learner.save(tmp_path)
    opened = Policy.load(tmp_path / "policy")
    again = Inverse(InverseConfig(), opened)
    assert torch.allclose(values(again.discriminator, trees), values(policy, trees))
    again.load(tmp_path)
    expected = values(learner.discriminator, trees)
    assert not torch.allclose(expected, values(policy, trees))
    torch.testing.assert_close(values(again.discriminator, trees), expected)
    torch.testing.assert_close(values(opened, trees), values(policy, trees))


def test_both_reflections_move_the_policys_adapter_alone(policy: Policy) -> None:
    taught(policy)
    own, trees = lesson(policy), practised_trees(policy)
    logged: list[Metrics] = []
    for learner in (
        Implicit(DPOConfig(optimizer=FAST, epochs=1)),
        Inverse(
            InverseConfig(discriminator=DiscriminatorConfig(optimizer=FAST, warmup_epochs=20)),
            policy,
        ),
    ):
        start = values(policy, trees)
        rewards = learner.learn(policy, own, seed=0, log=lambda _, row: logged.append(row))
        assert rewards is not None and len(rewards) == 6
        assert not torch.allclose(values(policy, trees), start)
    assert all(row["grad_norm"] > 0 for row in logged if "grad_norm" in row)
    frozen = [p for n, p in policy.model.named_parameters() if "lora_" not in n]
    assert all(p.grad is None and not p.requires_grad for p in frozen)


def test_an_adapter_folder_opens_here_and_with_peft_and_transformers(
    base: Path, policy: Policy, tmp_path: Path
) -> None:
    taught(policy)
    policy.copy("discriminator")  # must not be in the folder
    trees = practised_trees(policy)
    expected = values(policy, trees)
    folder = tmp_path / "adapter"
    policy.save(folder)
    assert not (folder / "model.safetensors").exists()
    again = Policy.load(folder)
    torch.testing.assert_close(values(again, trees), expected)
    assert len(again.parameters()) == len(policy.parameters())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in again.parameters())
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        logits = policy.model(input_ids=ids).logits
        peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
        torch.testing.assert_close(peft(input_ids=ids).logits, logits)
        own = AutoModelForCausalLM.from_pretrained(folder)
        torch.testing.assert_close(own(input_ids=ids).logits, logits)


@pytest.mark.parametrize("rank", [0, 4])
def test_a_policy_takes_over_saved_weights_in_place(base: Path, rank: int, tmp_path: Path) -> None:
    policy = Policy.load(base, lora=LoRAConfig(rank=rank))
    trees = practised_trees(policy)
    start = values(policy, trees)
    policy.save(tmp_path / "start")
    model = policy.model
    assert not torch.allclose(values(taught(policy), trees), start)
    policy.restore(tmp_path / "start")
    assert policy.model is model
    torch.testing.assert_close(values(policy, trees), start)


@pytest.mark.parametrize("rank", [0, 4])
def test_bfloat16_is_close_and_keeps_trained_weights_in_float32(base: Path, rank: int) -> None:
    half = Policy.load(base, ComputeConfig(precision="bfloat16"), LoRAConfig(rank=rank))
    trees = practised_trees(half)
    exact = values(Policy.load(base), trees)
    found = values(half, trees)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0.1)
    assert not torch.equal(found, exact)
    assert half.model.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in half.parameters())
    start = [p.detach().clone() for p in half.parameters()]
    taught(half)
    assert not all(torch.equal(a, b) for a, b in zip(start, half.parameters(), strict=True))


def test_the_seed_decides_what_an_adapter_starts_from(base: Path) -> None:
    lora = LoRAConfig(rank=4)
    starts = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(starts))  # whatever else has drawn random numbers
        starts.append(
            torch.cat([p.flatten() for p in Policy.load(base, lora=lora, seed=seed).parameters()])
        )
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_gradient_checkpointing_leaves_practice_as_it_is(base: Path) -> None:
    found = []
    for checkpointing in (False, True):
        policy = Policy.load(base, ComputeConfig(gradient_checkpointing=checkpointing))
        own = rendered(taught(policy), demonstrations()[:3])
        found.append(inspect(policy, own, Decoding(), seed=0))
    assert [s.agent_actions[0].token_ids for s in found[0]] == [
        s.agent_actions[0].token_ids for s in found[1]
    ]


def test_gradient_checkpointing_changes_nothing(base: Path) -> None:
    plain = Policy.load(base)
    saving = Policy.load(base, ComputeConfig(gradient_checkpointing=True))
    assert saving.model.is_activation_checkpointing
    trees = practised_trees(plain)
    torch.testing.assert_close(values(taught(saving), trees), values(taught(plain), trees))
