"""What to buy: goals made from instructions, in the original's order (`engine/goal.py`).

An instruction describes a wish for one product. People wrote 12,087 of them; each is one goal.
Synthetic instructions list attributes; every combination of the product's options is a goal of its
own. All goals of a kind are shuffled with the seed, 233 in the original, and then numbered.

The original draws price limits from the global random state before it sets a seed, so that they
differ between processes; here they depend on seed and product only.
"""

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from random import Random

from stepagent.tasks.webshop.products import Product

NO_LIMIT = 1_000_000.0
LIMITS = [10.0 * tens for tens in range(1, 100)]
"""Possible price limits, 10 to 990 dollars."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """A wish for a product, as stored on disk."""

    product: int
    """The product's number in the catalogue."""
    number: int
    """The instruction's number among those of the product, from 0."""
    text: str
    attributes: list[str]
    options: list[str] | None
    """Option values that a person asked for; None stands for every combination (synthetic)."""
    counts: list[int]
    """Number of values of each option, by sorted name; empty unless synthetic."""

    @property
    def num_goals(self) -> int:
        """Number of goals that the instruction gives."""
        return prod(self.counts)


@dataclass(frozen=True, slots=True)
class Goal:
    """What to buy; the reward compares a purchase with it."""

    product: Product
    text: str
    """The instruction that the agent reads."""
    attributes: list[str]
    options: list[str] | dict[str, str]
    """Values, or values by name for synthetic goals; the original's reward treats the two
    differently."""
    price_limit: float
    """In dollars."""

    @property
    def option_values(self) -> list[str]:
        """The values without their names."""
        return list(self.options.values()) if isinstance(self.options, dict) else self.options


class Goals:
    """All goals of a catalogue in their shuffled order; each is made on demand."""

    def __init__(
        self, products: Sequence[Product], instructions: Sequence[Instruction], seed: int
    ) -> None:
        """`instructions` are in the catalogue's order; `seed` shuffles the goals."""
        self._products = products
        self._instructions = instructions
        self._seed = seed
        self._ends = list(accumulate(instruction.num_goals for instruction in instructions))
        self._order = list(range(self._ends[-1] if self._ends else 0))
        Random(seed).shuffle(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Goal:
        place = self._order[index]
        number = bisect(self._ends, place)
        instruction = self._instructions[number]
        product = self._products[instruction.product]
        limit = price_limit(product, instruction.number, self._seed)
        below = "" if limit == NO_LIMIT else f", and price lower than {limit:.2f} dollars"
        if instruction.options is not None:
            text = instruction.text.strip(".") + below
            return Goal(product, text, instruction.attributes, instruction.options, limit)
        options = _combination(product, self._ends[number] - place - 1)
        wanted = ", and ".join(f"{name}: {value}" for name, value in options.items())
        text = instruction.text + (f" with {wanted}" if wanted else "") + below
        return Goal(product, text, instruction.attributes, options, limit)


def price_limit(product: Product, number: int, seed: int) -> float:
    """The larger of two draws from the next four multiples of ten above the price, in dollars."""
    price = product.price(seed)
    above = [limit for limit in LIMITS if limit > price][:4]
    if len(above) < 2:
        return NO_LIMIT
    return max(Random(f"{seed}/{product.asin}/{number}/limit").sample(above, 2))


def _combination(product: Product, from_last: int) -> dict[str, str]:
    """One combination of option values, by its index from the last one; names are sorted."""
    chosen = {}
    for name in sorted(product.options, reverse=True):
        values = product.options[name]
        from_last, back = divmod(from_last, len(values))
        chosen[name] = values[-1 - back]
    return dict(reversed(chosen.items()))
