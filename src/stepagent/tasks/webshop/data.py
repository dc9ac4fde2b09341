"""Where WebShop's data comes from, and how the official files become the shop's catalogue.

The authors publish them on Google Drive. The URLs are of a copy on the Hugging Face hub; the
SHA-256 hashes are those of the authors' files, as stated by several projects.
"""

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any, TextIO, TypeVar

from pydantic import ValidationError

from stepagent.tasks.base import TaskDataError
from stepagent.tasks.data.json_files import read_json, stream_json_list
from stepagent.tasks.data.limited_reader import open_content
from stepagent.tasks.data.optional_packages import needs
from stepagent.tasks.data.sources import Prepared, Source
from stepagent.tasks.webshop.goals import Instruction
from stepagent.tasks.webshop.products import FACTS, WITHOUT_ATTRIBUTES, Product, RawProduct
from stepagent.trajectories import problem_of
from stepagent.types import NonEmpty, Record

_COPY = (
    "https://huggingface.co/datasets/YWZBrandon/webshop-data/resolve/"
    "ce990fff5aee388db2706f07820c578ab68e0453"
)

SOURCES = tuple(
    Source(url=f"{_COPY}/{file}", file=file, sha256=sha256)
    for file, sha256 in (
        (
            "items_shuffle_1000.json",
            "30a4765c3a327af72d9a9a95a6b2486d516f0fa1d3ecd83681901ce82a21b269",
        ),
        (
            "items_ins_v2_1000.json",
            "f88a36314a397b53b3d9c3fa5878e5f7b26d35019a51ec83fbedeca61a948f6f",
        ),
        (
            "items_human_ins.json",
            "cf78667548a71786e1d9049c24b802e48e1084ad4bb021cae56ce1f6d96954a3",
        ),
    )
)
"""The catalogue of 1,000 products; for the full one (5.5 GB) see `docs/tasks-webshop.md`."""

MAX_ASIN = 10
"""The original leaves out products with a longer id, with the id "nan", and repeated ones."""


COUNTS = (
    "synthetic goals", "human goals", "products without attributes", "left out as in the original"
)  # fmt: skip


class RawAttributes(Record, extra="ignore"):
    """A product's record in `items_ins_v2.json`."""

    attributes: list[str] | None = None
    instruction: NonEmpty | None = None
    instruction_attributes: list[str] | None = None


class RawInstruction(Record, extra="ignore"):
    """One of a product's records in `items_human_ins.json`."""

    instruction: NonEmpty
    instruction_attributes: list[str]
    instruction_options: list[str]


class BadRecord(ValueError):
    """A record is invalid; the message says what was expected."""


def prepare(source: Path, out: Path, *, skip_invalid: bool) -> Prepared:
    """Writes the catalogue of the files found below `source` into the empty folder `out`.

    Products come from one file `items_shuffle*.json`, attributes and synthetic instructions from
    `items_ins_v2*.json`, and human instructions from `items_human_ins*.json`, which may be missing.
    All may end in .gz. Attributes and the words of the index are held in memory, products are not.
    Raises `TaskDataError`.
    """
    with needs("webshop"):
        import ijson  # noqa: F401  # used later: a missing package is reported before reading

        from stepagent.tasks.webshop.catalogue import PRODUCTS, write_catalogue
    files = _Files.find(source)
    loader = _Loader(files, skip_invalid)
    with ExitStack() as stack:
        writers = {
            kind: stack.enter_context(gzip.open(out / f"{kind}.jsonl.gz", "wt", encoding="utf-8"))
            for kind in ("synthetic", "human")
        }
        num_products = write_catalogue(loader.products(writers), out)
    with (out / PRODUCTS).open("rb") as file:
        sha256 = file_digest(file, "sha256").hexdigest()
    counts = {"products": num_products, **loader.counts}
    (out / FACTS).write_text(json.dumps(counts | {"sha256": sha256}), encoding="utf-8")
    return Prepared(counts=counts, read=files.read, skipped=dict(loader.skipped))


@dataclass(frozen=True)
class _Files:
    """The official files that were found."""

    products: Path
    attributes: Path
    people: Path | None

    @property
    def read(self) -> tuple[Path, ...]:
        return (self.products, self.attributes, *([self.people] if self.people else []))

    @classmethod
    def find(cls, source: Path) -> "_Files":
        files = sorted(path for path in source.rglob("*.json*") if not path.is_dir())
        named = {
            stem: [p for p in files if re.fullmatch(rf"{stem}(_\d+)?\.json(\.gz)?", p.name)]
            for stem in ("items_shuffle", "items_ins_v2", "items_human_ins")
        }
        for stem, paths in named.items():
            if len(paths) > 1:
                raise TaskDataError(
                    f"{source}: {len(paths)} files of the kind {stem}.json ("
                    f"{', '.join(path.name for path in paths)}); expected those of one catalogue"
                )
        products, attributes, people = (next(iter(paths), None) for paths in named.values())
        if products is None or attributes is None:
            raise TaskDataError(
                f"{source}: no WebShop catalogue; expected items_shuffle.json and "
                "items_ins_v2.json (or ..._1000.json, also as .json.gz), and "
                "items_human_ins.json for goals written by people"
            )
        return cls(products, attributes, people)


class _Loader:
    """Reads products one by one, while it writes their instructions to other files."""

    def __init__(self, files: _Files, skip_invalid: bool) -> None:
        self.counts = dict.fromkeys(COUNTS, 0)
        self.skipped = Counter[str]()
        self._files = files
        self._skip_invalid = skip_invalid
        self._attributes = _mapping(files.attributes)
        self._people = _mapping(files.people) if files.people else {}

    def products(self, writers: Mapping[str, TextIO]) -> Iterator[Product]:
        """Yields all valid products; writes each instruction with the number of its product."""
        asins = set[str]()
        for place, record in _records(self._files.products):
            try:
                raw = _checked(record, RawProduct)
                if raw.asin == "nan" or len(raw.asin) > MAX_ASIN or raw.asin in asins:
                    self.counts["left out as in the original"] += 1
                    continue
                product, instructions = self._read(raw, number=len(asins))
            except ValueError as error:
                if not self._skip_invalid:
                    raise TaskDataError(f"{place}: {error}") from None
                self.skipped["product"] += 1
                continue
            asins.add(raw.asin)
            self.counts["products without attributes"] += product.attributes == WITHOUT_ATTRIBUTES
            for kind, instruction in instructions:
                self.counts[f"{kind} goals"] += instruction.num_goals
                writers[kind].write(json.dumps(asdict(instruction)) + "\n")
            yield product
        if not asins:
            raise TaskDataError(f"{self._files.products}: no valid product")

    def _read(self, raw: RawProduct, number: int) -> tuple[Product, list[tuple[str, Instruction]]]:
        asin = raw.asin
        named = f"{asin} in {self._files.attributes.name}"
        about = _checked(self._attributes.get(asin, {}), RawAttributes, named)
        product = raw.product(about.attributes)
        instructions = []
        if about.instruction is not None:
            if not about.instruction_attributes:
                raise BadRecord(f"{named}: instruction_attributes: expected at least one")
            counts = [len(product.options[name]) for name in sorted(product.options)]
            instruction = Instruction(
                number, 0, about.instruction, about.instruction_attributes, None, counts
            )
            instructions.append(("synthetic", instruction))
        wishes = self._people.get(asin, [])
        if not isinstance(wishes, list):
            raise BadRecord(f"{asin} in the human instructions: expected a list of them")
        for place, record in enumerate(wishes):
            wish = _checked(record, RawInstruction, f"{asin} in the human instructions")
            if wish.instruction_attributes:  # the original drops the others
                instruction = Instruction(
                    number, place, wish.instruction, wish.instruction_attributes,
                    wish.instruction_options, [],
                )  # fmt: skip
                instructions.append(("human", instruction))
        return product, instructions


def _mapping(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise TaskDataError(f"{path}: expected an object by asin, got {type(content).__name__}")
    return content


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields the values of a JSON list one at a time, since they may not fit into memory."""
    with open_content(path) as content:
        yield from stream_json_list(content)


R = TypeVar("R", bound=Record)


def _checked(record: object, record_type: type[R], where: str = "") -> R:
    try:
        return record_type.model_validate(record)
    except RecursionError:
        raise BadRecord(f"{where}: nested too deeply" if where else "nested too deeply") from None
    except ValidationError as error:
        problem = problem_of(error, record_type)
        raise BadRecord(f"{where}: {problem}" if where else problem) from None
