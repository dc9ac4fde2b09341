"""Products of the shop, as the original's loader sees them (princeton-nlp/WebShop, `engine.py`)."""

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
"""The file in which `prepare` says what it counted and hashed."""

PATH_SEPARATOR = "\u203a"
PRICE_IF_NONE = 100.0
WITHOUT_ATTRIBUTES = ["DUMMY_ATTR"]
"""What the original gives a product that no attributes are known of."""


@dataclass(frozen=True, slots=True)
class Product:
    """One product; `asin` is its id, as in Amazon's own shop."""

    asin: str
    title: str
    description: str
    bullets: list[str]
    """What the page calls features."""
    prices: list[float]
    """One price in dollars, or the lowest and the highest."""
    options: dict[str, list[str]]
    """Values by name, e.g. `{"color": ["red", "blue"]}`, lower case."""
    attributes: list[str]
    """What the benchmark's authors extracted, e.g. "slim fit"; seen by the reward alone."""
    category: str
    """One of five departments, e.g. "garden"."""
    query: str
    """The search that the product was crawled with."""
    product_category: str
    """A path in Amazon's shop, such as Beauty, Hair Care, Shampoos, between `PATH_SEPARATOR`."""

    @property
    def price_tag(self) -> str:
        """The price as pages show it."""
        return " to ".join(f"${price}" for price in self.prices)

    @property
    def index_text(self) -> str:
        """What the search engine knows of it."""
        options = ", and ".join(f"{name}: {', '.join(v)}" for name, v in self.options.items())
        features = self.bullets[0] if self.bullets else ""
        return " ".join((self.title, self.description, features, options)).lower()

    def price(self, seed: int) -> float:
        """What a purchase costs; where the tag has a range it is drawn, for each seed once."""
        if len(self.prices) == 1:
            return self.prices[0]
        return Random(f"{seed}/{self.asin}/price").uniform(*self.prices)

    def record(self) -> dict[str, Any]:
        """Its fields as JSON."""
        return asdict(self)


class RawOption(Record, extra="ignore"):
    """One value of an option."""

    value: str


def _dict_if_empty(value: object) -> object:
    return value or {}


class RawProduct(Record, extra="ignore"):
    """A record of `items_shuffle.json`, as far as it is used."""

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
        """The product; raises ValueError if it has a price that is none."""
        bullets = self.small_description
        return Product(
            asin=self.asin,
            title=self.name,
            description=self.full_description,
            bullets=bullets if isinstance(bullets, list) else [bullets],
            prices=_prices(self.pricing),
            options={
                name.lower(): [option.value.strip().replace("/", " | ").lower() for option in found]
                for name, found in self.customization_options.items()
                if found is not None
            },
            attributes=WITHOUT_ATTRIBUTES if attributes is None else attributes,
            category=self.category,
            query=self.query.lower().strip(),
            product_category=self.product_category,
        )


def _prices(pricing: str | None) -> list[float]:
    """Of "$1,099.00" or "$5.99 - $12.50"; at most two."""
    if not pricing:
        return [PRICE_IF_NONE]
    try:
        found = [float(Decimal(re.sub(r"[^\d.]", "", part))) for part in pricing.split("$")[1:]]
    except InvalidOperation:
        found = []
    if not found or not all(map(math.isfinite, found)):
        raise ValueError(f"pricing: expected dollars like '$5.99 - $12.50', got {shown(pricing)}")
    return found[:2]
