"""How the official files of WebShop become a shop, and the errors for damaged ones."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from small_shop import ATTRIBUTES, PEOPLE, PRODUCTS, raw_product, values, write_official
from stepagent.tasks.base import TaskDataError
from stepagent.tasks.data.sources import Prepared
from stepagent.tasks.webshop.catalogue import Catalogue
from stepagent.tasks.webshop.data import SOURCES, prepare
from stepagent.tasks.webshop.products import Product
from stepagent.tasks.webshop.task import WebShop, WebShopConfig


def prepared(folder: Path, skip_invalid: bool = False, **files: Any) -> tuple[Prepared, Path]:
    """The shop that `prepare` makes from the three files."""
    write_official(folder / "source", **files)
    out = folder / "out"
    out.mkdir()
    return prepare(folder / "source", out, skip_invalid=skip_invalid), out


def one(folder: Path, **fields: Any) -> Product:
    """The product of a record."""
    _, out = prepared(folder, products=[raw_product("B1", "A Scarf") | fields], attributes={})
    return Catalogue(out)[0]


def test_the_official_files_become_a_shop(tmp_path: Path) -> None:
    made, out = prepared(tmp_path)
    assert made.counts == {
        "products": len(PRODUCTS), "synthetic goals": 11, "human goals": 3,
        "products without attributes": 17, "left out as in the original": 0,
    }  # fmt: skip
    assert made.skipped == {}
    assert [path.name for path in made.read] == [
        "items_shuffle_1000.json", "items_ins_v2_1000.json", "items_human_ins.json"
    ]  # fmt: skip
    assert [product.asin for product in Catalogue(out)] == [raw["asin"] for raw in PRODUCTS]


def test_the_same_files_make_the_same_shop(tmp_path: Path) -> None:
    digests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        _, out = prepared(tmp_path / name)
        digests.append((out / "catalogue.json").read_text())
    assert digests[0] == digests[1]


def test_compressed_files_and_the_names_of_the_full_catalogue_are_read(tmp_path: Path) -> None:
    write_official(tmp_path / "source")
    data = tmp_path / "source" / "webshop" / "data"
    for path in list(data.iterdir()):
        name = path.name.replace("_1000", "")
        (data / f"{name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    (tmp_path / "out").mkdir()
    made = prepare(tmp_path / "source", tmp_path / "out", skip_invalid=False)
    assert made.counts["products"] == len(PRODUCTS)


def test_fields_of_a_product(tmp_path: Path) -> None:
    found = one(
        tmp_path, pricing="$1,099.00 to $2,000", query=" Wool Scarves ",
        customization_options={"Color": values(" Red/Blue "), "Size": None, "Fit Type": []},
    )  # fmt: skip
    assert found.prices == [1099.0, 2000.0]
    assert found.price_tag == "$1099.0 to $2000.0"
    assert found.options == {"color": ["red | blue"], "fit type": []}
    assert found.query == "wool scarves"
    assert found.attributes == ["DUMMY_ATTR"]
    assert found.index_text == (
        "a scarf all about a scarf. made with care color: red | blue, and fit type: "
    )


def test_a_product_with_an_option_without_values_makes_no_goals(tmp_path: Path) -> None:
    product = raw_product("B1", "A Scarf", customization_options={"Size": []})
    wanted = {"instruction": "Find me one", "instruction_attributes": ["soft"]}
    made, _ = prepared(tmp_path, products=[product], attributes={"B1": wanted}, people={})
    assert made.counts["synthetic goals"] == 0


def test_products_that_the_original_leaves_out(tmp_path: Path) -> None:
    products = [raw_product(a, "A Scarf") for a in ("B1", "nan", "B1", "B2345678901", "B2")]
    made, out = prepared(tmp_path, products=products, attributes={})
    assert made.counts["left out as in the original"] == 3
    assert [product.asin for product in Catalogue(out)] == ["B1", "B2"]


def broken(**fields: Any) -> list[dict[str, Any]]:
    """Products of which the second is not valid."""
    return [PRODUCTS[0], raw_product("BAD", "Bad") | fields, *PRODUCTS[1:]]


BAD_FILES: list[tuple[dict[str, Any], str]] = [
    ({"products": broken(name=None)}, r"items_shuffle_1000.json: record 2: name: .*"),
    ({"products": broken(pricing="free")}, r"record 2: pricing: expected dollars .* got 'free'"),
    ({"products": broken(pricing="$1.2.3")}, r"record 2: pricing: expected dollars"),
    ({"products": broken(customization_options={"Color": ["red"]})}, "record 2: customization_opt"),
    ({"products": [PRODUCTS[0], "text"]}, "record 2: "),
    (
        {"attributes": ATTRIBUTES | {"B000000001": {"instruction": "Find me"}}},
        r"record 1: B000000001 in items_ins_v2_1000.json: instruction_attributes: expected at",
    ),
    (
        {"attributes": ATTRIBUTES | {"B000000001": {"attributes": "soft"}}},
        "record 1: B000000001 in items_ins_v2_1000.json: attributes",
    ),
    (
        {"people": PEOPLE | {"B000000001": [{"instruction": "a"}]}},
        "record 1: B000000001 in the human instructions: instruction_attributes",
    ),
    (
        {"people": PEOPLE | {"B000000001": 3}},
        "record 1: B000000001 in the human instructions: .* a list",
    ),
    (
        {"attributes": ATTRIBUTES | {"B000000001": {"instruction": " "}}},
        "record 1: B000000001 in items_ins_v2_1000.json: instruction",
    ),
]


@pytest.mark.parametrize(("files", "message"), BAD_FILES)
def test_an_invalid_record_is_named_or_skipped(
    tmp_path: Path, files: dict[str, Any], message: str
) -> None:
    for name in ("strict", "lenient"):
        (tmp_path / name).mkdir()
    with pytest.raises(TaskDataError, match=message) as caught:
        prepared(tmp_path / "strict", **files)
    assert "\n" not in str(caught.value)
    made, out = prepared(tmp_path / "lenient", skip_invalid=True, **files)
    assert made.skipped == {"product": 1}
    assert made.counts["products"] == len(files.get("products", PRODUCTS)) - 1
    task = WebShop(folder=out)
    goals = [task.shop.goals[number] for number in range(len(task.shop.goals))]
    for goal in goals:  # the numbers of products are still right
        assert goal.attributes == goal.product.attributes


def cut(data: Path) -> None:
    text = (data / "items_shuffle_1000.json").read_text()
    (data / "items_shuffle_1000.json").write_text(text[: len(text) // 2])


def no_list(data: Path) -> None:
    (data / "items_shuffle_1000.json").write_text(json.dumps({"B1": PRODUCTS[0]}))


def cut_gz(data: Path) -> None:
    path = data / "items_shuffle_1000.json"
    path.with_suffix(".json.gz").write_bytes(gzip.compress(path.read_bytes())[:200])
    path.unlink()


def list_of_attributes(data: Path) -> None:
    (data / "items_ins_v2_1000.json").write_text("[]")


def another_catalogue(data: Path) -> None:
    (data / "items_shuffle.json").write_text("[]")


def no_attributes(data: Path) -> None:
    (data / "items_ins_v2_1000.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "items_shuffle_1000.json: cannot be read (incomplete file?):"),
        (cut_gz, "items_shuffle_1000.json.gz: cannot be read (incomplete file?):"),
        (no_list, "items_shuffle_1000.json: no valid product"),
        (list_of_attributes, "items_ins_v2_1000.json: expected an object by asin, got list"),
        (
            another_catalogue,
            "2 files of the kind items_shuffle.json (items_shuffle.json, items_shu",
        ),
        (no_attributes, "no WebShop catalogue; expected items_shuffle.json and items_ins"),
    ],
)
def test_unusable_files_are_named(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    write_official(tmp_path)
    damage(tmp_path / "webshop" / "data")
    (tmp_path / "out").mkdir()
    with pytest.raises(TaskDataError, match=re.escape(message)) as caught:
        prepare(tmp_path, tmp_path / "out", skip_invalid=True)
    assert "\n" not in str(caught.value)


def test_without_human_instructions_there_are_only_synthetic_goals(tmp_path: Path) -> None:
    write_official(tmp_path)
    (tmp_path / "webshop" / "data" / "items_human_ins.json").unlink()
    out = tmp_path / "out"
    out.mkdir()
    assert prepare(tmp_path, out, skip_invalid=False).counts["human goals"] == 0
    assert len(WebShop(folder=out).items("test")) == 3
    with pytest.raises(TaskDataError, match="no human goals; items_human_ins"):
        WebShop(WebShopConfig(goals="human"), out).items("test")


def test_sources_are_pinned() -> None:
    for source in SOURCES:
        assert source.url.startswith("https://")
        assert source.url.endswith(source.file)
        assert "/main/" not in source.url
        assert source.sha256 is not None
        assert re.fullmatch(r"[0-9a-f]{64}", source.sha256)
