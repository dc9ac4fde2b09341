"""Progress bars: one at a time, and none where nobody is watching."""

import io
import sys

import pytest

from stepagent.console.progress import track


class Screen(io.StringIO):
    """A terminal that keeps all that was written on it."""

    def isatty(self) -> bool:
        return True


def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    shown = Screen()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    return shown


def test_a_bar_within_another_stays_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = screen(monkeypatch)
    pairs = [(a, b) for a in track("xy", "Outer") for b in track([1, 2], "Inner")]
    assert pairs == [("x", 1), ("x", 2), ("y", 1), ("y", 2)]
    assert "Outer" in shown.getvalue()
    assert "Inner" not in shown.getvalue()


def test_a_bar_after_another_is_shown_even_if_that_was_left_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = screen(monkeypatch)
    left = track([1, 2, 3], "First")
    assert next(left) == 1
    del left
    with pytest.raises(KeyError):
        for _ in track([1], "Second"):
            raise KeyError
    assert list(track([1], "Third")) == [1]
    assert all(name in shown.getvalue() for name in ("First", "Second", "Third"))


def test_without_a_terminal_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    assert list(track(range(3), "Silent")) == [0, 1, 2]
    assert shown.getvalue() == ""
