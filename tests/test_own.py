"""Demonstrations of one's own: what is read, left out and held out, and the settings chosen."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fakes import demonstrations, novice, rendered
from stepagent.evaluation import likeness
from stepagent.experiment.config import SettingsError, TrainConfig
from stepagent.experiment.defaults import (
    Situation,
    count_parameters,
    default_settings,
    described,
)
from stepagent.experiment.held_out import (
    Compared,
    agreement,
    agreement_gain,
    compare_with_expert,
    expert_logprob,
    from_rows,
    to_rows,
)
from stepagent.experiment.own import OwnData, OwnDataError, read_own_data, split_by_content
from stepagent.experiment.recipes import RECIPES
from stepagent.experiment.run import to_json
from stepagent.experiment.run_json import RunError, write_config
from stepagent.experiment.saved_settings import settings_of_file, settings_of_run
from stepagent.model.weights import open_model
from stepagent.rendering.chat_template import TemplateError
from stepagent.rendering.renderer import Renderer
from stepagent.scratch.small_model import TinyConfig, build_tiny_model, texts_of, train_tokenizer
from stepagent.types import Step, Trajectory


def trajectory(name: str, *actions: str, **fields: object) -> Trajectory:
    """A trajectory in which each observation tells what was done before."""
    seen = ["a closed door", *(f"after {action}" for action in actions)]
    steps = tuple(Step(observation=o, action=a) for o, a in zip(seen, actions, strict=False))
    whole = Trajectory(id=name, task="doors", instruction=f"open {name}", steps=steps)
    return whole.model_copy(update=fields)


def messages(name: str, *actions: str) -> dict[str, object]:
    """The same as a record of messages without an id."""
    own = trajectory(name, *actions)
    said = [{"role": "user", "content": f"{own.instruction}\n\n{own.steps[0].observation}"}]
    for step, seen in zip(own.steps, [*own.steps[1:], None], strict=True):
        said.append({"role": "assistant", "content": step.action})
        said += [{"role": "user", "content": seen.observation}] if seen else []
    return {"messages": said}


def write(file: Path, records: Sequence[object]) -> Path:
    lines = [r.model_dump(mode="json") if isinstance(r, Trajectory) else r for r in records]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def scratch(context: int = 2000):  # type: ignore[no-untyped-def]
    """Opens the renderer of a model from scratch."""

    def opened(trajectories: Sequence[Trajectory]) -> tuple[Renderer, int]:
        return Renderer(train_tokenizer(texts_of(trajectories), 400)), context

    return opened


def read(
    demonstrations: Path, held_out: Path | None = None, *, context: int = 2000, share: float = 0.2
) -> OwnData:
    return read_own_data(demonstrations, held_out, scratch(context), share=share)


MANY = [trajectory(f"door {n}", "look", f"push {n}") for n in range(10)]


def ids(trajectories: Sequence[Trajectory]) -> set[str]:
    return {t.id for t in trajectories}


def test_a_share_is_held_out_and_nothing_is_on_both_sides(tmp_path: Path) -> None:
    data = read(write(tmp_path / "own.jsonl", MANY), share=0.3)
    assert (len(data.demonstrations), len(data.held_out)) == (7, 3)
    assert ids(data.demonstrations) | ids(data.held_out) == ids(MANY)
    assert data.left_out == {}


@given(st.permutations(MANY), st.floats(0.01, 0.99))
def test_what_is_held_out_does_not_depend_on_the_order(
    shuffled: list[Trajectory], share: float
) -> None:
    for side, other in zip(
        split_by_content(MANY, share), split_by_content(shuffled, share), strict=True
    ):
        assert 0 < len(side) < len(MANY)
        assert ids(side) == ids(other)


def test_records_without_ids_are_held_out_by_content_whatever_the_file(tmp_path: Path) -> None:
    records = [messages(f"door {n}", "look", f"push {n}") for n in range(10)]
    first = read(write(tmp_path / "one.jsonl", records))
    again = read(write(tmp_path / "two.jsonl", records[::-1]))
    assert {t.instruction for t in first.held_out} == {t.instruction for t in again.held_out}


def test_demonstrations_of_one_item_stay_on_the_same_side(tmp_path: Path) -> None:
    twice = [
        messages(f"door {n}", *actions) | {"id": f"door {n}"}
        for n in range(6)
        for actions in (("look", f"push {n}"), (f"push {n}",))
    ]
    for share in (0.2, 0.4, 0.6):
        data = read(write(tmp_path / "own.jsonl", twice), share=share)
        instructions = [{t.instruction for t in s} for s in (data.demonstrations, data.held_out)]
        assert not instructions[0] & instructions[1]
        assert len(data.held_out) == 2 * round(share * 12 // 2)


def test_equal_trajectories_are_used_once_and_counted(tmp_path: Path) -> None:
    again = [MANY[0].model_copy(update={"id": "other", "score": 50.0}), MANY[1]]
    records = [t.model_dump(mode="json") for t in [*MANY, *again]]
    data = read(write(tmp_path / "own.jsonl", records))
    assert len(data.demonstrations) + len(data.held_out) == 10
    assert data.left_out == {"equal to another one": 2}


def test_what_is_held_out_too_is_not_trained_on(tmp_path: Path) -> None:
    own, other = write(tmp_path / "own.jsonl", MANY), write(tmp_path / "other.jsonl", MANY[:2])
    data = read(own, other)
    assert (ids(data.demonstrations), ids(data.held_out)) == (ids(MANY[2:]), ids(MANY[:2]))
    assert data.left_out == {"equal to a held-out one": 2}


def test_failed_trajectories_are_no_demonstrations(tmp_path: Path) -> None:
    failed = MANY[3].model_copy(update={"success": False, "id": "failed"})
    data = read(write(tmp_path / "own.jsonl", [*MANY[:3], failed]))
    assert data.left_out == {"marked as failed (success: false)": 1}


def test_too_long_trajectories_are_left_out_before_some_are_held_out(tmp_path: Path) -> None:
    long = [trajectory(f"hall {n}", *["walk on and on"] * 40) for n in range(5)]
    data = read(write(tmp_path / "own.jsonl", [*long, *MANY[:3]]), context=150)
    assert ids(data.demonstrations) | ids(data.held_out) == ids(MANY[:3])
    assert data.left_out == {"longer than the context, or lost in the chat template": 5}


def test_the_longest_action_is_counted_in_tokens(tmp_path: Path) -> None:
    long = trajectory("door 9", "push with both hands and then pull with both feet")
    short, longer = (
        read(write(tmp_path / "own.jsonl", [*MANY[:5], *more])).longest_action
        for more in ([], [long])
    )
    assert 2 < short < longer


@pytest.mark.parametrize(
    ("own", "other", "context", "expected"),
    [
        (MANY[:1], None, 2000, "own.jsonl: 1 trajectory of one item; expected at least 2 items"),
        (MANY[:1] * 3, None, 2000, "own.jsonl: 1 trajectory of one item; expected at least 2"),
        (MANY, None, 20, "own.jsonl: no trajectory (of 10) fits the model's context of 20 toke"),
        (MANY[:2], MANY[:2], 2000, "own.jsonl: all 2 trajectories are in {tmp}/other.jsonl too; "),
        (
            MANY[:2],
            [trajectory("hall", *["walk on"] * 90)],
            200,
            "other.jsonl: no trajectory (of 1) fits the model's context of 200 tokens: hall has ",
        ),
        (
            [MANY[0].model_copy(update={"success": False})],
            None,
            2000,
            "own.jsonl: 1 trajectory, all marked as failed (success: false); expected what an ",
        ),
        (
            [
                Trajectory(
                    id=f"{n}",
                    task="t",
                    instruction=f"do {n}",
                    steps=(Step(observation="", action="a"), Step(observation=" ", action="b")),
                )
                for n in range(3)
            ],
            None,
            2000,
            "own.jsonl: no step has an observation; expected what the agent saw before each actio",
        ),
    ],
)
def test_data_that_cannot_be_trained_on_is_one_line(
    tmp_path: Path,
    own: list[Trajectory],
    other: list[Trajectory] | None,
    context: int,
    expected: str,
) -> None:
    first = write(tmp_path / "own.jsonl", own)
    second = write(tmp_path / "other.jsonl", other) if other else None
    with pytest.raises(OwnDataError) as caught:
        read(first, second, context=context)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/{expected.format(tmp=tmp_path)}")
    assert "\n" not in message


def test_the_demonstrations_cannot_be_their_own_held_out_file(tmp_path: Path) -> None:
    own = write(tmp_path / "own.jsonl", MANY)
    with pytest.raises(OwnDataError, match="the same file as --demonstrations; leave it out"):
        read(own, own)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_outside_of_0_to_1_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(OwnDataError, match=r"--held-out-share .*: expected a share between 0 and"):
        read(write(tmp_path / "own.jsonl", MANY), share=share)


def test_a_tokenizer_without_a_chat_template_is_one_line(tmp_path: Path) -> None:
    def opened(trajectories: Sequence[Trajectory]) -> tuple[Renderer, int]:
        tokenizer = train_tokenizer(texts_of(trajectories), 400)
        tokenizer.chat_template = None
        return Renderer(tokenizer), 2000

    with pytest.raises(TemplateError, match="no chat template; use an instruction-tuned model"):
        read_own_data(write(tmp_path / "own.jsonl", MANY), None, opened)


SMALL = Situation(
    parameters=135_000_000,
    adapted=True,
    on_gpu=False,
    demonstrations=100,
    longest_action=20,
    takes_detours=False,
)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_larger_models_learn_more_slowly(on_gpu: bool) -> None:
    sizes = (100e6, 1e9, 8e9, 70e9)
    chosen = [default_settings(replace(SMALL, parameters=int(n), on_gpu=on_gpu)) for n in sizes]
    rates = [config.sft.optimizer.learning_rate for config in chosen]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == 4
    assert all(c.implicit.optimizer.learning_rate < r for c, r in zip(chosen, rates, strict=True))


@given(st.integers(1, 2000))
def test_the_agent_may_act_longer_than_the_expert(longest: int) -> None:
    config = default_settings(replace(SMALL, longest_action=longest))
    limits = {c.decoding.max_new_tokens for c in (config.inspection, config.evaluation)}
    assert longest < limits.pop() <= longest * 1.25 + 16
    assert not limits


def test_all_methods_make_equally_many_updates_in_a_round() -> None:
    for number in (10, 100, 1000):
        config = default_settings(replace(SMALL, demonstrations=number))
        learners = (config.sft_more, config.implicit, config.step_dpo, config.inverse.ppo)
        assert {(c.epochs, c.batch_size) for c in learners} == {(1, config.sft.batch_size)}


def test_a_model_from_scratch_has_no_adapter_and_a_whole_model_a_lower_rate() -> None:
    made = default_settings(replace(SMALL, parameters=None))
    whole = default_settings(replace(SMALL, adapted=False))
    lora = default_settings(SMALL)
    assert (made.lora.rank, whole.lora.rank, lora.lora.rank) == (0, 0, 16)
    assert whole.sft.optimizer.learning_rate < lora.sft.optimizer.learning_rate
    assert made.task is None


def test_large_models_on_a_gpu_save_memory() -> None:
    large = replace(SMALL, parameters=8_000_000_000, on_gpu=True)
    assert default_settings(large).compute.gradient_checkpointing
    assert not default_settings(replace(large, parameters=10**9)).compute.gradient_checkpointing


def test_the_settings_that_matter_are_told() -> None:
    told = "\n".join(described(SMALL, default_settings(SMALL)))
    for part in ("135 M", "LoRA rank 16", "sft_more, implicit, inverse", "learning rate 0.001"):
        assert part in told


def test_parameters_are_counted_without_weights(tmp_path: Path) -> None:
    tiny = TinyConfig(vocab_size=300, hidden_size=32, num_layers=2, num_heads=2)
    build_tiny_model(MANY, tiny, seed=0, folder=tmp_path)
    loaded = open_model(str(tmp_path), torch.float32)
    (tmp_path / "model.safetensors").unlink()
    assert count_parameters(str(tmp_path)) == sum(p.numel() for p in loaded.parameters())


def saved(
    folder: Path,
    config: TrainConfig,
    *,
    inputs: Mapping[str, object] = MappingProxyType({}),
    **changes: object,
) -> Path:
    """The config.json of a run that has just begun."""
    own = to_json(config)
    if own["task"]:
        own["task"].pop("engine", None)
    parts = {"versions": {}, "data": {}, "units": {}}
    inputs = dict(inputs)
    write_config(folder, {"recipe": "mine", "config": own | changes, "inputs": inputs, **parts})
    return folder / "config.json"


@pytest.mark.parametrize("recipe", [*RECIPES])
def test_the_settings_of_a_run_come_back_from_its_config(tmp_path: Path, recipe: str) -> None:
    config = RECIPES[recipe]
    on_hub = {"model": config.model} if isinstance(config.model, str) else {}
    assert settings_of_run(saved(tmp_path, config, inputs=on_hub)) == ("mine", config, None)


def test_a_model_folder_is_known_by_its_name_only(tmp_path: Path) -> None:
    config = replace(RECIPES["smoke"], model="some-model")
    file = saved(tmp_path, config, inputs={"model": "0123abc"})
    assert settings_of_run(file) == ("mine", config, "some-model")


def test_chosen_settings_come_back_too(tmp_path: Path) -> None:
    chosen = default_settings(SMALL)
    assert settings_of_run(saved(tmp_path, chosen))[1] == chosen


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rounds": "two"}, "config.rounds is 'two', expected a whole number"),
        ({"rounds": 0}, "rounds must be at least 1, not 0"),
        ({"rounds": True}, "config.rounds is true, expected a whole number"),
        ({"methods": ["magic"]}, "config.methods[0] is 'magic', expected one of sft_more, "),
        ({"magic": 1}, "config.magic: not a setting of this version of StepAgent"),
        ({"lora": {"rank": 1}}, "config.lora.alpha: missing; this version of StepAgent has it"),
        ({"model": {"size": 1}}, "config.model: its fields are not settings of this version"),
        ({"model": 5}, "config.model is 5, expected "),
    ],
)
def test_a_config_of_other_settings_is_one_line(
    tmp_path: Path, changes: dict[str, object], expected: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        settings_of_run(saved(tmp_path, RECIPES["smoke"], **changes))
    assert str(caught.value).startswith(f"{tmp_path}/config.json: {expected}")


def test_a_changed_or_foreign_config_is_refused(tmp_path: Path) -> None:
    file = saved(tmp_path, RECIPES["smoke"])
    text = file.read_text()
    file.write_text(text.replace('"rounds": 1', '"rounds": 2'))
    with pytest.raises(RunError, match="changed since StepAgent wrote it"):
        settings_of_run(file)
    file.write_text('{"recipe": "smoke", "config": {}}')  # before hashes were kept
    with pytest.raises(SettingsError, match="not of a run of this version of stepagent train"):
        settings_of_run(file)
    with pytest.raises(SettingsError, match=r"none/config\.json: no such file; expected the conf"):
        settings_of_run(tmp_path / "none" / "config.json")
    with pytest.raises(SettingsError, match=r"expected the config\.json of a run, under that name"):
        settings_of_run(tmp_path / "settings.json")


PYTHON = """
from dataclasses import replace
from stepagent.experiment.recipes import RECIPES

MINE = replace(RECIPES["smoke"], rounds=3)
OTHER = 5
WORD = replace(MINE, evaluation=replace(MINE.evaluation, num_parallel=2.5))
"""


def test_settings_come_from_a_python_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(PYTHON)
    assert settings_of_file(file, "MINE") == replace(RECIPES["smoke"], rounds=3)


def test_a_python_file_of_settings_imports_its_neighbours_and_is_read_anew(tmp_path: Path) -> None:
    (tmp_path / "rounds_of_mine.py").write_text("ROUNDS = 4\n")
    file = tmp_path / "mine.py"
    file.write_text(PYTHON.replace("rounds=3", "rounds=ROUNDS"))
    file.write_text("from rounds_of_mine import ROUNDS\n" + file.read_text())
    assert settings_of_file(file, "MINE").rounds == 4
    file.write_text(PYTHON)
    assert settings_of_file(file, "MINE").rounds == 3


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        (PYTHON, "MIND", "no TrainConfig 'MIND'; did you mean 'MINE'? it has: MINE, WORD"),
        (PYTHON, "OTHER", "no TrainConfig 'OTHER'; it has: MINE, WORD"),
        (PYTHON, "WORD", "WORD.evaluation.num_parallel is 2.5, expected a whole number"),
        ("", "MINE", "no TrainConfig 'MINE'; it has: none"),
        ("1 / 0", "MINE", "cannot be imported: ZeroDivisionError: division by zero"),
        ("a b", "MINE", "cannot be imported: SyntaxError: invalid syntax"),
        ("exit(3)", "MINE", "cannot be imported: SystemExit: 3"),
    ],
)
def test_a_python_file_without_such_settings_is_one_line(
    tmp_path: Path, text: str, name: str, expected: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        settings_of_file(file, name)
    assert str(caught.value).startswith(f"{file}: {expected}")


def compared(name: str, agreed: int, steps: int = 4, logprob: float = -2.0) -> Compared:
    return Compared(id=name, steps=steps, agreed=agreed, logprob=logprob)


def test_agreement_is_a_share_of_steps_with_an_interval_over_trajectories() -> None:
    found = agreement([compared("a", 4), compared("b", 3), compared("c", 1, steps=2)])
    assert (found.mean, found.n) == (0.8, 3)
    assert found.low is not None and found.high is not None
    assert 0 <= found.low < 0.8 < found.high <= 1
    assert expert_logprob([compared("a", 4), compared("b", 0, steps=1)]).mean == -0.8


def test_a_gain_in_agreement_is_paired_by_trajectory() -> None:
    mine = [compared("a", 4), compared("b", 3), compared("c", 2)]
    theirs = [compared("c", 1), compared("b", 2), compared("a", 3), compared("d", 4)]
    found = agreement_gain(mine, theirs)
    assert (found.mean, found.low, found.high, found.n) == (0.25, 0.25, 0.25, 3)


def test_a_policy_is_compared_in_every_held_out_trajectory() -> None:
    policy, held_out = novice(), rendered(novice(), demonstrations("dev")[:4])
    rows = compare_with_expert(policy, held_out, max_new_tokens=8)
    assert [row.steps for row in rows] == [len(h.actions) for h in held_out]
    whole = likeness(policy, held_out, max_new_tokens=8)
    assert agreement(rows).mean == pytest.approx(whole.agreement)
    assert expert_logprob(rows).mean == pytest.approx(whole.expert_logprob, abs=1e-4)
    assert from_rows(json.loads(json.dumps(to_rows(rows)))) == rows
