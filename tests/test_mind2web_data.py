"""Mind2Web's files and pages: what is read, and what is refused in one line."""

import gzip
import json
import os
import pickle
import re
import shutil
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mind2web_files import (
    PARTS,
    encrypted_zip,
    page,
    ranks_of,
    web_task,
    web_tasks,
    write_official,
    write_ranks,
)
from stepagent.tasks.base import TaskDataError
from stepagent.tasks.mind2web.data import SOURCES, prepare
from stepagent.tasks.mind2web.page import Element, Page, PageError, read_page, shown_words
from stepagent.tasks.mind2web.ranks import read_ranks
from stepagent.tasks.mind2web.single_steps import single_step
from stepagent.tasks.mind2web.steps import read_index, read_step
from stepagent.tasks.mind2web.task import Mind2Web


def prepared_steps(source: Path, out: Path, *, skip_invalid: bool = False) -> dict[str, Any]:
    """The steps that `prepare` writes for a folder, by item."""
    out.mkdir()
    prepare(source, out, skip_invalid=skip_invalid)
    index = read_index(out / "index.jsonl.gz")
    return {step.item: read_step(out, step) for step in index}


def test_official_files_become_steps_with_their_history_and_ranks(tmp_path: Path) -> None:
    write_official(tmp_path / "in")
    (tmp_path / "out").mkdir()
    done = prepare(tmp_path / "in", tmp_path / "out", skip_invalid=False)
    assert done.counts == {"train": 15, "test_task": 6, "test_website": 6, "test_domain": 6}
    assert done.skipped == {}
    names = {"scores_all_data.pkl", *(f"{part}_0.json" for part in PARTS)}
    assert {path.name for path in done.read} == names
    assert len(done.read) == len(names)

    index = {step.item: step for step in read_index(tmp_path / "out" / "index.jsonl.gz")}
    step = read_step(tmp_path / "out", index["train-8/1"])
    assert (step.operation, step.value) == ("TYPE", "red shoes size 9")
    assert step.targets == ["103", "115"]
    assert step.previous_actions == ["[button]  basket -> CLICK"]
    task = web_task("train-8")
    ranks = ranks_of(task)["train-8_train-8-1"]
    assert step.candidates == sorted(ranks, key=lambda element: ranks[element])
    assert [index[f"train-8/{n}"].target_rank for n in range(3)] == [0, 7, 23]
    assert step.steps_of_task == 3


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    write_official(tmp_path / "in")
    for out in ("first", "second"):
        prepared_steps(tmp_path / "in", tmp_path / out)
    first = {p.name: p.read_bytes() for p in (tmp_path / "first").rglob("*.gz")}
    assert first == {p.name: p.read_bytes() for p in (tmp_path / "second").rglob("*.gz")}
    assert len(first) == 1 + 5 + 2 * 3


def test_other_names_and_an_encrypted_archive_give_the_same_steps(tmp_path: Path) -> None:
    write_official(tmp_path / "plain")
    other = tmp_path / "other" / "deep"
    other.mkdir(parents=True)
    lines = "".join(json.dumps(task) + "\n" for task in web_tasks("train"))
    (other / "mind2web_train.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    shutil.copy(tmp_path / "plain" / "scores_all_data.pkl", other)
    tests = {f"{p}/{p}_0.json": json.dumps(web_tasks(p)) for p in PARTS if p != "train"}
    encrypted_zip(other / "test.zip", tests | {"../../escape.txt": "?"}, b"mind2web")
    expected = prepared_steps(tmp_path / "plain", tmp_path / "a")
    assert prepared_steps(tmp_path / "other", tmp_path / "b") == expected


def test_an_archive_with_another_password_is_refused(tmp_path: Path) -> None:
    encrypted_zip(tmp_path / "test.zip", {"test_task_0.json": "[]"}, b"other")
    (tmp_path / "out").mkdir()
    with pytest.raises(TaskDataError, match=r"test\.zip/test_task_0\.json: cannot be read"):
        prepare(tmp_path, tmp_path / "out", skip_invalid=False)


BROKEN: dict[str, tuple[Any, str]] = {
    "no task": ({"confirmed_task": ""}, "confirmed_task: expected non-empty text"),
    "no actions": ({"actions": []}, "actions: expected at least one"),
    "an id that is a path": ({"annotation_id": "../../x"}, "annotation_id: expected"),
    "an unknown operation": ("HOVER", "actions[0].operation.op: expected"),
    "a page that is no XML": ("<html><b></html>", "actions[0]: invalid XML: mismatched tag"),
    "a page without the candidate": (page(20), "is not on the page"),
    "a page that is a bomb": ("<!DOCTYPE html [<!ENTITY a 'aa'>]><html/>", "document type"),
    "another candidate": ("999", "scores_all_data.pkl has no rank of the candidate '999'"),
    "another action": ("other", "scores_all_data.pkl has no ranks of this step"),
}


def broken_task(fault: str) -> dict[str, Any]:
    """Three web tasks, the second with a fault."""
    task, change = web_task("train-3"), BROKEN[fault][0]
    first = task["actions"][0]
    if isinstance(change, dict):
        return task | change
    if "operation" in fault:
        first["operation"]["op"] = change
    elif "page" in fault:
        first["cleaned_html"] = change
    elif "candidate" in fault:
        first["neg_candidates"].append({"backend_node_id": change})
    else:
        first["action_uid"] = change
    return task


@pytest.mark.parametrize("fault", BROKEN)
def test_an_invalid_web_task_is_named_or_skipped_as_a_whole(tmp_path: Path, fault: str) -> None:
    good = [web_task("train-1"), web_task("train-2")]
    source = tmp_path / "in"
    source.mkdir()
    write_ranks(source / "scores_all_data.pkl", [*good, web_task("train-3")])
    (source / "train_0.json").write_text(json.dumps([good[0], broken_task(fault), good[1]]))
    (tmp_path / "out").mkdir()
    with pytest.raises(TaskDataError) as error:
        prepare(source, tmp_path / "out", skip_invalid=False)
    assert str(error.value).startswith(f"{source / 'train_0.json'}: record 2: ")
    assert BROKEN[fault][1] in str(error.value)
    assert "\n" not in str(error.value)

    (tmp_path / "lenient").mkdir()
    done = prepare(source, tmp_path / "lenient", skip_invalid=True)
    assert (done.counts, list(done.skipped.values())) == ({"train": 6}, [1])
    assert not [*tmp_path.parent.rglob("x.jsonl.gz")]


def test_the_same_web_task_twice_is_refused(tmp_path: Path) -> None:
    write_ranks(tmp_path / "scores_all_data.pkl", [web_task("train-1")])
    for n in range(2):
        (tmp_path / f"train_{n}.json").write_text(json.dumps([web_task("train-1")]))
    (tmp_path / "out").mkdir()
    with pytest.raises(TaskDataError, match=r"train_1.json: .*is already in .*train_0.json"):
        prepare(tmp_path, tmp_path / "out", skip_invalid=False)


def test_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "train.json").write_text('[{"question": "of another benchmark"}]')
    (tmp_path / "notes.txt").write_text("?")
    with pytest.raises(TaskDataError, match=r"no steps of Mind2Web; expected train_\*.json"):
        prepare(tmp_path, tmp_path / "out", skip_invalid=False)
    (tmp_path / "train_0.json").write_text(json.dumps([web_task("train-1")]))
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(TaskDataError, match=r"the ranks of the candidates are missing; .*scores"):
        prepare(tmp_path, tmp_path / "out", skip_invalid=True)


def test_sources_are_pinned_and_have_names_of_their_own() -> None:
    assert len({source.file for source in SOURCES}) == len(SOURCES) == 13
    assert all(re.search(r"/resolve/[0-9a-f]{40}/", source.url) for source in SOURCES)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_ranks_are_read_from_dicts_with_defaults_and_numpy_numbers(
    tmp_path: Path, protocol: int
) -> None:
    path = tmp_path / "scores.pkl"
    write_ranks(path, [web_task("train-1")], protocol)
    ranks = read_ranks(path)
    assert ranks.sorted("train-1_train-1-0", ["100", "107", "101"]) == ["107", "100", "101"]
    numbers = {"a": np.int64(3), "b": np.int32(1), "c": 2}
    path.write_bytes(pickle.dumps({"ranks": {"s": numbers}, "scores": {"s": np.float64(0.5)}}))
    assert read_ranks(path).sorted("s", ["a", "b", "c"]) == ["b", "c", "a"]
    with pytest.raises(ValueError, match="has no ranks of this step"):
        ranks.sorted("train-2_0", [])


class Evil:
    """Pickles as a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize(
    "payload",
    [
        Evil(os.system, "touch STARTED"),
        Evil(eval, "open('STARTED', 'w')"),
        Evil(getattr, {}, "keys"),
        {"ranks": {"s": Evil(os.mkdir, "STARTED")}},
        np.array([Evil(os.mkdir, "STARTED")], dtype=object),
        OrderedDict(a=1),
        defaultdict(list),
        Path("x"),
    ],
    ids=lambda payload: type(payload).__name__,
)
def test_a_pickle_that_asks_for_anything_else_is_refused_unrun(
    tmp_path: Path, payload: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scores.pkl").write_bytes(pickle.dumps(payload))
    with pytest.raises(TaskDataError, match="which is not plain data"):
        read_ranks(tmp_path / "scores.pkl")
    assert [path.name for path in tmp_path.iterdir()] == ["scores.pkl"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        pickle.dumps({"ranks": {}})[:-3],
        pickle.dumps([1]),
        pickle.dumps({"ranks": 1}),
        b"cbuiltins\ndict\n}b.",  # sets the state of the stand-in for a function
        b"cnumpy\ndtype\n(Vobject\ntR.",
        b"cnumpy.core.multiarray\nscalar\n(I1\nI2\ntR.",
    ],
)
def test_a_damaged_pickle_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "scores.pkl").write_bytes(data)
    with pytest.raises(TaskDataError, match=r"scores\.pkl: (cannot be read|expected a dict)"):
        read_ranks(tmp_path / "scores.pkl")


@given(st.binary(max_size=60))
def test_any_bytes_are_ranks_or_refused(tmp_path_factory: Any, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.pkl"
    path.write_bytes(data)
    with pytest.raises(TaskDataError):
        read_ranks(path)


@st.composite
def pages(draw: st.DrawFn) -> Page:
    """A tree of up to 60 elements with some texts."""
    elements = [Element("html", "e0", "")]
    for n in range(1, draw(st.integers(1, 60))):
        element = Element("div", f"e{n}", draw(st.sampled_from(["", "menu", "red"])))
        parent = elements[draw(st.integers(max(0, n - 8), n - 1))]
        parent.children.append(element)
        if draw(st.booleans()):
            parent.children.append(f"text {n}")
        elements.append(element)
    return Page(elements[0])


@given(pages(), st.data())
def test_cutting_a_page_twice_gives_the_same_as_cutting_it_once(page: Page, data: Any) -> None:
    many = data.draw(st.lists(st.sampled_from([*page.ids]), min_size=1, unique=True))
    few = data.draw(st.lists(st.sampled_from(many), min_size=1, unique=True))
    once = page.around(few)
    assert page.around(many).around(few).to_json() == once.to_json()
    assert set(few) <= set(once.ids) <= set(page.ids)
    assert Page.from_json(page.to_json()).to_json() == page.to_json()
    marks = {element_id: f"M{n}" for n, element_id in enumerate(few)}
    text, marked = once.texts(marks)
    assert set(marked) == set(few)
    assert all(f"#{mark}" in text for mark in marks.values())


@given(st.integers(0, len(page())))
def test_a_page_that_is_cut_anywhere_has_its_first_elements(end: int) -> None:
    whole, cut = page(), page()[:end]
    if end <= whole.index(">"):
        with pytest.raises(PageError, match="no element"):
            read_page(cut, is_cut=True)
        return
    found = [*read_page(cut, is_cut=True).ids]
    assert found == [*read_page(whole).ids][: len(found)]
    if end < len(whole):
        with pytest.raises(PageError, match="invalid XML"):
            read_page(cut)


def test_what_is_near_an_element_is_kept_and_the_rest_is_not() -> None:
    cut = read_page(page()).around(["109"])
    # Its shelf and its ancestors, and all of its siblings, which are within three.
    assert [*cut.ids] == ["1", "2", "12", "108", "109", "110", "111"]
    row = "".join(f'<b backend_node_id="{n}"/>' for n in range(10))
    cut = read_page(f'<p backend_node_id="p">{row}</p>').around(["5"])
    assert [*cut.ids] == ["p", "2", "3", "4", "5", "6", "7", "8"]


def test_elements_far_below_are_left_out() -> None:
    deep = "".join(f'<i backend_node_id="{n}">' for n in range(12)) + "</i>" * 12
    assert [*read_page(deep).around(["2"]).ids] == [str(n) for n in range(9)]
    wide = "".join(f'<b backend_node_id="{n}"/>' for n in range(80))
    assert len(read_page(f'<p backend_node_id="p">{wide}</p>').around(["p"]).ids) == 51


def test_a_page_is_written_without_boxes_around_one_child() -> None:
    xml = (
        '<html backend_node_id="1"><div backend_node_id="2" role="none"><div backend_node_id="3">'
        '<a backend_node_id="4" title="Home" name="home"><text backend_node_id="5">Go  home'
        "</text></a></div></div><o:p backend_node_id='6'><text>Fish &amp; chips</text></o:p></html>"
    )
    text, marked = read_page(xml).texts({"4": "B"})
    assert text == "(html (a #B home Go home) (o:p Fish & chips))"
    assert marked == {"4": "(a #B home Go home)"}


def test_attributes_become_short_words_in_a_fixed_order_without_repetition() -> None:
    attributes = {
        "class": "a b c d e f averyveryverylongname",
        "title": "Search",
        "name": "search",
        "value": "http://example.com",
        "role": "presentation",
        "href": "not shown",
        "type": "submit",
    }
    assert shown_words(attributes) == "submit search a b c d e"
    many = {name: f"{name} 1 2 3 4 5" for name in ("alt", "label", "title", "name", "value")}
    assert len(shown_words(many).split()) == 20


def test_deeply_nested_pages_are_refused() -> None:
    with pytest.raises(PageError, match="nested deeper than 256"):
        read_page("<a>" * 300, is_cut=True)


STEP: dict[str, Any] = {
    "instance_id": "t-1__2",
    "input": (
        "Predict.\n\nTask: Buy red shoes.\nWebsite: shop (Shopping / Clothes)\n\n"
        "Previous actions (already executed):\n  1. [link]  Shoes -> CLICK\n"
        "  2. [link]  Red -> CLICK\n\n"
        "Available candidate elements on the current page (bnid = backend_node_id):\n"
        '  1. <my-button bnid="30" class="buy" title="Buy it n...>\n'
        '  2. <a bnid="3" title="Home">\n  3. <div bnid="4">\n\n'
        "Current page (cleaned HTML, may be truncated):\n```html\n"
        '<html backend_node_id="1"><a backend_node_id="3" title="Home">'
        '<text backend_node_id="9">Ho\n... [HTML truncated; original length 190316] ...\n```\n\n'
        "Respond."
    ),
    "ground_truth": "{}",
    "metadata": {
        "benchmark": "mind2web",
        "annotation_id": "t-1",
        "action_idx": 2,
        "website": "shop",
        "domain": "Shopping",
        "op": "CLICK",
        "value": "",
        "target_bnids": ["30"],
        "candidate_bnids": ["30", "3", "4"],
    },
}


def test_a_step_file_adds_the_candidates_beyond_the_cut_in_a_neutral_order(
    tmp_path: Path,
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "mind2web_steps.json").write_text(json.dumps({"instances": [STEP]}))
    step = prepared_steps(tmp_path / "in", tmp_path / "out")["t-1/2"]
    assert step.task == "Buy red shoes."
    assert step.previous_actions == ["[link]  Shoes -> CLICK", "[link]  Red -> CLICK"]
    assert (step.part, step.is_ranked, step.steps_of_task) == ("train", False, None)
    found = Page.from_json(step.page)
    assert [*found.ids] == ["1", "3", "4", "30"]
    text, _ = found.texts({"30": "B", "4": "C"})
    assert text == "(html (a home Ho) (div #C) (my-button #B buy it n... buy))"
    # Without ranks, all candidates are used, whatever top_k is.
    assert step.considered(2) == ["30", "3", "4"]
    facts = Mind2Web(folder=tmp_path / "out").facts()
    assert facts["steps_without_ranks"] == {"train": 1, "dev": 0, "test": 0}


def test_a_step_file_is_not_used_beside_the_official_training_part(tmp_path: Path) -> None:
    write_official(tmp_path / "in")
    (tmp_path / "in" / "a_mind2web_steps.json").write_text(json.dumps({"instances": [STEP]}))
    assert "t-1/2" not in prepared_steps(tmp_path / "in", tmp_path / "out")


def test_an_invalid_step_is_named_or_skipped(tmp_path: Path) -> None:
    odd = STEP | {"input": "What next?"}
    (tmp_path / "mind2web.json").write_text(json.dumps({"instances": [STEP, odd]}))
    (tmp_path / "out").mkdir()
    with pytest.raises(TaskDataError, match=r"mind2web\.json: record 2: input: expected task"):
        prepare(tmp_path, tmp_path / "out", skip_invalid=False)
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    done = prepare(tmp_path, tmp_path / "out", skip_invalid=True)
    assert (done.counts, list(done.skipped.values())) == ({"train": 1}, [1])


@pytest.mark.parametrize("run", ["Task: ", "Website: ", "Previous actions", "Available", "x", "`"])
def test_a_prompt_is_read_in_linear_time(run: str) -> None:
    """Once took minutes for a few thousand characters that begin parts and never end them."""
    marks = (
        "\nTask: t\nWebsite: w\nPrevious actions:\n1\n\nAvailable candidate:\n2\n\nCurrent page:\n"
    )
    for text in (f"\n{run}" * 30_000, marks * 3_000, f"{marks}```html\n" + f"\n{run}" * 30_000):
        with pytest.raises(ValueError, match="expected task, previous actions, candidates"):
            single_step(STEP | {"input": text})


def test_long_words_and_names_are_read_in_linear_time(tmp_path: Path) -> None:
    words = STEP["input"].replace('class="buy"', "a" * 100_000)
    assert single_step(STEP | {"input": words})[0].candidates == ["30", "3", "4"]
    with zipfile.ZipFile(tmp_path / "test.zip", "w") as archive:
        archive.writestr("mind2web" * 8_000 + ".js", "{}")
    (tmp_path / "out").mkdir()
    with pytest.raises(TaskDataError, match="no steps of Mind2Web"):
        prepare(tmp_path, tmp_path / "out", skip_invalid=False)


def single(web_task: str, step: int) -> dict[str, Any]:
    """`STEP` as another step."""
    return STEP | {"metadata": STEP["metadata"] | {"annotation_id": web_task, "action_idx": step}}


def test_steps_of_one_web_task_may_be_in_several_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for file, steps in (("a", (0, 2)), ("b", (1,))):
        records = [single("t-1", step) for step in steps]
        text = json.dumps({"instances": records})
        (tmp_path / "in" / f"{file}_mind2web.json").write_text(text)
    # `prepared_steps` reads each step from its page.
    assert set(prepared_steps(tmp_path / "in", tmp_path / "out")) == {"t-1/0", "t-1/1", "t-1/2"}


def test_the_pages_of_a_web_task_are_not_replaced(tmp_path: Path) -> None:
    task = web_task("test_task-1")
    write_ranks(tmp_path / "scores_all_data.pkl", [task])
    (tmp_path / "test_task_0.json").write_text(json.dumps([task]))
    (tmp_path / "mind2web.json").write_text(json.dumps({"instances": [single("test_task-1", 7)]}))
    (tmp_path / "out").mkdir()
    with pytest.raises(TaskDataError, match="test_task-1: its steps are in files of two parts"):
        prepare(tmp_path, tmp_path / "out", skip_invalid=False)
