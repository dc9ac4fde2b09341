"""Reads the ranks of elements in Mind2Web's `scores_all_data.pkl` without executing its code.

The file is a pickle, and a pickle may call any function by name. Here only the names in `_ALLOWED`
are resolved: empty dicts, and numbers as numpy pickles them, both built by this module. Whatever
else a pickle holds is plain data. The file has `scores` and `ranks`, each by
`<annotation id>_<action uid>` and then by element; only the ranks are used.
"""

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from stepagent.tasks.base import TaskDataError
from stepagent.tasks.data.limited_reader import open_regular

_FORMATS = {"f2": "e", "f4": "f", "f8": "d", "i2": "h", "i4": "i", "i8": "q"}


class Ranks:
    """Ranks of elements, from 0 for the best, by step."""

    def __init__(self, by_step: Mapping[object, object], origin: str) -> None:
        """`by_step` has keys `<annotation id>_<action uid>`; messages name the file `origin`."""
        self._by_step = by_step
        self._origin = origin

    def sorted(self, step: str, elements: list[str]) -> list[str]:
        """The elements, best rank first; raises ValueError if one has no rank."""
        ranks = self._by_step.get(step)
        if not isinstance(ranks, Mapping):
            raise ValueError(f"{self._origin} has no ranks of this step")
        if missing := [e for e in elements if not isinstance(ranks.get(e), int)]:
            raise ValueError(f"{self._origin} has no rank of the candidate {missing[0]!r}")
        return sorted(elements, key=ranks.__getitem__)


def read_ranks(path: Path) -> Ranks:
    """Reads `scores_all_data.pkl`, which takes gigabytes of memory; raises `TaskDataError`."""
    try:
        with open_regular(path) as file:
            data = _PlainUnpickler(file).load()
    except TaskDataError:
        raise
    except Exception as error:  # a damaged pickle can raise almost anything
        raise TaskDataError(
            f"{path}: cannot be read as ranks (incomplete file?): {error}"
        ) from None
    by_step = data.get("ranks") if isinstance(data, dict) else None
    if not isinstance(by_step, dict):
        raise TaskDataError(f"{path}: expected a dict with `ranks`, as in scores_all_data.pkl")
    return Ranks(by_step, path.name)


class _StandIn:
    """Replaces what a pickle names; it has no state, and none can be set on it."""

    __slots__ = ()

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError("it sets the state of a function")


class _EmptyDict(_StandIn):
    """`dict` and `defaultdict`, whose default is not needed."""

    def __call__(self, *_: object) -> dict[Any, Any]:
        return {}


class _Encoded(_StandIn):
    """`codecs.encode`, with which old pickles write bytes."""

    def __call__(self, text: str, encoding: str) -> bytes:
        return text.encode("latin-1")


class _NumberType:
    """A numpy dtype of numbers."""

    __slots__ = ("code",)

    def __init__(self, code: str) -> None:
        self.code = _FORMATS[code]

    def __setstate__(self, state: tuple[int, str, *tuple[object, ...]]) -> None:
        if state[1] not in "<=|":
            raise pickle.UnpicklingError("it has numbers in another byte order")


class _NewNumberType(_StandIn):
    def __call__(self, code: str, *_: object) -> _NumberType:
        return _NumberType(code)


class _Number(_StandIn):
    """A numpy scalar, which becomes a plain number."""

    def __call__(self, kind: _NumberType, data: bytes) -> float:
        (number,) = struct.unpack(f"<{kind.code}", data)
        return float(number) if isinstance(number, float) else int(number)


_ALLOWED: dict[tuple[str, str], _StandIn] = {
    ("builtins", "dict"): _EmptyDict(),
    ("__builtin__", "dict"): _EmptyDict(),
    ("collections", "defaultdict"): _EmptyDict(),
    ("_codecs", "encode"): _Encoded(),
    ("numpy", "dtype"): _NewNumberType(),
    ("numpy.core.multiarray", "scalar"): _Number(),
    ("numpy._core.multiarray", "scalar"): _Number(),
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> _StandIn:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not plain data")
        return _ALLOWED[module, name]
