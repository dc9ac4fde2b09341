"""A shop of a dozen products in the original's file format, for tests of WebShop."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stepagent.tasks.webshop.data import prepare


def raw_product(asin: str, name: str, **fields: Any) -> dict[str, Any]:
    """A record of items_shuffle.json."""
    return {
        "asin": asin,
        "name": name,
        "full_description": f"All about {name}.",
        "small_description": ["Made with care", "Washable"],
        "pricing": "$12.50",
        "customization_options": "",
        "category": "fashion",
        "query": "scarves",
        "product_category": "Clothing › Women › Scarves",
        "images": ["https://example.org/1.jpg"],
    } | fields


def values(*texts: str) -> list[dict[str, Any]]:
    """Contents of an option."""
    return [{"value": text, "image": None} for text in texts]


GARDEN = {"category": "garden", "query": "lamps", "product_category": "Home › Lighting › Lamps"}
GROCERY = {"category": "grocery", "query": "teas", "product_category": "Grocery › Drinks › Teas"}

PRODUCTS = [
    raw_product(
        "B000000001", "Northwind Wool Scarf for Women, Soft Winter Shawl",
        customization_options={
            "Color": values("Red", "Brown2060", "Ivory/Gold"), "Size": values("Small", "Large"),
        },
    ),
    raw_product("B000000002", "Northwind Silk Scarf", pricing="$5.99 - $1,012.00"),
    raw_product("B000000003", "Summer Beach Sarong", pricing="", full_description="",
                customization_options={"Color": values("Turquoise"), "Material": None}),
    raw_product("B000000004", "Tall Oak Floor Lamp & Shade", pricing="$985.00", **GARDEN),
    raw_product("B000000005", "Clip-On Reading Lamp", small_description="Bends", **GARDEN,
                customization_options={"Style": values("USB", "Battery")}),
    raw_product("B000000006", "Lantern <b>with</b> Handle", pricing="$39.99", **GARDEN,
                small_description=["", "Bright\nlight", " "]),
    raw_product("B000000007", "Green Tea, 3.5 oz Bag", **GROCERY,
                customization_options={"Flavor Name": values("Mint", "Plain")}),
    raw_product("B000000008", "Black Tea Sampler", **GROCERY),
    raw_product("B000000009", "Assam Tea Tin", pricing="$8.00", **GROCERY),
    raw_product("B00000000A", "Chamomile Tea", **GROCERY),
    *(raw_product(f"B0000001{n:02}", f"Plain Scarf Number {n}") for n in range(12)),
]  # fmt: skip

ATTRIBUTES: dict[str, Any] = {
    "B000000001": {
        "attributes": ["hand wash", "wool blend"],
        "instruction": "Find me hand wash scarves with wool blend",
        "instruction_attributes": ["hand wash", "wool blend"],
    },
    "B000000004": {
        "attributes": ["solid wood"],
        "instruction": "Find me solid wood lamps",
        "instruction_attributes": ["solid wood"],
    },
    "B000000005": {
        "attributes": ["easy assemble"],
        "instruction": "Find me easy assemble lamps",
        "instruction_attributes": ["easy assemble"],
    },
    "B000000007": {
        "attributes": ["caffeine free"],
        "instruction": "Find me caffeine free teas",
        "instruction_attributes": ["caffeine free"],
    },
    "B000000008": {"attributes": ["gift set"]},
}

PEOPLE: dict[str, Any] = {
    "B000000001": [
        {
            "asin": "B000000001",
            "instruction": "i want a large red scarf i can hand wash.",
            "instruction_attributes": ["hand wash"],
            "instruction_options": ["red", "large"],
        },
        {"instruction": "a scarf", "instruction_attributes": [], "instruction_options": []},
    ],
    "B000000005": [
        {
            "instruction": "get me a lamp for books, easy to assemble",
            "instruction_attributes": ["easy assemble"],
            "instruction_options": ["usb"],
        }
    ],
    "B000000007": [
        {
            "instruction": "green tea without caffeine please",
            "instruction_attributes": ["caffeine free"],
            "instruction_options": [],
        }
    ],
    "B0ELSEWHERE": [],
}


def write_official(
    folder: Path,
    products: Any = None,
    attributes: Any = None,
    people: Any = None,
) -> None:
    """The three files, in a folder of their own below."""
    data = folder / "webshop" / "data"
    data.mkdir(parents=True)
    for name, content in (
        ("items_shuffle_1000", PRODUCTS if products is None else products),
        ("items_ins_v2_1000", ATTRIBUTES if attributes is None else attributes),
        ("items_human_ins", PEOPLE if people is None else people),
    ):
        (data / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


_KEPT = TemporaryDirectory(prefix="small-shop-")


@cache
def small_shop() -> Path:
    """The folder of the prepared shop; it goes with the process."""
    folder = Path(_KEPT.name)
    write_official(folder / "source")
    (folder / "out").mkdir()
    prepare(folder / "source", folder / "out", skip_invalid=False)
    return folder / "out"
