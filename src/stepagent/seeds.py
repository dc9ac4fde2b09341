"""Seeds for the parts of a run, derived from the run's own seed."""

import hashlib
import json


def derive(seed: int, *names: str | int) -> int:
    """A seed of 63 bits for what the names say, such as `derive(seed, "detours", turn)`.

    Arithmetic such as `seed * 1000 + turn` collides where it is nested: seed 0's second detour turn
    of round 1 would be seed 1's round 1, so runs that should be independent would share random
    numbers. Here other seeds or names give other results, since they are the first bits of SHA-256
    over a JSON list, which tells 1 from "1" and ("a", "b") from ("ab",). The result depends on
    nothing else, so it is the same on every machine.
    """
    text = json.dumps([seed, *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1
