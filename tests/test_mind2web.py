"""Mind2Web: the tournament of a step, answers, and the benchmark's metrics."""

import gzip
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mind2web_files import OPERATIONS, prepared
from stepagent.tasks.base import ExpertFailed, TaskDataError
from stepagent.tasks.mind2web.answers import (
    Answer,
    StepResult,
    mind2web_metrics,
    operation_f1,
    read_answer,
    written_answer,
)
from stepagent.tasks.mind2web.data import prepare
from stepagent.tasks.mind2web.steps import INDEX
from stepagent.tasks.mind2web.task import FOLDS, HELD_OUT, Mind2Web, Mind2WebConfig, fold_of
from stepagent.tasks.mind2web.tournament import answers_needed
from stepagent.types import Step, Trajectory

DATA = Path(os.environ.get("STEPAGENT_DATA") or Path(__file__).parents[2] / "shared" / "data")
DATA = DATA / "mind2web"
Agent = Callable[[str], str]
words = st.lists(st.sampled_from(["red", "shoes", "9", "-", "New"]), max_size=5).map(" ".join)


@pytest.fixture(scope="module")
def task() -> Mind2Web:
    """All 24 candidates are used."""
    return Mind2Web(Mind2WebConfig(top_k=24), folder=prepared())


def play(task: Mind2Web, item: str, agent: Agent) -> Trajectory:
    """An episode, with its details in the metadata as in evaluations."""
    env = task.make_env()
    observation, info = env.reset(options={"item": item})
    instruction, steps, is_over = info["instruction"], [], False
    while not is_over:
        action = agent(observation)
        steps.append(Step(observation=observation, action=action))
        observation, _, terminated, truncated, info = env.step(action)
        is_over = terminated or truncated
    return Trajectory(
        id=item,
        task=task.name,
        instruction=instruction,
        steps=tuple(steps),
        score=info["score"],
        success=info["success"],
        truncated=truncated,
        metadata={"details": info["details"]},
    )


def offered(observation: str) -> dict[str, str]:
    """The offered letters with the ids of their elements; each button's text is its number."""
    lines = observation.split("A. None of the above")[1].strip().split("\n")
    return {line[0]: str(100 + int(line.rstrip(")").split()[-1])) for line in lines if line}


def details(episode: Trajectory) -> dict[str, Any]:
    found = episode.metadata["details"]
    assert isinstance(found, dict)
    return found


def naive_evaluation(
    order: Sequence[str], targets: Sequence[str], label: str, agent: Callable[[list[str]], Any]
) -> tuple[int, float, int]:
    """The official evaluation of one step, from its description: element, F1, step success.

    `agent` says for a group None or (element, operation).
    """
    if not set(order) & set(targets):
        return 0, 0, 0
    pool, prediction = list(order), None
    while len(pool) > 1:
        group, pool = pool[:5], pool[5:]
        choice = agent(sorted(group))  # ids rise along the page
        if choice is not None:
            pool.append(choice[0])
            prediction = choice
    if not pool or prediction is None:
        return 0, 0, 0
    accuracy = int(prediction[0] in targets)
    f1 = naive_f1(prediction[1], label)
    return accuracy, f1, int(accuracy == 1 and f1 == 1)


def naive_f1(predicted: str, label: str) -> float:
    found, wanted = set(predicted.split()), set(label.split())
    if not found or not wanted:
        return float(found == wanted)
    right = len([word for word in found if word in wanted])
    precision, recall = right / len(found), right / len(wanted)
    return 0.0 if right == 0 else 2 * precision * recall / (precision + recall)


def test_the_expert_answers_every_group_as_annotated(task: Mind2Web) -> None:
    expert = task.expert("train-8/1")
    seen: list[str] = []
    for step in expert.steps:
        group = offered(step.observation)
        right = [letter for letter, element in group.items() if element in ("103", "115")]
        assert step.action == (
            f"{right[0]}. Action: TYPE Value: red shoes size 9" if right else "A."
        )
        seen += group.values()
    assert set(seen) == {str(100 + n) for n in range(24)}
    assert expert.metadata == {"domain": "Shopping", "website": "shop-8"}
    assert expert.score == 100


def test_the_instruction_has_the_task_and_the_previous_actions(task: Mind2Web) -> None:
    first, last = (task.expert(f"train-8/{n}").instruction for n in (0, 2))
    assert "Task: Buy the red shoes of train-8.\nPrevious actions:\nNone" in first
    assert last.endswith("[button]  basket -> CLICK\n[button]  search -> CLICK")


def test_a_group_shows_the_page_around_it_and_none_of_the_above(task: Mind2Web) -> None:
    observation = task.expert("train-8/0").steps[0].observation
    page, choices = observation.split("\n\n")
    first, *others = choices.split("\n")
    assert first == "A. None of the above"
    assert [line[:3] for line in others] == ["B. ", "C. ", "D. ", "E. ", "F. "]
    for line in others:
        assert line[3:] in page
        assert line[3:].startswith(f"(button #{line[0]} submit btn")


def test_the_page_is_truncated_but_not_the_choices() -> None:
    full = Mind2Web(Mind2WebConfig(), folder=prepared()).expert("train-8/0").steps[0].observation
    config = Mind2WebConfig(page_chars=30)
    cut = Mind2Web(config, folder=prepared()).expert("train-8/0").steps[0].observation
    assert cut == full[:30] + full[full.index("\n\n") :]


def test_the_same_group_is_asked_again_after_text_that_is_no_answer(task: Mind2Web) -> None:
    env = task.make_env()
    first, _ = env.reset(options={"item": "train-8/1"})
    for text in ("", "Buy them", "G. Action: CLICK", "b.", "Because", "AB"):
        observation, reward, terminated, truncated, _ = env.step(text)
        assert observation.endswith(first)
        assert "must begin with one of the letters A, B, C, D, E, F." in observation
        assert (reward, terminated, truncated) == (0, False, False)
    assert not env.step("A.")[0].endswith(first)


def test_a_letter_that_is_not_offered_is_no_answer() -> None:
    env = Mind2Web(Mind2WebConfig(top_k=8), folder=prepared()).make_env()
    env.reset(options={"item": "train-8/1"})
    smaller = env.step("A.")[0]
    assert list(offered(smaller)) == ["B", "C", "D"]
    assert env.step("E. Action: CLICK")[0].endswith(smaller)


def test_none_everywhere_ends_without_an_element(task: Mind2Web) -> None:
    episode = play(task, "train-8/1", lambda _: "A.")
    assert len(episode.steps) == 5
    assert not episode.success
    assert (details(episode)["element_accuracy"], details(episode)["operation_f1"]) == (0, 0)


def test_a_winner_that_a_later_group_rejects_is_no_prediction() -> None:
    task = Mind2Web(Mind2WebConfig(top_k=8), folder=prepared())
    answers = iter(["B. Action: CLICK", "A."])
    episode = play(task, "train-8/0", lambda _: next(answers))
    assert details(episode)["operation_f1"] == 0
    answers = iter(["A.", "B. Action: CLICK"])
    assert details(play(task, "train-8/0", lambda _: next(answers)))["operation_f1"] == 1


def test_a_right_element_with_a_wrong_operation_is_no_success(task: Mind2Web) -> None:
    def agent(observation: str) -> str:
        right = [k for k, element in offered(observation).items() if element in ("103", "115")]
        return f"{right[0]}.\nAction: TYPE\nValue: red hats" if right else "A."

    episode = play(task, "train-8/1", agent)
    # TYPE red hats against TYPE red shoes size 9: two words in common, of three and of five.
    assert details(episode)["operation_f1"] == pytest.approx(
        2 * (2 / 3) * (2 / 5) / (2 / 3 + 2 / 5)
    )
    assert details(episode)["element_accuracy"] == 1
    assert (episode.score, episode.success) == (0, False)


def test_a_step_without_an_accepted_element_scores_0_after_one_answer() -> None:
    task = Mind2Web(Mind2WebConfig(top_k=20), folder=prepared())
    with pytest.raises(ExpertFailed, match="train-8/2: no accepted element is among the 20"):
        task.expert("train-8/2")
    episode = play(task, "train-8/2", lambda _: "B. Action: SELECT Value: Price: low to high")
    assert len(episode.steps) == 1
    assert (details(episode)["element_accuracy"], details(episode)["operation_f1"]) == (0, 0)
    facts = task.facts()
    assert facts["undecidable_steps"] == {"train": 3, "dev": 2, "test": 2}
    assert facts["steps"] == {"train": 9, "dev": 6, "test": 6}
    assert facts["recall_of_ranks"] == {
        "recall@5": 1 / 3, "recall@10": 2 / 3, "recall@20": 2 / 3, "recall@50": 1
    }  # fmt: skip


def test_web_tasks_stay_whole_in_train_or_dev(task: Mind2Web) -> None:
    for split in ("train", "dev"):
        names = {item.split("/")[0] for item in task.items(split)}
        assert set(task.items(split)) == {f"{name}/{n}" for name in names for n in range(3)}
        assert {fold_of(name) == 0 for name in names} == {split == "dev"}


def test_the_test_split_is_the_part_that_was_asked_for() -> None:
    task = Mind2Web(Mind2WebConfig(test="test_domain"), folder=prepared())
    assert {item.split("/")[0] for item in task.items("test")} == {"test_domain-0", "test_domain-1"}
    assert task.group("train-8/0") == "Shopping"
    assert task.group("train-9/0") == "Travel"


def test_two_fifths_of_the_training_part_can_be_dev_and_test(task: Mind2Web) -> None:
    held_out = Mind2Web(Mind2WebConfig(test="held_out"), folder=prepared())
    splits = {split: held_out.items(split) for split in ("train", "dev", "test")}
    assert all(splits.values()) and set(task.items("dev")) <= set(splits["dev"])
    assert Counter(HELD_OUT.values()) == {"dev": FOLDS / 5, "test": FOLDS / 5}
    for split, items in splits.items():
        assert {HELD_OUT.get(fold_of(item.split("/")[0]), "train") for item in items} == {split}
    whole = [*task.items("train"), *task.items("dev")]
    assert sorted(item for items in splits.values() for item in items) == sorted(whole)
    assert held_out.facts()["test"] == "held_out"


@pytest.mark.parametrize(
    "options", [{"top_k": 1}, {"top_k": 51}, {"step_limit": 12}, {"page_chars": -1}]
)
def test_invalid_settings_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Mind2WebConfig(**options)  # type: ignore[arg-type]


@given(st.integers(2, 200))
def test_no_tournament_takes_more_answers_than_stated(num_candidates: int) -> None:
    pool, answers = num_candidates, 0
    while pool > 1:
        pool, answers = max(0, pool - 5) + 1, answers + 1
    assert answers == answers_needed(num_candidates)


@pytest.mark.parametrize("seed", range(30))
def test_episodes_and_metrics_equal_a_naive_official_evaluation(seed: int) -> None:
    chance = random.Random(seed)
    config = Mind2WebConfig(top_k=chance.randint(2, 24))
    task = Mind2Web(config, folder=prepared())
    opinion = {str(100 + n): chance.random() for n in range(24)}
    if seed % 2:
        opinion |= {"107": 2.0, "103": 2.0, "120": 2.0}
    said = [chance.choice(OPERATIONS), *OPERATIONS]
    bar = chance.random()

    def choose(group: list[str]) -> tuple[str, str] | None:
        best = max(group, key=opinion.__getitem__)
        operation = " ".join(said[int(best) % len(said)]).strip()
        return (best, operation) if opinion[best] > bar else None

    def agent(observation: str) -> str:
        letters = offered(observation)
        choice = choose(list(letters.values()))
        if choice is None:
            return "A."
        letter = next(k for k, element in letters.items() if element == choice[0])
        action, _, value = choice[1].partition(" ")
        return f"{letter}.\nAction: {action}\nValue: {value}"

    items = [item for split in ("train", "test") for item in task.items(split)]  # type: ignore[arg-type]
    episodes = [play(task, item, agent) for item in items]
    expected = []
    for item in items:
        step = task.annotated(item)
        label = f"{step.operation} {step.value}"
        order = seen_order(task, item)
        expected.append(naive_evaluation(order, step.targets, label, choose))
    for episode, (accuracy, f1, success) in zip(episodes, expected, strict=True):
        assert details(episode)["element_accuracy"] == accuracy
        assert details(episode)["operation_f1"] == pytest.approx(f1)
        assert (episode.success, episode.score) == (bool(success), 100 * success)
    table = np.array(expected).reshape(-1, 3, 3)  # web task, step, number
    wanted = {}
    for column, name in enumerate(("element_accuracy", "operation_f1", "step_success_rate")):
        wanted[name] = table[:, :, column].mean()
        wanted[f"macro_{name}"] = table[:, :, column].mean(axis=1).mean()
    wanted["success_rate"] = table[:, :, 2].all(axis=1).mean()
    assert task.metrics(episodes) == pytest.approx(wanted)


def seen_order(task: Mind2Web, item: str) -> list[str]:
    """The order in which the candidates are shown, found by rejecting all of them."""
    step, order = task.annotated(item), list[str]()
    if not step.is_decidable(task.config.top_k):
        return step.considered(task.config.top_k)
    episode = play(task, item, lambda _: "A.")
    for shown in episode.steps:
        order += offered(shown.observation).values()
    # A single element that is left at the end is never shown.
    return order + [e for e in step.considered(task.config.top_k) if e not in order]


def test_macro_averages_weigh_tasks_and_micro_averages_steps() -> None:
    def result(task: str, step: int, of: int | None, success: int) -> StepResult:
        return StepResult(
            annotation_id=task,
            step=step,
            steps_of_task=of,
            element_accuracy=success,
            operation_f1=success / 2,
            step_success=success,
        )

    results = [result("a", 0, 1, 1), *(result("b", n, 3, int(n < 2)) for n in range(3))]
    found = mind2web_metrics(results)
    assert found["step_success_rate"] == pytest.approx(3 / 4)
    assert found["macro_step_success_rate"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["macro_operation_f1"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found["success_rate"] == pytest.approx(1 / 2)
    # Without all of its steps, the success of a web task is unknown.
    assert mind2web_metrics(results[:3])["success_rate"] == 1
    assert "success_rate" not in mind2web_metrics([result("a", 0, None, 1)])
    assert mind2web_metrics([]) == {}


@given(words, words)
def test_operation_f1_is_the_one_of_precision_and_recall(first: str, second: str) -> None:
    assert operation_f1(first, second) == pytest.approx(naive_f1(first, second))
    assert operation_f1(first, second) == operation_f1(second, first)


def test_words_count_once_in_operation_f1() -> None:
    assert operation_f1("TYPE red red red", "TYPE red") == 1


@given(st.sampled_from("BCDEF"), st.sampled_from(["TYPE", "SELECT"]), words)
def test_written_answers_are_read_on_one_line_or_on_three(
    letter: str, operation: str, value: str
) -> None:
    expected = Answer(letter, f"{operation} {value}".strip())
    assert read_answer(written_answer(letter, operation, value)) == expected
    assert read_answer(f"{letter}.\nAction: {operation}\nValue: {value}") == expected
    assert read_answer(f" Answer: {letter}.\nAction: {operation}\nValue: {value}\n") == expected


def test_answers_without_an_operation_have_none() -> None:
    assert read_answer("B") == Answer("B", "")
    assert read_answer("B. Action: HOVER") == Answer("B", "")
    assert read_answer("A. None of the above") == Answer("A", "")
    assert read_answer("C) Action: CLICK") == Answer("C", "CLICK")
    assert written_answer("B", "CLICK", "home") == "B. Action: CLICK"
    assert written_answer("B", "TYPE", "two\nlines") == "B. Action: TYPE Value: two"


@given(st.text(max_size=60))
def test_any_text_is_an_answer_or_not(text: str) -> None:
    answer = read_answer(text)
    assert answer is None or answer.letter in "ABCDEF"


def test_missing_data_says_how_to_download_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STEPAGENT_TASK_DATA", str(tmp_path))
    with pytest.raises(TaskDataError, match="stepagent download mind2web"):
        Mind2Web().items("train")


@pytest.mark.skipif(not [*DATA.glob("*skillgen*")], reason=f"no Mind2Web in {DATA}")
def test_the_expert_solves_every_step_of_the_published_step_file(tmp_path: Path) -> None:
    assert prepare(DATA, tmp_path, skip_invalid=False).counts == {"train": 100}
    task = Mind2Web(folder=tmp_path)
    items = [*task.items("train"), *task.items("dev")]
    assert len(items) == 100
    firsts = []
    for item in items:
        expert = task.expert(item)
        assert 6 <= len(expert.steps) <= answers_needed(30)
        # The file lists the right element first; the groups must not.
        firsts.append(expert.steps[0].action[0])
    assert 5 <= sum(letter != "A" for letter in firsts) <= 40
    assert {task.group(item) for item in items} == {"Travel", "Shopping", "Entertainment"}
    with pytest.raises(TaskDataError, match="the part test_task is missing"):
        task.items("test")


def test_elements_without_ranks_are_all_used_and_need_enough_steps(tmp_path: Path) -> None:
    shutil.copytree(prepared(), tmp_path, dirs_exist_ok=True)
    index = tmp_path / INDEX
    text = gzip.decompress(index.read_bytes()).decode()
    index.write_bytes(gzip.compress(text.replace('"is_ranked":true', '"is_ranked":false').encode()))
    short = Mind2Web(Mind2WebConfig(top_k=5, step_limit=3), folder=tmp_path)
    with pytest.raises(TaskDataError, match="24 elements can need 6 answers, but step_limit is 3"):
        short.items("train")
    assert Mind2Web(Mind2WebConfig(top_k=5, step_limit=6), folder=tmp_path).items("train")
