"""Settings for every test: no network, one thread, the same examples in every run."""

import os

import pytest
from hypothesis import settings

MAX_WORKERS = 8
"""A worker takes 0.6 GB, and its JVMs and child processes as much again."""

# Set before anything imports the libraries that read them, which they do only once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Sums in another order give other numbers. With one thread they depend neither on the machine's
# cores nor on what runs beside a test, and workers do not compete for cores.
os.environ["OMP_NUM_THREADS"] = "1"

# No deadlines, since machines may be slow, and no new random examples in unrelated changes.
settings.register_profile("stepagent", deadline=None, derandomize=True)
settings.load_profile("stepagent")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `pytest -n auto` means: one worker for each core that this process may use."""
    on_linux = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if on_linux else os.cpu_count() or 1
    return min(cores, MAX_WORKERS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that workers end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes give no readable names of tests, and compressed ones other names every second.

    Workers have to find tests under the same names.
    """
    return argname if isinstance(val, bytes) else None
