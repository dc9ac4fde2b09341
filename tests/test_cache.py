"""The cache folder for data and models."""

from pathlib import Path

import pytest

from stepagent.files.cache import NoCache, cache_folder
from stepagent.tasks.data.sources import data_folder


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("XDG_CACHE_HOME", "STEPAGENT_TASK_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    for place in (cache_folder, lambda: data_folder("webshop")):
        with pytest.raises(NoCache, match="XDG_CACHE_HOME, or STEPAGENT_TASK_DATA"):
            place()
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_folder() == Path("/cache/stepagent")
    assert data_folder("webshop") == Path("/cache/stepagent/data/webshop")
    monkeypatch.setenv("STEPAGENT_TASK_DATA", "/data")
    assert data_folder("webshop") == Path("/data/webshop")
