"""A model is opened in bfloat16 only if that changes little, else in float32; the log says so."""

import logging
from pathlib import Path

import pytest
import torch

from fakes import random_policy
from stepagent.model import device, policy, products
from stepagent.model.policy import Policy


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that is wide enough, on a processor that gains."""
    for module in (device, policy):
        monkeypatch.setattr(module, "MIN_HALF_WIDTH", 1)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(device, "bfloat16_gain", lambda: 4.0)
    random_policy().save(tmp_path / "model")
    return tmp_path / "model"


def test_bfloat16_is_taken_where_it_changes_little(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(policy, "MOST_CHANGE", 100.0)
    with caplog.at_level(logging.INFO, logger="stepagent"):
        opened = Policy.load(folder)
    assert opened.layers.is_half
    assert "bfloat16, since its matrix products run 4.0 times as fast" in caplog.text


def test_a_model_that_bfloat16_changes_stays_in_float32(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(policy, "MOST_CHANGE", 0.0)
    exact = [p.clone() for p in random_policy().model.parameters()]
    with caplog.at_level(logging.INFO, logger="stepagent"):
        opened = Policy.load(folder)
    assert not opened.layers.is_half
    assert "float32, since bfloat16 changes log-probabilities by" in caplog.text
    for weight, saved in zip(opened.model.parameters(), exact, strict=True):
        assert torch.equal(weight, saved)


@pytest.mark.parametrize(("gain", "says"), [(2.26, True), (1.4, False)])
def test_the_log_says_which_library_multiplies(
    gain: float,
    says: bool,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(device, "bfloat16_gain", lambda: 1.0)
    for module in (products, policy):
        monkeypatch.setattr(module, "onednn_gain", lambda: gain)
    with caplog.at_level(logging.INFO, logger="stepagent"):
        opened = Policy.load(folder)
    assert ("products by oneDNN, 2.3 times as fast as MKL's here" in caplog.text) == says
    kinds = {type(m) for m in opened.model.modules() if isinstance(m, torch.nn.Linear)}
    assert kinds == {products.Linear if says else torch.nn.Linear}
