"""The opened shop: products, search and goals."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepagent.tasks.base import TaskDataError
from stepagent.tasks.data.json_files import read_json
from stepagent.tasks.webshop.catalogue import Catalogue
from stepagent.tasks.webshop.goals import Goals, Instruction
from stepagent.tasks.webshop.products import FACTS, Product

MAX_RESULTS = 50
"""Most products that a search returns."""


class Shop:
    """Products, search and goals of one folder; read-only, so any number of threads may use it."""

    def __init__(self, folder: Path, goals: str, seed: int) -> None:
        """Opens what `prepare` wrote; `goals` is "synthetic" or "human".

        Raises `TaskDataError` if the catalogue has no goals of this kind.
        """
        self.facts: dict[str, Any] = read_json(folder / FACTS)
        if not self.facts[f"{goals} goals"]:
            raise TaskDataError(
                f"{folder}: no {goals} goals; items_human_ins.json was missing when the data was "
                "installed, or is about other products"
            )
        self.products = Catalogue(folder)
        self.goals = Goals(self.products, read_instructions(folder / f"{goals}.jsonl.gz"), seed)

    def search(self, text: str) -> Sequence[Product]:
        """At most `MAX_RESULTS` products that match the text, best first."""
        return [self.products[number] for number in self.products.engine.search(text, MAX_RESULTS)]


def read_instructions(path: Path) -> list[Instruction]:
    """Reads the instructions that `prepare` wrote."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [Instruction(**json.loads(line)) for line in file]
