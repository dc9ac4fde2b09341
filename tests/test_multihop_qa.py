"""The search environment and its expert.

The published files are looked for in ../shared/data, or in the folder that STEPAGENT_DATA names.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from qa_fixtures import RECORDS, hotpot, prepared, task, write_list
from stepagent.tasks.base import ExpertFailed, TaskDataError
from stepagent.tasks.qa.data import prepare
from stepagent.tasks.qa.task import INSTRUCTION, NOT_AN_ACTION, MultihopQA, QAConfig, SearchEnv
from stepagent.types import Step, Trajectory

DATA = Path(os.environ.get("STEPAGENT_DATA") or Path(__file__).parents[2] / "shared" / "data")


def begun(qa: MultihopQA, item: str) -> SearchEnv:
    """An environment after reset."""
    env = qa.make_env()
    assert isinstance(env, SearchEnv)
    env.reset(options={"item": item})
    return env


def said(env: SearchEnv, action: str) -> str:
    """The observation after the action."""
    return env.step(action)[0]


def made(tmp_path: Path, records: list[Any], **settings: Any) -> MultihopQA:
    """The task on these evaluation questions."""
    dataset = settings.get("dataset", "hotpotqa")
    write_list(tmp_path / "raw" / "dev.json", records)
    out = tmp_path / "out"
    out.mkdir()
    prepare(dataset, tmp_path / "raw", out, skip_invalid=False)
    return MultihopQA(QAConfig(**settings), folder=out)


def test_an_episode_begins_with_the_actions_and_the_question() -> None:
    observation, info = task("hotpotqa").make_env().reset(options={"item": "q41"})
    assert observation == "Question: How many people has the town that Painter 41 knew?"
    assert info["instruction"] == INSTRUCTION
    assert all(f"{action}[" in INSTRUCTION for action in ("search", "lookup", "finish"))


def test_a_search_opens_the_best_paragraph_and_names_others() -> None:
    env = begun(task("hotpotqa"), "q41")
    assert said(env, "search[who painted ships?]") == (
        "Painter 41: Painter 41 painted ships. The painter knew Bolvik."
    )
    opened, others = said(env, "search[Bolvik (town)]").split("\n")
    assert opened == "Bolvik (town): Bolvik is a town by a lake. It has 241 people."
    assert others == "Also found: Bridge of Bolvik; Painter 41"
    assert said(env, "search[unheard]") == "Nothing is found."
    alone = begun(task("hotpotqa", results=1), "q41")
    assert said(alone, "search[Bolvik (town)]") == opened


def test_a_title_opens_its_paragraph_although_another_has_the_words_more_often(
    tmp_path: Path,
) -> None:
    record = hotpot(1)
    record["context"][0][1] = ["Bolvik town, Bolvik town, Bolvik town."]
    env = begun(made(tmp_path, [record]), "q1")
    assert said(env, "search[  BOLVIK (Town) ]").startswith("Bolvik (town): ")
    assert said(env, "search[Bolvik, the town]").startswith("Corra Mill: ")


def test_lookup_shows_one_sentence_after_the_other() -> None:
    env = begun(task("hotpotqa", step_limit=20), "q41")
    assert said(env, "lookup[people]") == "No paragraph is open: search first."
    said(env, "search[Painter 41]")
    first = "(Result 1 / 2) Painter 41 painted ships."
    assert said(env, "lookup[painter]") == first
    assert said(env, "lookup[ships]") == "(Result 1 / 1) Painter 41 painted ships."
    assert said(env, "lookup[painter]") == first
    assert said(env, "lookup[PAINTER]") == "(Result 2 / 2) The painter knew Bolvik."
    assert said(env, "lookup[painter]") == "No more results."
    assert said(env, "lookup[rye]") == "No results."
    said(env, "search[Painter 41]")
    assert said(env, "lookup[painter]") == first


@pytest.mark.parametrize(
    "action", ["Search[Painter 41]", "  search [ Painter 41 ] ", "SEARCH[Painter\n41]"]
)
def test_actions_may_vary_in_case_and_spaces(action: str) -> None:
    assert said(begun(task("hotpotqa"), "q41"), action).startswith("Painter 41: ")


@pytest.mark.parametrize("action", ["Painter 41", "search Painter", "open[it]", "search[it] now"])
def test_other_text_costs_a_step(action: str) -> None:
    env = begun(task("hotpotqa"), "q41")
    observation, reward, terminated, truncated, info = env.step(action)
    assert (observation, reward, terminated, truncated) == (NOT_AN_ACTION, 0, False, False)
    assert info["details"]["answer"] is None


def test_the_answer_is_scored_by_f1_and_success_is_exact_match() -> None:
    _, reward, terminated, truncated, info = begun(task("hotpotqa"), "q41").step(
        "finish[241 inhabitants]"
    )
    assert (reward, terminated, truncated) == (0.5, True, False)
    assert (info["score"], info["success"]) == (50, False)
    assert info["details"] == {
        "em": 0, "f1": 0.5, "precision": 0.5, "recall": 0.5, "answer": "241 inhabitants",
    }  # fmt: skip
    info = begun(task("hotpotqa"), "q41").step("finish[The 241 People!]")[4]
    assert (info["score"], info["success"]) == (100, True)
    # MuSiQue accepts aliases.
    info = begun(task("musique"), "2hop__41_41").step("finish[241 inhabitants]")[4]
    assert (info["score"], info["success"]) == (100, True)


def test_brackets_in_an_answer_are_part_of_it() -> None:
    info = begun(task("hotpotqa"), "q41").step("finish[241 [or more] people]")[4]
    assert info["details"]["answer"] == "241 [or more] people"


@pytest.mark.parametrize("dataset", RECORDS)
@pytest.mark.parametrize("paragraphs", ["given", "union"])
def test_the_expert_opens_what_is_needed_in_order_and_answers(
    dataset: Any, paragraphs: Any
) -> None:
    qa = task(dataset, paragraphs=paragraphs)
    for item in (*qa.items("test"), *qa.items("dev"), *qa.items("train")[:5]):
        expert, question = qa.expert(item), qa.question(item)
        opened = [step.observation.split("\n")[0] for step in expert.steps[1:]]
        needed = [question.paragraphs[hop.paragraph] for hop in question.hops]
        assert opened == [f"{p.title}: {p.text}" for p in needed]
        assert expert.steps[-1].action == f"finish[{question.answers[0]}]"
        assert (expert.success, expert.score) == (True, 100)


def test_the_experts_query_is_the_title_and_more_only_where_that_opens_another() -> None:
    assert [step.action for step in task("hotpotqa").expert("q41").steps] == [
        "search[Painter 41]", "search[Bolvik (town)]", "finish[241 people]",
    ]  # fmt: skip
    assert [step.action for step in task("musique").expert("2hop__41_41").steps] == [
        "search[Painter 41]", "search[Bolvik (town) How many people has Bolvik ?]",
        "finish[241 people]",
    ]  # fmt: skip


def test_the_expert_fails_where_no_query_opens_a_paragraph(tmp_path: Path) -> None:
    record = hotpot(1, supporting_facts=[["...", 1]])
    record["context"] += [["...", ["?"]], ["...", ["?!", "!"]]]  # a title opens the first with it
    qa = made(tmp_path, [record])
    with pytest.raises(ExpertFailed, match=r"q1: no query finds the paragraph '\.\.\.'"):
        qa.expert("q1")


def test_with_union_paragraphs_of_the_same_split_are_found_and_no_others() -> None:
    env = begun(task("hotpotqa", paragraphs="union"), "q41")
    assert said(env, "search[Painter 47]").startswith("Painter 47: ")
    assert not said(env, "search[Painter 5]").startswith("Painter 5: ")
    assert not said(begun(task("hotpotqa"), "q41"), "search[Painter 47]").startswith("Painter 47:")


def test_threads_share_one_index() -> None:
    qa = task("hotpotqa", paragraphs="union")

    def play(item: str) -> Trajectory:
        return qa.expert(item)

    items = list(qa.items("train"))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(play, items)) == [play(item) for item in items]


def test_groups_are_the_kinds_of_questions() -> None:
    qa = task("hotpotqa")
    assert {qa.group(item) for item in qa.items("train")} == {"bridge", "comparison"}
    assert task("musique").group("2hop__41_41") == "2hop"
    with pytest.raises(ValueError, match="nowhere"):
        qa.group("nowhere")


def ended(details: dict[str, Any]) -> Trajectory:
    """An episode with these last details."""
    step = Step(observation="Question: ?", action="finish[it]")
    return Trajectory(
        id="q1", task="hotpotqa", instruction="?", steps=(step,), metadata={"details": details}
    )


def test_metrics_are_means_in_percent_by_their_official_names() -> None:
    half = begun(task("hotpotqa"), "q41").step("finish[241 of them]")[4]["details"]
    none = begun(task("hotpotqa"), "q41").step("search[it]")[4]["details"]
    full = begun(task("hotpotqa"), "q41").step("finish[241 people]")[4]["details"]
    episodes = [ended(details) for details in (half, none, full, none)]
    # One word of three, one of two right: F1 is 2 * (1/3 * 1/2) / (1/3 + 1/2) = 0.4.
    assert task("hotpotqa").metrics(episodes) == pytest.approx(
        {"em": 25, "f1": 35, "prec": 100 * (1 / 3 + 1) / 4, "recall": 37.5}
    )
    assert task("musique").metrics(episodes) == pytest.approx({"answer_em": 25, "answer_f1": 35})
    assert task("musique").metrics([]) == {}


def test_facts_distinguish_protocols() -> None:
    facts = task("hotpotqa").facts()
    assert facts["questions"]["test"] == 8
    assert facts["files"]["dev.json"] == {"test": 8}
    assert "bm25s" in facts["search"]
    other = task("hotpotqa", paragraphs="union", results=1, step_limit=9).facts()
    assert {key for key in facts if facts[key] != other[key]} == {
        "paragraphs", "results", "step_limit",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "squad"}, "unknown dataset 'squad'; allowed: hotpotqa"),
        ({"paragraphs": "all"}, "unknown paragraphs 'all'; allowed: given, union"),
        ({"results": 0}, "results must be at least 1, not 0"),
        ({"step_limit": 0}, "step_limit must be at least 1, not 0"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QAConfig(**settings)


def test_without_data_the_error_names_the_download_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEPAGENT_TASK_DATA", str(tmp_path))
    with pytest.raises(TaskDataError, match="stepagent download musique"):
        MultihopQA(QAConfig(dataset="musique")).items("train")
    (tmp_path / "musique").symlink_to(prepared("musique"))
    assert len(MultihopQA(QAConfig(dataset="musique")).items("test")) == 8


@pytest.mark.parametrize(
    ("dataset", "questions"),
    [
        ("hotpotqa", {"bridge": 107, "comparison": 19, "unknown": 500}),
        ("2wikimultihopqa", {"comparison": 60, "compositional": 97, "inference": 29,
                             "bridge_comparison": 64}),
        ("musique", {"2hop": 76, "3hop": 17, "4hop": 7}),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_the_expert_answers_the_published_questions(
    dataset: Any, questions: dict[str, int], tmp_path: Path
) -> None:
    if not (DATA / dataset).is_dir():
        pytest.skip(f"needs the published files in {DATA}")
    prepare(dataset, DATA, tmp_path, skip_invalid=True)
    qa = MultihopQA(QAConfig(dataset=dataset), folder=tmp_path)
    items = qa.items("test")
    groups = [qa.group(item) for item in items]
    assert {group: groups.count(group) for group in groups} == questions
    assert all(qa.expert(item).score == 100 for item in items)


def test_a_split_without_questions_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TaskDataError, match=r"^hotpotqa: the installed data has no questions"):
        made(tmp_path, [hotpot(1)]).items("train")
