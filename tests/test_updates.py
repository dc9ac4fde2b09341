"""Parameter updates by hand."""

import ctypes
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from fakes import demonstrations, random_policy, rendered
from stepagent.algorithms.sft import SFTConfig, sft
from stepagent.algorithms.value_head import ValueHead
from stepagent.model.updates import Metrics, OptimizerConfig, TrainingError, Updater, fit
from stepagent.model.weights import WeightsError

LAYERS = random_policy().layers


def one_step(updater: Updater, loss: torch.Tensor) -> Metrics:
    return updater.update(LAYERS, lambda: [(loss, {"loss": float(loss)})])


def batches_of(seed: int, *, enough_after: int = 9) -> list[list[int]]:
    """What `fit` trains on in three passes over five items."""
    config = SFTConfig(epochs=3, batch_size=2)
    batches, logged = list[list[int]](), list[Metrics]()

    def losses(batch: Sequence[int]) -> list[tuple[torch.Tensor, Metrics]]:
        batches.append([*batch])
        parameter = next(iter(random_layers.parameters()))
        return [(parameter.sum() * 0, {"size": float(len(batch))})]

    def enough() -> bool:
        return len(logged) == 3 * enough_after

    random_layers = random_policy().layers
    fit(random_layers, losses, 5, config, stage="Test", seed=seed, log=logged.append, enough=enough)
    assert [row["size"] for row in logged] == [len(batch) for batch in batches]
    return batches


def test_every_pass_takes_every_item_once_in_an_order_of_its_own() -> None:
    batches = batches_of(seed=1)
    assert [len(batch) for batch in batches] == [2, 2, 1] * 3
    passes = [[i for batch in batches[p : p + 3] for i in batch] for p in (0, 3, 6)]
    assert all(sorted(order) == list(range(5)) for order in passes)
    assert passes[0] != passes[1]
    assert batches_of(seed=1) == batches
    assert batches_of(seed=2) != batches


def test_training_ends_after_the_pass_that_was_enough() -> None:
    assert batches_of(seed=1, enough_after=1) == batches_of(seed=1)[:3]


def test_each_set_of_parameters_is_clipped_by_its_own_norm() -> None:
    policy, head, frozen = (nn.Parameter(torch.ones(2)) for _ in range(3))
    frozen.requires_grad_(False)
    updater = Updater([policy, frozen], OptimizerConfig(learning_rate=0.1), 1, apart=[head])
    # Gradients (3, 4) and (0, 100): of norm 5 and 100.
    loss = 3 * policy[0] + 4 * policy[1] + 100 * head[1] + 7 * frozen.sum()
    facts = updater.update(LAYERS, lambda: [(loss, {"loss": 1.5})])
    assert facts == {
        "loss": 1.5, "learning_rate": 0.1, "grad_norm": pytest.approx(5), "skipped_updates": 0,
    }  # fmt: skip
    # The first moment is a tenth of the gradient that was applied.
    moments = [10 * updater.optimizer.state[p]["exp_avg"] for p in (policy, head)]
    torch.testing.assert_close(moments[0], torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(moments[1], torch.tensor([0.0, 1.0]))
    assert frozen.tolist() == [1, 1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["loss", "gradient", "gradient of the part apart"])
def test_an_update_that_is_not_finite_changes_nothing_and_is_counted(
    bad: float, where: str, recwarn: pytest.WarningsRecorder
) -> None:
    weight, head = (nn.Parameter(torch.ones(2)) for _ in range(2))
    updater = Updater([weight], OptimizerConfig(learning_rate=0.1, warmup_share=0), 4, apart=[head])
    good = weight.sum() + head.sum()
    loss = {
        "loss": good + bad,
        "gradient": good + _with_gradient(weight, bad).sum(),
        "gradient of the part apart": good + _with_gradient(head, bad).sum(),
    }[where]
    facts = [one_step(updater, loss)]
    assert torch.equal(weight, torch.ones(2)) and torch.equal(head, torch.ones(2))
    assert not updater.optimizer.state
    facts += [one_step(updater, weight.sum() + head.sum()) for _ in range(2)]
    assert [row["skipped_updates"] for row in facts] == [1, 1, 1]
    assert [row["learning_rate"] for row in facts] == pytest.approx([0.1, 0.075, 0.05])
    assert (weight < 1).all() and (head < 1).all()
    assert not [w for w in recwarn.list if "lr_scheduler" in str(w.message)]


class _Gradient(torch.autograd.Function):
    """The same values, with a gradient that is `bad`."""

    @staticmethod
    def forward(ctx: object, values: torch.Tensor, bad: float) -> torch.Tensor:
        ctx.bad = bad  # type: ignore[attr-defined]
        return values * 1

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return gradient * ctx.bad, None  # type: ignore[attr-defined]


def _with_gradient(values: torch.Tensor, bad: float) -> torch.Tensor:
    found: torch.Tensor = _Gradient.apply(values, bad)
    return found


def test_three_updates_in_a_row_that_are_not_finite_end_the_stage_in_one_line() -> None:
    weight = nn.Parameter(torch.ones(2))
    updater = Updater([weight], OptimizerConfig(learning_rate=0.1), 9, stage="Step-wise DPO")
    for factor in ("nan", "nan", "1", "inf", "nan"):
        one_step(updater, weight.sum() * float(factor))
    with pytest.raises(TrainingError) as error:
        one_step(updater, weight.sum() * float("nan"))
    assert str(error.value) == (
        "Step-wise DPO: the loss or gradient of update 6 was not finite, as in the 2 before it; a "
        "smaller learning rate, or --compute.precision float32, may help"
    )


def test_an_update_that_ruins_the_weights_ends_the_stage() -> None:
    weight = nn.Parameter(torch.full((2,), 3.3e38))
    updater = Updater(
        [weight], OptimizerConfig(learning_rate=3e37, weight_decay=0, warmup_share=0), 2
    )
    with pytest.raises(TrainingError, match="Training: update 1 left weights that are not finite"):
        one_step(updater, -weight[0])


def test_weights_whose_norm_overflows_but_that_are_finite_train_on() -> None:
    weight = nn.Parameter(torch.full((4,), 3e38))
    updater = Updater([weight], OptimizerConfig(learning_rate=0.1, warmup_share=0), 2)
    assert one_step(updater, weight[0] * 1.0)["skipped_updates"] == 0


def test_an_update_is_that_of_adamw_on_the_clipped_gradient() -> None:
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, warmup_share=0)
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    updater = Updater([weight], config, 4)
    expected, first, second = torch.tensor([1.0, -2.0]), torch.zeros(2), torch.zeros(2)
    for step, slope in enumerate(([3.0, 4.0], [0.1, -0.2], [0.0, 2.0]), start=1):
        gradient = torch.tensor(slope)
        rate = updater.update(LAYERS, lambda g=gradient: [((g * weight).sum(), {})])[
            "learning_rate"
        ]
        gradient = gradient / max(1.0, float(gradient.norm()))
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        scaled = (second / (1 - 0.999**step)).sqrt() + 1e-8
        expected = expected * (1 - rate * 0.5) - rate * first / (1 - 0.9**step) / scaled
        torch.testing.assert_close(weight.detach(), expected)


def test_the_memory_of_one_update_is_used_again_by_the_next() -> None:
    resource = pytest.importorskip("resource")
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("needs glibc")

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

    batches_of(seed=1)
    faults()
    # 64 MB are 16384 pages.
    assert faults() < 1000


def test_a_stage_whose_loss_is_nan_ends_with_its_name() -> None:
    policy = random_policy()
    own = rendered(policy, demonstrations()[:6])
    with torch.no_grad():
        policy.model.get_output_embeddings().weight[0, 0] = float("nan")
    rows: list[Metrics] = []
    config = SFTConfig(batch_size=1)
    with pytest.raises(TrainingError, match="SFT: the loss or gradient of update 3"):
        sft(policy, own, config, seed=0, log=rows.append)
    assert [row["skipped_updates"] for row in rows] == [1, 2]


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    policy = random_policy()
    head = ValueHead(policy.layers)
    with torch.no_grad():
        policy.parameters()[0][0, 0] = float("nan")
        head.weight[0, 0] = float("inf")
    with pytest.raises(WeightsError, match=r"policy: not saved: 1 tensor is not finite .*embed"):
        policy.save(tmp_path / "policy")
    with pytest.raises(WeightsError, match=r"value_head.safetensors: not saved: 1 tensor is not"):
        head.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_value_head_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    layers = random_policy().layers
    head, again = ValueHead(layers), ValueHead(layers)
    nn.init.normal_(head.weight)
    head.save(tmp_path)
    again.load(tmp_path)
    assert torch.equal(again.weight, head.weight)
    file = tmp_path / "value_head.safetensors"
    whole = file.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    del header["bias"]
    header["weight"]["data_offsets"] = [0, len(whole) - 8 - size]
    header["weight"]["shape"] = [1, (len(whole) - 8 - size) // 4]
    text = json.dumps(header).encode()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    for content, message in (
        (whole[:-5], "cannot be read"),
        (pointer, "a Git LFS pointer"),
        (
            len(text).to_bytes(8, "little") + text + whole[8 + size :],
            "its weights do not match this",
        ),
    ):
        file.write_bytes(content)
        with pytest.raises(WeightsError, match=message) as error:
            again.load(tmp_path)
        assert "\n" not in str(error.value)
