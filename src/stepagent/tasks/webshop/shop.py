"""The shop with everything in it: products, search, goals."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepagent.tasks.base import TaskDataError
from stepagent.tasks.data.files import read_json
from stepagent.tasks.webshop.catalogue import Catalogue
from stepagent.tasks.webshop.goals import Goals, Instruction
from stepagent.tasks.webshop.products import FACTS, Product

FOUND = 50
"""How many products a search gives at most."""


class Shop:
    """Products, search and goals of one folder; it is only read, by any number of threads."""

    def __init__(self, folder: Path, goals: str, seed: int) -> None:
        """Opens what `prepare` wrote; `goals` is the kind, "synthetic" or "human"."""
        self.facts: dict[str, Any] = read_json(folder / FACTS)
        if not self.facts[f"{goals} goals"]:
            raise TaskDataError(
                f"{folder}: no {goals} goals; items_human_ins.json was not there when the "
                "catalogue was prepared, or it is about other products"
            )
        self.products = Catalogue(folder)
        self.goals = Goals(self.products, read_instructions(folder / f"{goals}.jsonl.gz"), seed)

    def search(self, text: str) -> Sequence[Product]:
        """At most 50 products, best first."""
        return [self.products[number] for number in self.products.engine.search(text, FOUND)]


def read_instructions(path: Path) -> list[Instruction]:
    """Those that `prepare` wrote."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [Instruction(**json.loads(line)) for line in file]
