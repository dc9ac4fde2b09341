"""The warning of batches that several processes cannot share."""

from dataclasses import dataclass

import pytest

from stepagent.algorithms.sft import SFTConfig
from stepagent.experiment.recipes import RECIPES
from stepagent.experiment.shared_batches import ROWS_EACH, batch_sizes, warn_of_small_batches
from stepagent.model.updates import OptimizerConfig
from stepagent.processes import ranks

ADAM = OptimizerConfig(learning_rate=1e-3)


@dataclass(frozen=True)
class Settings:
    """Settings with batches at several depths."""

    first_one: SFTConfig = SFTConfig(batch_size=1, optimizer=ADAM)
    other: SFTConfig = SFTConfig(batch_size=4, optimizer=ADAM)
    rounds: int = 1


def test_batch_sizes_are_found_by_their_options() -> None:
    assert list(batch_sizes(Settings())) == [("first-one.batch-size", 1), ("other.batch-size", 4)]
    assert list(batch_sizes(Settings(), unused={"first_one"})) == [("other.batch-size", 4)]


@pytest.mark.parametrize(
    ("count", "named"), [(1, []), (2, ["first-one"]), (5, ["first-one", "other"])]
)
def test_batches_below_the_number_of_processes_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, count: int, named: list[str]
) -> None:
    monkeypatch.setattr(ranks, "count", lambda: count)
    warn_of_small_batches(Settings())
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (1 if named else 0)
    for line in lines:
        assert ", ".join(f"--{name}.batch-size" for name in named) + ";" in line
        assert f"at least {count}, for about equal shares {8 * count}" in line


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("-scale")])
def test_eight_processes_can_share_the_batches_of_recipes_for_scale(name: str) -> None:
    recipe = RECIPES[name]
    sizes = dict(batch_sizes(recipe, unused={"pretrain", "rft", "eto", "spin", "ppo", "grpo"}))
    assert min(sizes.values()) >= 8 * ROWS_EACH
