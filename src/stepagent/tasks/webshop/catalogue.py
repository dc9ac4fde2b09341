"""The shop's products on disk, as JSON lines that are read one at a time, and their search index.

The files are memory-mapped, so that the catalogue of 1.18 million products opens as fast as that of
1,000, and all processes on a machine share the memory.
"""

import json
import mmap
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from stepagent.tasks.webshop.products import Product
from stepagent.tasks.webshop.search import SearchEngine, build_index

PRODUCTS, STARTS, INDEX = "products.jsonl", "products.npy", "index"

CACHE_SIZE = 4096
"""Products cached in memory, about 20 MB, since most are shown in many episodes."""


def write_catalogue(products: Iterable[Product], out: Path) -> int:
    """Writes products and search index into a folder; returns the number of products."""
    starts = [0]

    def texts() -> Iterable[str]:
        with (out / PRODUCTS).open("wb") as file:
            for product in products:
                line = json.dumps(product.record(), separators=(",", ":"))
                file.write(line.encode("ascii") + b"\n")
                starts.append(file.tell())
                yield product.index_text

    build_index(texts(), out / INDEX)
    np.save(out / STARTS, np.array(starts, dtype=np.int64))
    return len(starts) - 1


class Catalogue(Sequence[Product]):
    """Products by number; `engine` searches for numbers."""

    def __init__(self, folder: Path) -> None:
        """Opens what `write_catalogue` wrote."""
        with (folder / PRODUCTS).open("rb") as file:
            self._lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._starts = np.load(folder / STARTS, mmap_mode="r")
        self._product = lru_cache(maxsize=CACHE_SIZE)(self._read)
        self.engine = SearchEngine(folder / INDEX)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> Product:  # type: ignore[override]  # no slices
        return self._product(number)

    def _read(self, number: int) -> Product:
        return Product(**json.loads(self._lines[self._starts[number] : self._starts[number + 1]]))
