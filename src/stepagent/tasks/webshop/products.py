"""Products of the shop, read as in the original's loader (princeton-nlp/WebShop, `engine.py`)."""

import math
import re
from dataclasses import asdict, dataclass
from decimal import Decimal, InvalidOperation
from random import Random
from typing import Annotated, Any

from pydantic import BeforeValidator

from stepagent.console.printable import shown
from stepagent.types import Record

FACTS = "catalogue.json"
"""The file with the counts and the hash of an installed catalogue."""

PATH_SEPARATOR = "\u203a"
PRICE_IF_NONE = 100.0
WITHOUT_ATTRIBUTES = ["DUMMY_ATTR"]
"""The attributes that the original gives a product without known attributes."""


@dataclass(frozen=True, slots=True)
class Product:
    """One product; `asin` is its id at Amazon."""

    asin: str
    title: str
    description: str
    bullets: list[str]
    """The entries of the page's tab Features."""
    prices: list[float]
    """One price in dollars, or the lowest and the highest."""
    options: dict[str, list[str]]
    """Values by name, e.g. `{"color": ["red", "blue"]}`, in lower case."""
    attributes: list[str]
    """Attributes extracted by the benchmark's authors, e.g. "slim fit"; used by the reward only."""
    category: str
    """One of five departments, e.g. "garden"."""
    query: str
    """The search by which the product was crawled."""
    product_category: str
    """A path in Amazon's shop, such as Beauty, Hair Care, Shampoos, joined by `PATH_SEPARATOR`."""

    @property
    def price_tag(self) -> str:
        """The price as shown on pages."""
        return " to ".join(f"${price}" for price in self.prices)

    @property
    def index_text(self) -> str:
        """The text that the search engine indexes."""
        options = ", and ".join(f"{name}: {', '.join(v)}" for name, v in self.options.items())
        features = self.bullets[0] if self.bullets else ""
        return " ".join((self.title, self.description, features, options)).lower()

    def price(self, seed: int) -> float:
        """The price of a purchase in dollars; from a range, each seed draws one fixed price."""
        if len(self.prices) == 1:
            return self.prices[0]
        return Random(f"{seed}/{self.asin}/price").uniform(*self.prices)

    def record(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)


class RawOption(Record, extra="ignore"):
    """One value of an option."""

    value: str


def _dict_if_empty(value: object) -> object:
    return value or {}


class RawProduct(Record, extra="ignore"):
    """The fields of a record of `items_shuffle.json` that are used."""

    asin: str
    name: str
    full_description: str
    small_description: list[str] | str
    pricing: str | None = None
    customization_options: Annotated[
        dict[str, list[RawOption] | None], BeforeValidator(_dict_if_empty)
    ]
    category: str
    query: str
    product_category: str

    def product(self, attributes: list[str] | None) -> Product:
        """The product; raises ValueError if its price is invalid."""
        bullets = self.small_description
        return Product(
            asin=self.asin,
            title=self.name,
            description=self.full_description,
            bullets=bullets if isinstance(bullets, list) else [bullets],
            prices=_prices(self.pricing),
            options={
                name.lower(): [
                    option.value.strip().replace("/", " | ").lower() for option in values
                ]
                for name, values in self.customization_options.items()
                if values is not None
            },
            attributes=WITHOUT_ATTRIBUTES if attributes is None else attributes,
            category=self.category,
            query=self.query.lower().strip(),
            product_category=self.product_category,
        )


def _prices(pricing: str | None) -> list[float]:
    """The price or prices, at most two, of a text such as "$1,099.00" or "$5.99 - $12.50"."""
    if not pricing:
        return [PRICE_IF_NONE]
    try:
        prices = [float(Decimal(re.sub(r"[^\d.]", "", part))) for part in pricing.split("$")[1:]]
    except InvalidOperation:
        prices = []
    if not prices or not all(map(math.isfinite, prices)):
        raise ValueError(f"pricing: expected dollars like '$5.99 - $12.50', got {shown(pricing)}")
    return prices[:2]
