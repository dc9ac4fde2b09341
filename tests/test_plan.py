"""Plans: counts by hand, costs and memory that add up, what the command prints."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from fakes import demonstrations, random_policy
from stepagent.cli import main
from stepagent.experiment.config import TrainConfig
from stepagent.experiment.planning.costs import Costs, known, measured
from stepagent.experiment.planning.duration import Layout, seconds, share_at_work
from stepagent.experiment.planning.gpus import GPUS
from stepagent.experiment.planning.lengths import data_of
from stepagent.experiment.planning.memory import memory
from stepagent.experiment.planning.shapes import PlanError, Shape, shape_of, shape_of_size
from stepagent.experiment.planning.work import Data, Stage, stages
from stepagent.inspection import inspect, step_trees
from stepagent.learners.implicit import ImplicitConfig
from stepagent.learners.inverse import InverseConfig
from stepagent.learners.sft import MoreSFTConfig
from stepagent.model.device import ComputeConfig
from stepagent.model.generation import Decoding
from stepagent.model.lora import Adapter, LoRAConfig
from stepagent.model.packs import budget_to_share
from stepagent.model.prefix_tree import fill_rows
from stepagent.model.updates import OptimizerConfig

SMALL = LlamaConfig(
    num_hidden_layers=5, hidden_size=32, intermediate_size=64, num_attention_heads=4,
    num_key_value_heads=2, vocab_size=200, tie_word_embeddings=False,
)  # fmt: skip
ADAM = OptimizerConfig(learning_rate=1e-3)
DATA = Data(demonstrations=10, steps=4, tokens=100, action_tokens=5, held_out=2)
COSTS = Costs(read=1.0, train=3.0, update=10.0, prefill=2.0, step=7.0, branch=0.5, kept=100.0)


def small(shape_name: str = "small") -> Shape:
    return shape_of(SMALL, shape_name)


def test_a_shape_counts_all_weights_and_those_of_lora() -> None:
    shape = small()
    model = AutoModelForCausalLM.from_config(SMALL)
    assert shape.weights == sum(p.numel() for p in model.parameters())
    assert shape.in_layer == sum(p.numel() for p in model.model.layers[0].parameters())
    adapter = Adapter.add(model, LoRAConfig(rank=3), seed=0)
    assert shape.trained(3) == sum(p.numel() for p in adapter.parameters())
    assert shape.trained(0) == shape.weights
    assert shape.kept == 2 * 5 * 2 * 8


@pytest.mark.parametrize(
    ("size", "name", "billions"),
    [("8B", "Llama-3.1-8B", 8.03), ("135M", "SmolLM2-135M", 0.135), ("60b", "Llama-3.1-70B", 70.6)],
)
def test_a_size_is_that_of_the_nearest_known_model(size: str, name: str, billions: float) -> None:
    shape = shape_of_size(size)
    assert shape.name.startswith(name)
    assert shape.weights / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize("size", ["8", "B", "xB", "-1B", "0M", "nanB", "infB"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(PlanError, match="expected a number with B or M"):
        shape_of_size(size)


def test_stages_by_hand() -> None:
    config = TrainConfig(
        task=None,
        methods=("sft_more", "implicit", "inverse", "eto"),
        rounds=2,
        sft_more=MoreSFTConfig(epochs=1, batch_size=4, optimizer=ADAM),
        implicit=ImplicitConfig(epochs=3, batch_size=4, optimizer=ADAM),
        inverse=InverseConfig(),
    )
    every = [*stages(config, DATA)]
    trained = [s for s in every if s.name == "step-wise DPO"]
    assert [(s.trees, s.actions, s.updates) for s in trained] == [(30, 1, 8)] * 2
    # 100 tokens and an action of 5 in each of 4 states.
    assert trained[0].tokens(DATA) == 30 * 120
    # The first round is inspected once for both methods: 10 demonstrations and 2 held out.
    inspected = [s for s in every if s.name == "inspection"]
    assert [s.method for s in inspected] == ["implicit", "implicit", "inverse"]
    assert inspected[0].tokens(DATA) == 12 * 100 and inspected[0].sampled(DATA) == 12 * 4 * 5
    judge = config.inverse.discriminator
    passes = [s.trees for s in every if s.name == "discriminator"]
    assert passes == [10 * judge.warmup_epochs, 10 * judge.epochs]
    assert not any(s.method == "eto" for s in every)


def test_seconds_by_hand() -> None:
    alone = Layout(processes=1, budget=100, longest=6)
    train = Stage("sft", "SFT", "train", 10, 0, 4)
    # 1,000 tokens and 3 updates.
    assert seconds(train, COSTS, DATA, alone) == 3 * 1000 + 3 * 10
    # A batch of 4 in 3 processes: two rounds of rows, in which 4 of 6 places are taken.
    three = replace(alone, processes=3)
    assert share_at_work(train, DATA, three) == pytest.approx(4 / 6)
    assert seconds(train, COSTS, DATA, three) == pytest.approx(3000 / 2 + 30)
    sent = replace(three, sent_by_update=2.0, sent_by_row=1.0)
    assert seconds(train, COSTS, DATA, sent) == pytest.approx(3000 / 2 + 10 / 2 + 3 * 12)
    # 64 trajectories with 4 actions each are decoded together.
    practice = Stage("implicit", "inspection", "practice", 10, 1)
    assert seconds(practice, COSTS, DATA, alone) == 2 * 1000 + 0.5 * 200 + 7 * 6


def test_rows_are_halved_until_processes_can_share_them() -> None:
    sizes = [100] * 16
    assert budget_to_share(sizes, 1600, 1) == 1600
    assert len(fill_rows(sizes, 1600)) == 1
    found = budget_to_share(sizes, 1600, 4)
    assert found == 200 and len(fill_rows(sizes, found)) == 8
    assert budget_to_share(sizes, 1600, 100) == 100  # each tree has its own row
    assert budget_to_share([], 1600, 4) == 1600


def test_memory_by_hand() -> None:
    shape = small()
    config = TrainConfig(
        task=None, methods=("implicit",), compute=ComputeConfig(precision="bfloat16")
    )
    found = memory(shape, config, DATA, COSTS, 1000, 4)
    # A weight in bfloat16; its master, its gradient and two moments in float32.
    assert found.weights == 2 * shape.weights and found.optimizer == 16 * shape.weights
    assert found.discriminator == found.gathered == 0
    # 1,000 tokens, a third of which are predicted.
    assert found.activations == pytest.approx(100 * 1000 + 1000 / 3 * 200 * 12)
    shards = replace(config, compute=ComputeConfig(precision="bfloat16", shard=True))
    shared = memory(shape, shards, DATA, COSTS, 1000, 4)
    in_layers = 5 * shape.in_layer
    assert shared.weights == 4 * in_layers / 4 + 2 * shape.elsewhere
    assert shared.optimizer == 12 * in_layers / 4 + 16 * shape.elsewhere
    assert shared.gathered == 2 * in_layers
    adapted = memory(shape, replace(config, lora=LoRAConfig(rank=3)), DATA, COSTS, 1000, 4)
    assert adapted.optimizer == 16 * shape.trained(3)


def test_costs_of_a_gpu_fall_with_its_speed_and_grow_with_the_model() -> None:
    config = TrainConfig(task=None, lora=LoRAConfig(rank=16))
    eight, slow = shape_of_size("8B"), known(GPUS["A100"], shape_of_size("8B"), config, DATA)
    fast = known(GPUS["H100"], eight, config, DATA)
    assert slow.read / fast.read == pytest.approx(989 / 312)
    # A forward pass multiplies each weight once: two operations, and a little for attention.
    flops = fast.read * GPUS["H100"].flops * GPUS["H100"].share
    assert 1.0 < flops / (2 * eight.layers * eight.in_layer) < 1.1
    assert fast.train == pytest.approx(2 * fast.read)


def test_measured_costs_of_a_slice_are_extrapolated() -> None:
    config = TrainConfig(task=None, compute=ComputeConfig(device="cpu", precision="float32"))
    before = torch.get_rng_state()
    found = measured(small(), config, DATA)
    assert torch.equal(torch.get_rng_state(), before)
    assert 0 < found.read < found.train < 1
    assert found.kept > 4 * 5 * 32  # at least the input of each layer


def test_real_demonstrations_give_their_lengths() -> None:
    policy, some = random_policy(), demonstrations()[:3]
    rendered = [policy.render(t) for t in some]
    inspected = inspect(policy, rendered, Decoding(max_new_tokens=4), seed=0)
    trees = step_trees(rendered, inspected)
    data = data_of(some, None, DATA)
    assert data.demonstrations == 3 and data.held_out == 2
    assert data.steps == round(len(inspected) / 3)
    assert len(trees) == 3


def test_the_command_prints_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "own", "--model-size", "8B", "--gpus", "8", "--device", "H100"])
    out = capsys.readouterr().out
    assert "8 processes on H100" in out and "fits into 80 GB" in out
    assert "hours" in out and len(out.splitlines()) < 40


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "expected --model FOLDER, or --model-size such as 8B"),
        (["--model-size", "8B", "--device", "H99"], "--device H99: expected here, A100"),
        (["--model-size", "8B", "--gpus", "0"], "--gpus must be at least 1, not 0"),
        (["--model-size", "8B", "--lengths.steps", "0"], "steps"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "own", *args])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_batches_that_leave_processes_idle_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    main([
        "plan", "own", "--model-size", "8B", "--gpus", "8", "--device", "H100",
        "--sft.batch-size", "4",
    ])  # fmt: skip
    assert "batches of 4 keep 8 processes at work for 50%" in capsys.readouterr().out
