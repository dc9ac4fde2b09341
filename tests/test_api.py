"""The public Python API: what `import stepagent` offers, and what it refuses."""

import ast
import doctest
import inspect as python_inspect
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stepagent
from fakes import WORLD, demonstrations, novice, random_policy
from stepagent.api import learning, models, step_rewards, trajectory_files, whole_run
from stepagent.api.learning import DemonstrationsError
from stepagent.model.opening import PolicyError

EXPERT = list(demonstrations()[:6])
HELD_OUT = list(demonstrations("dev")[:3])
SHORT = stepagent.InspectionConfig(decoding=stepagent.Decoding(max_new_tokens=8))


def init_file() -> ast.Module:
    return ast.parse(Path(python_inspect.getfile(stepagent)).read_text())


def test_importing_the_package_and_reading_files_loads_no_torch() -> None:
    code = "import sys, stepagent; stepagent.read_trajectories; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_type_checkers_see_the_names_that_python_loads() -> None:
    (types_only,) = (node for node in init_file().body if isinstance(node, ast.If))
    seen = {
        (str(node.module).removeprefix("stepagent."), alias.name)
        for node in types_only.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    loaded = {(module, name) for module, names in stepagent._MODULES.items() for name in names}
    assert seen == loaded
    assert sorted(name for _, name in loaded) == stepagent.__all__
    assert set(stepagent.__all__) <= set(dir(stepagent))


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        stepagent.trian  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("name", stepagent.__all__)
def test_every_public_name_is_documented_with_its_public_parts(name: str) -> None:
    value = getattr(stepagent, name)
    assert value.__doc__ and not value.__doc__.startswith(f"{name}(")
    if not python_inspect.isclass(value):
        text = value.__doc__
        for parameter in python_inspect.signature(value).parameters:
            assert f"{parameter}:" in text, f"{name} does not say what {parameter} is"
        return
    for key, part in vars(value).items():
        if not key.startswith("_") and callable(part):
            assert part.__doc__, f"{name}.{key} has no docstring"


SIZE = stepagent.TinyConfig(vocab_size=300, hidden_size=24, num_layers=1, num_heads=2, context=256)
ONCE = stepagent.SFTConfig(epochs=1)
NO_PRETRAINING = stepagent.PretrainConfig(reading=ONCE, copying=ONCE)
RUN = stepagent.TrainConfig(
    task=None,
    model=SIZE,
    pretrain=NO_PRETRAINING,
    sft=ONCE,
    methods=("implicit",),
    rounds=1,
    inspection=SHORT,
    evaluation=stepagent.EvaluationConfig(
        decoding=stepagent.Decoding(max_new_tokens=8, temperature=0.0)
    ),
)


@pytest.mark.parametrize(
    "name", [n for n in stepagent.__all__ if python_inspect.isfunction(getattr(stepagent, n))]
)
def test_every_public_function_has_a_true_example(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)  # one opens a file of examples/
    known = {
        "policy": novice(2), "demonstrations": EXPERT, "held_out": HELD_OUT, "task": WORLD,
        "config": RUN, "out": tmp_path / "run",
    }  # fmt: skip
    function = getattr(stepagent, name)
    (example,) = doctest.DocTestFinder(recurse=False).find(function, name, globs=known)
    assert example.examples
    before = torch.are_deterministic_algorithms_enabled()
    try:
        assert doctest.DocTestRunner().run(example).failed == 0
    finally:
        torch.use_deterministic_algorithms(before)


def test_trajectories_are_read_in_any_format_and_written_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for format in ("trajectories", "messages"):
        file = tmp_path / f"{format}.jsonl.gz"
        stepagent.write_trajectories(file, EXPERT, format=format)
        assert stepagent.read_trajectories(file) == EXPERT
    with pytest.raises(FileExistsError):
        stepagent.write_trajectories(file, EXPERT)
    stepagent.write_trajectories(file, EXPERT[:1], overwrite=True)
    assert stepagent.read_trajectories(str(file)) == EXPERT[:1]
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text("no JSON\n" + EXPERT[0].model_dump_json() + "\n")
    with pytest.raises(ValueError, match=r"damaged\.jsonl:1: not JSON"):
        stepagent.read_trajectories(damaged)
    assert stepagent.read_trajectories(damaged, skip_invalid=True) == EXPERT[:1]
    assert "damaged.jsonl: 1 records left out, the first at line 1: not JSON" in caplog.text


def test_an_unknown_format_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    for call in (stepagent.read_trajectories, stepagent.write_trajectories):
        arguments = [tmp_path / "x"] + [[]] * (call is stepagent.write_trajectories)
        with pytest.raises(ValueError, match=r"unknown format 'csv'; expected one of .*messages"):
            call(*arguments, format="csv")  # type: ignore[operator]


def test_one_round_of_implicit_reflection_rewards_the_expert_and_can_be_repeated() -> None:
    def one_round() -> tuple[stepagent.Policy, stepagent.Lesson, list[stepagent.PracticedStep]]:
        policy, rows = novice(4), list[tuple[str, dict[str, float]]]()
        lesson = stepagent.inspect(policy, EXPERT, HELD_OUT, SHORT, seed=1)
        rewarded = stepagent.reflect(
            policy,
            lesson,
            stepagent.ImplicitConfig(batch_size=2).learner(policy),
            log=lambda phase, row: rows.append((phase, row)),
        )
        assert {phase for phase, _ in rows} == {"train"} and len(rows) == 6
        return policy, lesson, rewarded

    policy, lesson, rewarded = one_round()
    assert [(s.trajectory_id, s.step_index) for s in lesson.practised] == [
        (t.id, n) for t in EXPERT for n in range(len(t.steps))
    ]
    assert [s.expert_action for s in rewarded] == [s.action for t in HELD_OUT for s in t.steps]
    assert all(s.expert_reward is not None for s in rewarded)
    again = one_round()
    assert again[2] == rewarded
    # The rewards are those that `score` gives the trained policy against the one it started from.
    held_out = stepagent.inspect(novice(4), HELD_OUT, EXPERT, SHORT, seed=1)
    scored = stepagent.score(policy, held_out, reference=novice(4), beta=0.2)
    for mine, theirs in zip(scored, rewarded, strict=True):
        assert mine.expert_reward == pytest.approx(theirs.expert_reward, abs=1e-4)
        assert mine.agent_actions[0].reward == pytest.approx(
            theirs.agent_actions[0].reward, abs=1e-4
        )


def test_other_rounds_sample_other_actions() -> None:
    policy = random_policy()

    def actions(round: int) -> list[str]:
        lesson = stepagent.inspect(policy, EXPERT, HELD_OUT, SHORT, round=round)
        return [step.agent_actions[0].text for step in lesson.practised]

    assert actions(1) == actions(1) != actions(2)


def test_the_discriminator_of_inverse_reflection_scores_steps() -> None:
    policy = novice(2)
    agent, expert = novice(2), list(demonstrations()[:20])
    adam = stepagent.OptimizerConfig(learning_rate=3e-3)
    config = stepagent.InverseConfig(
        discriminator=stepagent.DiscriminatorConfig(warmup_epochs=20, optimizer=adam)
    )
    learner = config.learner(policy)
    lesson = stepagent.inspect(policy, expert, HELD_OUT, SHORT)
    stepagent.reflect(policy, lesson, learner)
    scored = stepagent.score(learner.discriminator, lesson, reference=agent)
    mean = [
        torch.tensor(values).mean()
        for values in (
            [s.expert_reward for s in scored],
            [a.reward for s in scored for a in s.agent_actions],
        )
    ]
    assert mean[0] > mean[1]


def test_every_step_of_a_trajectory_gets_a_reward_and_an_equal_policy_gives_zero() -> None:
    policy = novice(4)
    rewards = stepagent.score(policy, EXPERT, reference=random_policy())
    assert [len(own) for own in rewards] == [len(t.steps) for t in EXPERT]
    assert min(min(own) for own in rewards) > 0  # the novice finds all of them likelier
    doubled = stepagent.score(policy, EXPERT, reference=random_policy(), beta=2.0)
    assert doubled[0] == pytest.approx([2 * r for r in rewards[0]])
    negative = stepagent.score(policy, EXPERT, reference=random_policy(), form="log-d")
    assert max(max(own) for own in negative) < 0
    assert all(r == 0 for own in stepagent.score(policy, EXPERT, reference=policy) for r in own)


def test_policies_with_different_tokenizers_cannot_be_compared() -> None:
    other = stepagent.from_scratch(EXPERT, stepagent.TinyConfig(
        vocab_size=300, hidden_size=12, num_layers=1, num_heads=1, context=256,
    ), pretraining=NO_PRETRAINING)  # fmt: skip
    with pytest.raises(ValueError, match="different tokenizers"):
        stepagent.score(novice(4), EXPERT, reference=other)


def test_a_model_from_scratch_is_the_same_for_the_same_seed_and_can_be_saved(
    tmp_path: Path,
) -> None:
    first, second, third = (
        stepagent.from_scratch(EXPERT, SIZE, pretraining=NO_PRETRAINING, seed=seed)
        for seed in (0, 0, 1)
    )
    weights = [policy.parameters()[0] for policy in (first, second, third)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    first.save(tmp_path / "agent")
    loaded = stepagent.Policy.load(tmp_path / "agent")
    assert stepagent.score(loaded, EXPERT, reference=first)[0][0] == pytest.approx(0, abs=1e-5)


def test_sft_brings_a_policy_closer_to_the_expert_and_logs_every_update() -> None:
    policy, rows = random_policy(), list[str]()
    before = stepagent.likeness(policy, HELD_OUT, max_new_tokens=8)
    config = stepagent.SFTConfig(epochs=2, batch_size=3)
    stepagent.sft(policy, EXPERT, config, log=lambda phase, row: rows.append(phase))
    after = stepagent.likeness(policy, HELD_OUT, max_new_tokens=8)
    assert after.expert_logprob > before.expert_logprob
    assert rows == ["train"] * 4


def test_a_policy_is_evaluated_in_an_environment() -> None:
    items = WORLD.items("test")[:3]
    found = stepagent.evaluate(novice(), WORLD, items)
    assert [episode.id for episode in found.episodes] == list(items)
    assert found.success.n == 3
    with pytest.raises(ValueError, match="no test items"):
        stepagent.evaluate(novice(), WORLD, [])


def test_detours_put_the_mistakes_of_the_agent_into_the_demonstrations() -> None:
    policy = novice(4)
    lesson = stepagent.inspect(policy, EXPERT, HELD_OUT, SHORT, task=WORLD, detours=1)
    assert lesson.detours is not None and lesson.detours.taken > 0
    assert len(lesson.practised) > sum(len(t.steps) for t in EXPERT)


def test_what_cannot_be_inspected_is_one_clear_line() -> None:
    policy = random_policy()
    for own, held_out, told in (
        ([], HELD_OUT, "inspect: demonstrations is empty; expected at least one trajectory"),
        (EXPERT, [], "inspect: held_out is empty; expected at least one trajectory"),
        ([*EXPERT, EXPERT[0]], HELD_OUT, f"inspect: id '{EXPERT[0].id}' occurs twice in demonst"),
        (EXPERT, EXPERT[:1], f"inspect: held-out trajectory '{EXPERT[0].id}' is also a demonstra"),
    ):
        with pytest.raises(DemonstrationsError) as error:
            stepagent.inspect(policy, own, held_out)
        assert str(error.value).startswith(told) and "\n" not in str(error.value)
    with pytest.raises(DemonstrationsError, match="detours needs an environment"):
        stepagent.inspect(policy, EXPERT, HELD_OUT, detours=1)


def long(trajectory: stepagent.Trajectory) -> stepagent.Trajectory:
    steps = trajectory.steps[0].model_copy(update={"observation": "far away " * 500})
    return trajectory.model_copy(update={"id": "long", "steps": (steps,)})


def test_trajectories_longer_than_the_context_are_left_out_with_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        stepagent.sft(random_policy(), [long(EXPERT[0]), *EXPERT], stepagent.SFTConfig(epochs=1))
    (record,) = caplog.records
    assert record.getMessage().startswith("sft: 1 of 7 demonstrations left out: long: has ")
    with pytest.raises(PolicyError, match="none of 1 trajectories fits: long: has"):
        stepagent.sft(random_policy(), [long(EXPERT[0])])


def test_a_model_without_a_chat_template_says_what_to_do(tmp_path: Path) -> None:
    random_policy().save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config.pop("chat_template", None)
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError) as error:
        stepagent.Policy.load(tmp_path)
    assert "no chat template" in str(error.value) and "instruct" in str(error.value)
    assert "\n" not in str(error.value)


def test_deterministic_seeds_the_global_generators_and_asks_for_deterministic_kernels() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    try:
        drawn = []
        for _ in range(2):
            stepagent.deterministic(7)
            drawn.append(torch.rand(1))
        assert drawn[0] == drawn[1]
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(before)


def test_modules_of_the_api_have_no_other_public_names_than_the_package() -> None:
    for module in (learning, models, step_rewards, trajectory_files, whole_run):
        tree = ast.parse(Path(str(module.__file__)).read_text())
        own = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)} - {
            "check_apart",
            "check_ids",
        }
        assert {name for name in own if not name.startswith("_")} <= set(stepagent.__all__)
