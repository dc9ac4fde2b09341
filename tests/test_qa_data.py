import gzip
import json
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mind2web_files import encrypted_zip
from qa_fixtures import (
    RECORDS,
    hotpot,
    ircot,
    musique,
    passages,
    two_wiki,
    write_lines,
    write_list,
    write_zip,
)
from stepagent.tasks.base import TaskDataError
from stepagent.tasks.data.sources import Prepared
from stepagent.tasks.qa.data import FILE, SOURCES, prepare
from stepagent.tasks.qa.question_store import QuestionStore
from stepagent.tasks.qa.questions import Dataset, Question, UnusableError, read_question
from stepagent.tasks.qa.reading_order import _without_brackets


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


def made(
    raw: Path, dataset: Dataset = "hotpotqa", *, skip_invalid: bool = False
) -> tuple[Prepared, QuestionStore]:
    """What `prepare` makes of the folder, in a new folder beside it."""
    out = raw.parent / f"out{len(list(raw.parent.iterdir()))}"
    out.mkdir()
    return prepare(dataset, raw, out, skip_invalid=skip_invalid), QuestionStore(out / FILE)


def titles(question: Question) -> list[str]:
    """Titles of the supporting paragraphs, in order."""
    return [question.paragraphs[hop.paragraph].title for hop in question.hops]


@pytest.mark.parametrize("dataset", RECORDS)
def test_official_train_becomes_train_and_dev_and_official_dev_test(
    raw: Path, dataset: Dataset
) -> None:
    record = RECORDS[dataset]
    write_list(raw / "deep" / "train.json", [record(n) for n in range(60)])
    write_lines(raw / "x_dev_2.jsonl.gz", [record(n) for n in range(60, 65)])
    prepared, store = made(raw, dataset)
    splits = {split: store.kinds(split) for split in ("train", "dev", "test")}
    assert {split: len(kinds) for split, kinds in splits.items()} == {
        split: prepared.counts[split] for split in splits
    }
    assert prepared.counts["train"] + prepared.counts["dev"] == 60
    assert 1 <= prepared.counts["dev"] <= 15
    assert list(splits["test"]) == [record(n).get("_id") or record(n)["id"] for n in range(60, 65)]
    assert {path.name for path in prepared.read} == {"train.json", "x_dev_2.jsonl.gz"}
    assert prepared.skipped == {}


def test_dev_does_not_depend_on_which_other_questions_are_there(raw: Path) -> None:
    write_list(raw / "train.json", [hotpot(n) for n in range(60)])
    _, all_of_them = made(raw)
    write_list(raw / "train.json", [hotpot(n) for n in range(59, 20, -1)])
    _, some = made(raw)
    assert set(some.kinds("dev")) == set(all_of_them.kinds("dev")) & set(
        some.kinds("dev") | some.kinds("train")
    )


def as_columns(record: dict[str, Any]) -> dict[str, Any]:
    """HotpotQA's format on the hub."""
    changed = record | {
        "id": record["_id"],
        "context": {
            "title": [title for title, _ in record["context"]],
            "sentences": [sentences for _, sentences in record["context"]],
        },
        "supporting_facts": {
            "title": [title for title, _ in record["supporting_facts"]],
            "sent_id": [sentence for _, sentence in record["supporting_facts"]],
        },
    }
    del changed["_id"]
    return changed


def as_strings(record: dict[str, Any]) -> dict[str, Any]:
    """2WikiMultihopQA's format on the hub."""
    return record | {
        name: json.dumps(record[name]) for name in ("context", "supporting_facts", "evidences")
    }


def test_all_formats_of_a_question_give_one_question() -> None:
    official = read_question("hotpotqa", hotpot(7), {})
    assert read_question("hotpotqa", as_columns(hotpot(7)), {}) == official
    assert read_question("2wikimultihopqa", as_strings(two_wiki(7)), {}) == read_question(
        "2wikimultihopqa", two_wiki(7), {}
    )
    other = read_question("hotpotqa", ircot(7), {})
    assert other == official.model_copy(update={"kind": "unknown"})


def test_hops_are_in_the_order_in_which_one_leads_to_the_next() -> None:
    # The facts name the town first, but only the painter's paragraph names the town.
    wanted = ["Painter 7", "Hask (town)"]
    for dataset, record in (("hotpotqa", hotpot(7)), ("2wikimultihopqa", two_wiki(7))):
        assert titles(read_question(dataset, record, {})) == wanted
    question = read_question("musique", musique(7), {})
    assert titles(question) == wanted
    # What MuSiQue asks of the second paragraph has the first answer filled in.
    assert [hop.question for hop in question.hops] == [
        "Painter 7 knew",
        "How many people has Hask ?",
    ]
    assert question.kind == "2hop"


def test_a_comparison_follows_its_question() -> None:
    record = hotpot(1, question="Which is larger, the Bridge of Bolvik or the Corra Mill?")
    record["supporting_facts"] = [["Corra Mill", 0], ["Bridge of Bolvik", 0]]
    assert titles(read_question("hotpotqa", record, {})) == ["Bridge of Bolvik", "Corra Mill"]


def test_if_no_title_is_named_the_paragraph_that_leads_on_comes_first() -> None:
    record = hotpot(1, question="How many people has it?")
    assert titles(read_question("hotpotqa", record, {})) == ["Painter 1", "Bolvik (town)"]
    # Neither names the other: the one without the answer comes first.
    record["context"][3][1] = ["Painter 1 painted ships."]
    record["supporting_facts"] = [["Bolvik (town)", 1], ["Painter 1", 0]]
    assert titles(read_question("hotpotqa", record, {})) == ["Painter 1", "Bolvik (town)"]


def test_facts_may_name_sentences_that_do_not_exist_and_titles_may_be_there_twice() -> None:
    record = hotpot(7, supporting_facts=[["Hask (town)", 9], ["Painter 7", 0]])
    assert titles(read_question("hotpotqa", record, {})) == ["Painter 7", "Hask (town)"]
    record["context"].insert(0, ["Hask (town)", ["A short one."]])
    record["supporting_facts"][0][1] = 1
    question = read_question("hotpotqa", record, {})
    assert question.paragraphs[question.hops[1].paragraph].sentences[1] == "It has 207 people."


def test_aliases_of_2wiki_are_found_by_the_id_of_the_answer(raw: Path) -> None:
    write_zip(
        raw / "data.zip",
        {
            "data/train.json": json.dumps([two_wiki(n) for n in range(3)]),
            "data/dev.json": json.dumps([two_wiki(8), two_wiki(9, answer_id=None)]),
            "data/test.json": json.dumps([two_wiki(10, answer="", supporting_facts=[])]),
            "data/id_aliases.json": json.dumps(
                {"Q_id": "Q8", "aliases": ["two hundred eight"], "demonyms": ["eighters", ""]}
            ),
            "__MACOSX/data/dev.json": "\x00",
        },
    )
    prepared, store = made(raw, "2wikimultihopqa")
    assert store.question("q8").answers == ("208 people", "two hundred eight", "eighters")
    assert store.question("q9").answers == ("209 people",)
    assert prepared.counts["with aliases"] == 1
    assert list(store.kinds("test")) == ["q8", "q9"]
    assert store.files()["dev.json"] == {"test": 2}


def test_parquet_of_the_hub_is_read(raw: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [as_columns(hotpot(n)) for n in range(3)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), raw / "validation-00000-of-00001.parquet")
    prepared, store = made(raw)
    assert prepared.counts["test"] == 3
    assert store.question("q1") == read_question("hotpotqa", hotpot(1), {})
    (raw / "validation-00000-of-00001.parquet").write_bytes(b"PAR1, but not whole")
    with pytest.raises(TaskDataError, match=r"parquet: cannot be read"):
        made(raw)


UNUSABLE = {
    "no paragraphs": {"context": None},
    "no supporting facts": {"supporting_facts": []},
    "a supporting paragraph is not among its paragraphs": {"supporting_facts": [["Oz", 0]]},
    "no answer": {"answer": " "},
    "no question": {"question": ""},
    "no id": {"_id": ""},
    "not in a known format": {"context": [["a title alone"]]},
}


@pytest.mark.parametrize("reason", UNUSABLE)
def test_an_invalid_question_is_named_or_counted(raw: Path, reason: str) -> None:
    write_list(raw / "dev.json", [hotpot(1), hotpot(2, **UNUSABLE[reason]), hotpot(3)])
    with pytest.raises(TaskDataError, match=rf"dev\.json: record 2: {reason}; 1 questions"):
        made(raw)
    prepared, store = made(raw, skip_invalid=True)
    assert prepared.skipped == {reason: 1}
    assert list(store.kinds("test")) == ["q1", "q3"]


@pytest.mark.parametrize(
    ("reason", "record"),
    [
        ("no paragraphs", musique(1, paragraphs=[])),
        ("not answerable (of MuSiQue-Full)", musique(1, answerable=False)),
        ("no decomposition", musique(1, question_decomposition=None)),
        ("not in a known format", musique(1, paragraphs=[{"title": "?"}])),
        (
            "a supporting paragraph is not among its paragraphs",
            musique(1, question_decomposition=[{"question": "", "paragraph_support_idx": 99}]),
        ),
        ("an answer of several parts", ircot(1, answers_objects=[{"spans": ["a", "b"]}])),
        ("no supporting facts", ircot(1, contexts=ircot(1)["contexts"][:2])),
        ("not a JSON object", [1]),
        ("not a JSON object", None),
    ],
)
def test_an_invalid_question_says_why(reason: str, record: Any) -> None:
    with pytest.raises(UnusableError) as caught:
        read_question("musique", record, {})
    assert str(caught.value) == reason


def test_lines_that_are_not_json_are_named_or_counted(raw: Path) -> None:
    path = write_lines(raw / "dev.jsonl", [hotpot(1), hotpot(2)])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TaskDataError, match=r"dev\.jsonl:2: not a JSON object"):
        made(raw)
    assert made(raw, skip_invalid=True)[0].skipped == {"not a JSON object": 1}


def test_damaged_files_are_named(raw: Path) -> None:
    whole = json.dumps([hotpot(n) for n in range(50)]).encode()
    for name, data in (
        ("dev.json", whole[:-30]),
        ("dev.json.gz", gzip.compress(whole)[:-30]),
        ("dev.zip", b"PK, but not whole"),
    ):
        path = raw / name
        path.write_bytes(data)
        with pytest.raises(TaskDataError, match=rf"{name}: cannot be read \(incomplete file\?\):"):
            made(raw, skip_invalid=True)
        path.unlink()


def test_a_complete_question_is_taken_from_whichever_file_has_it(raw: Path) -> None:
    bare = hotpot(1)
    del bare["context"]
    write_list(raw / "a_dev_questions.json", [bare])
    write_list(raw / "b_dev.json", [hotpot(1)])
    prepared, store = made(raw)
    assert (prepared.skipped, list(store.kinds("test"))) == ({}, ["q1"])
    assert store.files() == {"b_dev.json": {"test": 1}}


def test_retrieved_paragraphs_give_way_to_given_ones(raw: Path) -> None:
    fullwiki = hotpot(1, context=hotpot(1)["context"][2:])
    lacking = hotpot(2, context=hotpot(2)["context"][:3])
    write_list(raw / "a_dev_fullwiki.json", [fullwiki, lacking])
    write_list(raw / "b_dev_distractor.json", [hotpot(1), hotpot(2)])
    _, store = made(raw)
    assert len(store.question("q1").paragraphs) == 4
    assert store.files() == {"b_dev_distractor.json": {"test": 2}}
    (raw / "b_dev_distractor.json").unlink()
    prepared, store = made(raw, skip_invalid=True)
    assert len(store.question("q1").paragraphs) == 2
    assert prepared.skipped == {"a supporting paragraph is not among its paragraphs": 1}


def test_no_question_is_in_training_and_evaluation(raw: Path) -> None:
    write_list(raw / "train.json", [hotpot(1), hotpot(2)])
    write_list(raw / "dev.json", [hotpot(2)])
    with pytest.raises(TaskDataError, match=r"record 2: also among the evaluation questions"):
        made(raw)
    prepared, store = made(raw, skip_invalid=True)
    assert list(store.kinds("test")) == ["q2"]
    assert prepared.skipped == {"also among the evaluation questions": 1}


def test_other_data_sets_and_other_files_in_the_folder_are_left_alone(raw: Path) -> None:
    write_list(raw / "dev.json", [hotpot(1)])
    write_list(raw / "musique" / "dev.json", [musique(1)])
    write_list(raw / "2wiki" / "dev.json", [ircot(5)])  # its fields do not show the data set
    write_list(raw / "sentences_dev.json", [{"text": "no question"}, 3])
    (raw / "package.json").write_text('{\n  "name": "of something else"\n}\n')
    (raw / "empty.jsonl").write_text("")
    prepared, _ = made(raw)
    assert prepared.counts["test"] == 1
    assert [path.name for path in prepared.read] == ["dev.json"]
    prepared, _ = made(raw, "2wikimultihopqa")
    assert [path.parent.name for path in prepared.read] == ["2wiki"]


def write_release(folder: Path, *names: str) -> None:
    """Folders of one data set each, in the format of IRCoT's release."""
    for number, name in enumerate(names):
        for place, split in enumerate(("train", "dev")):
            (folder / name).mkdir(parents=True, exist_ok=True)
            question = ircot(2 * number + place, question_id=f"{name} {split}")
            write_lines(folder / name / f"{split}.jsonl", [question])


def test_questions_that_may_belong_to_another_data_set_are_not_used(raw: Path) -> None:
    write_release(raw, "hotpotqa", "iirc", "musique")
    said = (
        r"iirc/dev\.jsonl: may belong to another data set; give a folder with hotpotqa only, "
        r"name the data set in the path \(hotpot, 2wiki, musique\), or skip the file with --skip"
    )
    with pytest.raises(TaskDataError, match=said):
        made(raw)
    prepared, store = made(raw, skip_invalid=True)
    assert list(store.kinds("test")) == ["hotpotqa dev"]
    assert prepared.skipped == {
        f"{raw}/iirc/{split}.jsonl: may belong to another data set": 1 for split in ("dev", "train")
    }
    assert [path.parent.name for path in prepared.read] == ["hotpotqa"] * 2


def test_questions_that_can_only_belong_to_this_data_set_are_used(raw: Path) -> None:
    write_release(raw, "mine")
    write_list(raw / "faq.json", [{"question": "Why?", "answer": "So."}])
    write_list(raw / "maths_train.json", [{"question": "What is 1 + 1?", "answer": "2"}])
    assert list(made(raw)[1].kinds("test")) == ["mine dev"]
    write_release(raw, "yours")
    with pytest.raises(TaskDataError, match=r"mine/dev\.jsonl: may belong to another data set"):
        made(raw)
    with pytest.raises(TaskDataError, match=r"left out: .*mine/dev\.jsonl: .*yours.* and 1 more$"):
        made(raw, skip_invalid=True)
    assert list(made(raw / "yours")[1].kinds("test")) == ["yours dev"]


def test_unreadable_files_of_something_else_do_no_harm(raw: Path) -> None:
    write_list(raw / "dev.json", [hotpot(1)])
    write_list(raw / "faq.json", [{"question": "Why?", "context": "Because."}])
    encrypted_zip(raw / "test.zip", {"test_task_0.json": "[]"}, b"mind2web")
    (raw / "backup.zip").write_bytes(b"PK, but not whole")
    prepared, _ = made(raw)
    assert prepared.counts["test"] == 1
    assert [reason.partition(":")[0] for reason in prepared.skipped] == [
        f"{raw}/backup.zip",
        f"{raw}/test.zip/test_task_0.json",
    ]
    with pytest.raises(TaskDataError, match=r"no questions of musique.*left out: .*/backup\.zip: "):
        made(raw, "musique")
    (raw / "backup.zip").rename(raw / "hotpot.zip")  # now it may be the data set in question
    with pytest.raises(TaskDataError, match=r"hotpot\.zip: cannot be read \(incomplete file\?\):"):
        made(raw, skip_invalid=True)


def test_a_folder_without_questions_says_what_was_expected(raw: Path) -> None:
    for dataset in RECORDS:
        with pytest.raises(TaskDataError, match=SOURCES[dataset][0].file):
            made(raw, dataset)
    with pytest.raises(TaskDataError, match="no such file or folder"):
        made(raw / "missing")
    write_list(raw / "questions.json", [hotpot(1)])
    with pytest.raises(TaskDataError, match="expected a file name with train or dev"):
        made(raw)


def test_a_damaged_store_is_named(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(b"SQLite format 3\x00, but not whole" * 50)
    with pytest.raises(TaskDataError, match=r"questions\.sqlite: damaged"):
        QuestionStore(path).kinds("train")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"not compressed", "incorrect header check"),
        (zlib.compress(b'{"id": "q1"}'), "kind: "),
        (zlib.compress(b"[" * 9), "not JSON"),
    ],
)
def test_a_damaged_question_is_one_line(raw: Path, body: bytes, said: str) -> None:
    write_list(raw / "dev.json", [hotpot(1)])
    _, store = made(raw)
    (path,) = raw.parent.glob(f"out*/{FILE}")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("update question set body = ?", (body,))
    for read in (lambda: store.question("q1"), lambda: store.paragraphs("test")):
        with pytest.raises(TaskDataError) as caught:
            read()
        assert str(caught.value).startswith(f"{path}: damaged, install the data again: ")
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_paragraphs_are_kept_as_they_are_but_for_spaces() -> None:
    record = hotpot(7)
    record["context"][0][1] = [" One  sentence.", "", " Another\none."]
    first = read_question("hotpotqa", record, {}).paragraphs[0]
    assert first.sentences == ("One sentence.", "Another one.")
    assert first.text == "One sentence. Another one."
    whole = read_question("musique", musique(7), {}).paragraphs[1]
    assert whole.sentences == tuple(passages(7)[0][1])


def test_titles_full_of_open_brackets_are_read_in_linear_time() -> None:
    """And disambiguations are still removed."""
    assert _without_brackets("(" * 200_000 + " ") == "(" * 200_000 + " "
    assert _without_brackets("a" + " (" * 100_000 + ")") == "a"
    for title, left in (
        ("A (b) (c) ", "A (b)"),
        ("(b)", "(b)"),
        ("A (b", "A (b"),
        ("A b)", "A b)"),
    ):
        assert _without_brackets(title) == left
