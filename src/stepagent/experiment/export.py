"""Exports a run's policy, or its discriminator as a reward model, in a standard format.

Both are language models, whole (AutoModelForCausalLM) or as an adapter (PeftModel). Each folder has
a model card with data, recipe and results.
"""

import json
import re
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stepagent.experiment.run_folder import (
    CHOSEN_FILE,
    CONFIG,
    DEV_FILE,
    METRICS,
    RESULTS_JSON,
    Round,
    dev_unit,
    round_of_unit,
    tested_unit,
    unit_file,
)
from stepagent.experiment.run_json import read_json
from stepagent.files.atomic import atomic_folder
from stepagent.learners.inverse import DISCRIMINATOR
from stepagent.methods import method_label
from stepagent.model.adapter_files import AdapterError, base_of
from stepagent.model.device import ComputeConfig
from stepagent.model.lora import Adapter
from stepagent.model.policy import Policy
from stepagent.model.weights import open_config, open_model, place, stored_dtypes


class ExportError(ValueError):
    """The export would be unusable; the message is one line."""


_ON_CPU = ComputeConfig(device="cpu", precision="float32")

_REWARD_USAGE = """The logit of an action, f(s, a), is its log-probability by this model minus its
log-probability by the policy that the round began with, both summed over the action's tokens with
the end of the turn. Above 0 the action is likelier from the expert than from the agent."""


_PROBES = 256
"""Most tokens on which an export is compared with its policy."""


def export_policy(unit: Path, folder: Path, *, merged: bool, replace: bool = False) -> None:
    """Writes a unit's policy; `merged` adds an adapter to its base instead of writing it alone.

    Atomic; `replace` overwrites an older folder. Raises `ExportError` if others could not open the
    model, or if it would not compute what the policy computes.
    """
    with atomic_folder(folder, replace=replace) as made:
        loader = _write(unit, made, merged=merged)
        card = model_card(unit, "an agent's policy", loader)
        (made / "README.md").write_text(card, encoding="utf-8")


def export_discriminator(unit: Path, folder: Path, *, merged: bool, replace: bool = False) -> None:
    """Writes a unit's discriminator, the model p of `algorithms/discriminator.py`.

    Atomic; raises like `export_policy`.
    """
    with atomic_folder(folder, replace=replace) as made:
        loader = _write(unit / DISCRIMINATOR, made, merged=merged)
        card = model_card(unit, "a step reward model", loader, usage=_REWARD_USAGE)
        (made / "README.md").write_text(card, encoding="utf-8")


def _write(model: Path, folder: Path, *, merged: bool) -> str:
    """Writes a model; returns the name of the class that loads it."""
    policy = Policy.load(model, _ON_CPU)
    adapter = policy.layers.adapter
    if adapter is None:
        policy.save(folder)
        return "AutoModelForCausalLM"
    if merged:
        _merge(policy, adapter, model, folder)
        return "AutoModelForCausalLM"
    if Path(policy.model.name_or_path or "").is_dir():
        raise ExportError(
            f"{place(model)}: an adapter on a model folder of this machine, which others do not "
            "have; --merged writes the whole model"
        )
    policy.save(folder)
    return "PeftModel"


def _merge(policy: Policy, adapter: Adapter, model: Path, folder: Path) -> None:
    """Merges the adapter, writes the model in its base's precision, and checks its logits."""
    ids = _probes(policy)
    expected = _logits(policy.model, ids)
    base = base_of(str(model))
    stored = [dtype for dtype in stored_dtypes(base).values() if dtype is not None]
    stated = stored[0] if stored else open_config(base).dtype
    dtype = stated if isinstance(stated, torch.dtype) else torch.float32
    try:
        whole = adapter.merged()
    except AdapterError as error:
        raise ExportError(f"{place(model)}: {error}") from None
    _check_same(model, _logits(whole, ids), expected, torch.float32)
    cast(nn.Module, whole).to(dtype)
    whole.save_pretrained(folder)
    policy.renderer.tokenizer.save_pretrained(folder)
    del whole
    written = open_model(str(folder), torch.float32)
    _check_same(model, _logits(written, ids), expected, dtype)


def _probes(policy: Policy) -> Tensor:
    """(1, tokens) special tokens, which may have trained embeddings, and a spread of others."""
    tokenizer, rows = policy.renderer.tokenizer, policy.layers.config.vocab_size
    count = min(_PROBES, rows, policy.context)
    special = sorted(tokenizer.added_tokens_decoder)[: count // 2]
    spread = torch.linspace(0, rows - 1, count - len(special)).long()
    return torch.cat([torch.tensor(special, dtype=torch.long), spread])[None]


@torch.no_grad()
def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return cast(Tensor, model(input_ids=ids).logits)


def _check_same(model: Path, found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Raises `ExportError` if logits differ by more than rounding to this precision explains."""
    spread = float(expected.max() - expected.min())
    tolerance = spread * max(1e-3, 16 * torch.finfo(dtype).eps)
    off = float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")
    if not off <= tolerance:  # which NaN is not either
        raise ExportError(
            f"{place(model)}: the merged model's logits are off by {off:.2g} (at most "
            f"{tolerance:.2g} is rounding), so it is not written; without --merged the adapter is"
        )


def model_card(unit: Path, kind: str, loader: str, *, usage: str = "") -> str:
    """The model card in Markdown; a dash for what is not in the run folder."""
    folder = unit.parent.parent
    run: dict[str, Any] = read_json(folder / CONFIG) if _is_run(folder) else {}
    trained = round_of_unit(unit.name)
    measured = unit.parent / dev_unit(*trained) / DEV_FILE if trained else unit / DEV_FILE
    dev = read_json(measured) if measured.is_file() else {}
    base = read_json(unit / "adapter_config.json") if _is_adapter(unit) else {}
    tags = ["stepagent", "agent"]
    front = {"library_name": "peft" if loader == "PeftModel" else "transformers", "tags": tags}
    if name := base.get("base_model_name_or_path"):
        front["base_model"] = name
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", ""]
    lines += [f"# {unit.name}", "", f"This is {kind}, trained step by step with StepAgent; open it"]
    lines += [f"with `{loader}`.", "", *([usage, ""] if usage else [])]
    lines += _table("Training", _training(run, unit.name, trained))
    lines += _table("On dev", dev)
    lines += _table("Data", {n: _short(f) for n, f in run.get("data", {}).items()})
    lines += _table("Protocol", run.get("protocol", {}))
    lines += _table("Test", _tested(folder, trained))
    return "\n".join(lines)


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / METRICS).is_file()


def _is_adapter(unit: Path) -> bool:
    return (unit / "adapter_config.json").is_file()


def _training(run: dict[str, Any], unit: str, trained: Round | None) -> dict[str, Any]:
    method = trained.method if trained else unit
    own = run.get("config", {}).get(method, {})
    return {
        "recipe": run.get("recipe"),
        "method": method_label(method),
        "seed": run.get("seed"),
        "settings": own,
        "versions": run.get("versions"),
    }


def _tested(folder: Path, trained: Round | None) -> dict[str, Any]:
    """Test results, if this round is the one that was tested."""
    if trained is None:
        return {}
    chosen = folder / unit_file(tested_unit(trained.method), CHOSEN_FILE)
    results = folder / RESULTS_JSON
    if not chosen.is_file() or read_json(chosen) != trained.number or not results.is_file():
        return {}
    rows = [row for row in read_json(results) if row["method"] == trained.method]
    return {r["metric"]: f"{r['mean']} ({r['low']} to {r['high']}), n = {r['n']}" for r in rows}


def _short(facts: dict[str, Any]) -> dict[str, Any]:
    return {k: len(v) if isinstance(v, list) else v for k, v in facts.items()}


def _table(title: str, facts: dict[str, Any]) -> list[str]:
    if not facts:
        return [f"## {title}", "", "-", ""]
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in facts.items()]
    return [f"## {title}", "", "| | |", "|---|---|", *rows, ""]


def _cell(value: object) -> str:
    text = "-" if value is None else value if isinstance(value, str) else json.dumps(value)
    # Text from tasks and models must not end the cell or become markup.
    return re.sub(r"([\\|\[\]!])", r"\\\1", " ".join(text.split()).replace("<", "&lt;"))
