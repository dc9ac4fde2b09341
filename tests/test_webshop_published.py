"""WebShop on the benchmark's own 1,000 products, compared with recorded human sessions.

The files are looked for in ../shared/data, or in the folder that STEPAGENT_DATA names.
"""

import gzip
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from stepagent.formats.records import FormatError
from stepagent.formats.webshop import read_webshop
from stepagent.tasks.webshop.data import prepare
from stepagent.tasks.webshop.expert import plan
from stepagent.tasks.webshop.goals import Goal
from stepagent.tasks.webshop.nouns import nouns_by_rules
from stepagent.tasks.webshop.pages import PAGE_SIZE, Page
from stepagent.tasks.webshop.products import Product
from stepagent.tasks.webshop.reward import reward
from stepagent.tasks.webshop.task import WebShop, WebShopConfig

DATA = Path(os.environ.get("STEPAGENT_DATA") or Path(__file__).parents[2] / "shared" / "data")
DOCUMENTS = DATA / "webshop" / "documents_1k.jsonl.gz"
SESSIONS = DATA / "expert_trajectories" / "webshop_human_sessions.jsonl.gz"
published = pytest.mark.skipif(not DOCUMENTS.exists(), reason=f"no published {DOCUMENTS}")
recorded = pytest.mark.skipif(not SESSIONS.exists(), reason=f"no published {SESSIONS}")


def records(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop made of the published files."""
    out = tmp_path_factory.mktemp("webshop")
    made = prepare(DATA / "webshop", out, skip_invalid=False)
    assert made.counts == {
        "products": 1000, "synthetic goals": 6910, "human goals": 13,
        "products without attributes": 0, "left out as in the original": 0,
    }  # fmt: skip
    return out


@pytest.fixture
def shop(folder: Path) -> WebShop:
    return WebShop(folder=folder)


@published
def test_products_and_index_texts_are_the_originals(shop: WebShop) -> None:
    documents = records(DOCUMENTS)
    assert len(shop.shop.products) == len(documents) == 1000
    for product, document in zip(shop.shop.products, documents, strict=True):
        original = document["product"]
        assert product.index_text == document["contents"]
        assert product.asin == document["id"] == original["asin"]
        assert product.title == original["Title"] == original["name"]
        assert product.description == original["Description"]
        assert product.bullets == original["BulletPoints"]
        assert product.price_tag == original["Price"]
        assert product.prices == original["pricing"]
        assert product.options == original["options"]
        assert list(product.options) == list(original["options"])
        assert product.attributes == original["Attributes"]
        for name in ("category", "query", "product_category"):
            assert getattr(product, name) == original[name]


@published
def test_the_goals_that_no_purchase_can_fulfil_are_as_many_as_others_counted(
    shop: WebShop,
) -> None:
    # 458 of the 6,725 goals with options, by the original's own functions; see the docs.
    num_with_options = num_below = 0
    for number in range(len(shop.shop.goals)):
        goal = shop.shop.goals[number]
        assert isinstance(goal.options, dict)
        num_with_options += bool(goal.options)
        price = goal.product.price(233)
        best = reward(goal.product, price, goal.options, goal, lambda title: (title,))
        num_below += best.total < 1
        assert best.total == 1 or best.parts["r_option"] < 1
    assert (num_with_options, num_below) == (6725, 458)


@published
@pytest.mark.parametrize("goals", ["synthetic", "human"])
def test_the_shopper_earns_nine_tenths(folder: Path, goals: Any) -> None:
    task = WebShop(WebShopConfig(goals=goals), folder)
    env, rewards = task.make_env(), []
    for item in task.items("test")[:100]:
        env.reset(options={"item": item})
        for action in plan(task.goal(item), task.shop.search):
            info = env.step(action)[4]
        rewards.append(info["details"]["reward"])
    assert fmean(rewards) >= 0.9


def sessions() -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Recorded sessions with the actions that lead from page to page."""
    for session in records(SESSIONS):
        try:
            trajectory = read_webshop(session, session["session"], "webshop")
        except FormatError:
            continue  # the browser's own back button
        yield session, [step.action for step in trajectory.steps]


def products_of(session: dict[str, Any]) -> dict[str, Product]:
    """All products of a session, with what its pages show of them."""
    goal = session["steps"][0]["goal"]
    asins, options = set(), defaultdict[str, dict[str, list[str]]](dict)
    prices: dict[str, float] = {}
    for page in session["steps"]:
        content = page.get("content", {})
        asins |= set(content.get("search_result_asins", []))
        if asin := content.get("asin"):
            asins.add(asin)
            for name, value in content.get("options", {}).items():
                options[asin].setdefault(name, []).append(value)
            prices[asin] = content.get("price", 10.0)
    return {
        asin: Product(
            asin=asin,
            title=goal["name"] if asin == goal["asin"] else f"Product {asin}",
            description="", bullets=[], prices=[prices.get(asin, 10.0)], options=options[asin],
            attributes=goal["attributes"] if asin == goal["asin"] else [],
            category=goal["category"], query=goal["query"],
            product_category=goal["product_category"],
        )
        for asin in asins
    }  # fmt: skip


@recorded
def test_recorded_clicks_lead_through_the_same_pages() -> None:
    num_sessions = num_pages = 0
    for session, actions in sessions():
        products = products_of(session)
        found: dict[str, list[Product]] = {}
        filler = Product("NONE", "", "", [], [1.0], {}, [], "", "", "")
        for page in session["steps"]:
            if page["page"] == "search_results":
                content = page["content"]
                listed = found.setdefault(" ".join(content["keywords"]).lower(), [filler] * 50)
                for place, asin in enumerate(content["search_result_asins"]):
                    listed[(content["page"] - 1) * PAGE_SIZE + place] = products[asin]
        pages = [
            page
            for page, before in zip(session["steps"], [None, *session["steps"]], strict=False)
            if before is None or page["url"] != before["url"]
        ]
        assert len(pages) == len(actions) + 1
        here = Page()
        for page, action in zip(pages, [None, *actions], strict=True):
            here = here if action is None else here.after(action, found.__getitem__)
            check(here, page)
            num_pages += 1
        num_sessions += 1
    assert (num_sessions, num_pages) == (45, 396)


def check(here: Page, page: dict[str, Any]) -> None:
    """Whether our page is the logged one and shows what was logged."""
    kinds = {
        "index": "search", "search_results": "results", "item_page": "item",
        "item_sub_page": "tab", "done": "done",
    }  # fmt: skip
    content = page.get("content", {})
    assert here.kind == kinds[page["page"]]
    if here.kind == "search":
        assert here.text("i") == "WebShop [SEP] Instruction: [SEP] i [SEP] Search"
    elif here.kind == "results":
        pieces = here.text("i").split(" [SEP] ")
        assert pieces[3] == f"Page {content['page']} (Total results: 50)"
        assert [p for p in pieces if p in content["search_result_asins"]] == (
            content["search_result_asins"]
        )
    else:
        assert here.opened.asin == content["asin"]
        assert here.options == content["options"]
        assert (here.kind == "done") == (f"[SEP] {content['asin']} [SEP] options" in (
            here.done_text(0) if here.kind == "done" else here.text("i")
        ))  # fmt: skip


@recorded
def test_recorded_rewards_are_ours() -> None:
    num_equal = num_options = 0
    for session in records(SESSIONS):
        last = session["steps"][-1]
        wanted, content, info = last["goal"], last["content"], last.get("reward_info")
        if last["page"] != "done" or info is None:
            continue
        products = products_of(session)
        product = products[content["asin"]]
        # Of other products the log has neither title nor attributes, only options and price.
        goal = Goal(
            products.get(wanted["asin"], product), wanted["instruction_text"],
            wanted["attributes"], wanted["goal_options"], wanted["price_upper"],
        )  # fmt: skip
        ours = reward(product, content["price"], content["options"], goal, nouns_by_rules)
        assert ours.parts["r_price"] == info["r_price"]
        if goal.options:
            assert ours.parts["r_option"] == pytest.approx(info["r_option"])
            num_options += 1
        if content["asin"] == wanted["asin"]:
            assert ours.total == pytest.approx(last["reward"])
            num_equal += 1
    assert (num_equal, num_options) == (7, 37)
