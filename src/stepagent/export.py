"""Models of a run as folders that others open: the policy, or the discriminator as a reward model.

Both are language models, whole (AutoModelForCausalLM) or as an adapter (PeftModel). Each folder has
a model card that says on which data, by which recipe, and how well it did.
"""

import json
import re
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from stepagent.backends.device import ComputeConfig
from stepagent.policy import Policy
from stepagent.run import read_json
from stepagent.types import METHODS


class ExportError(ValueError):
    """A model would be of no use to others; the message is one line."""


_ON_CPU = ComputeConfig(device="cpu", precision="float32")

_REWARD_USAGE = """The logit of an action, f(s, a), is its log-probability by this model minus its
log-probability by the policy that the round began with, both summed over the action's tokens with
the end of the turn. Above 0 the action is likelier from the expert than from the agent."""


def export_policy(unit: Path, folder: Path, *, merged: bool) -> None:
    """Writes a unit's policy; `merged` adds an adapter to its base instead of writing it alone."""
    loader = _write(unit, folder, merged=merged)
    card = model_card(unit, "an agent's policy", loader)
    (folder / "README.md").write_text(card, encoding="utf-8")


def export_discriminator(unit: Path, folder: Path, *, merged: bool) -> None:
    """Writes a unit's discriminator, the model p of `algorithms/discriminator.py`."""
    loader = _write(unit / "discriminator", folder, merged=merged)
    card = model_card(unit, "a step reward model", loader, usage=_REWARD_USAGE)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write(model: Path, folder: Path, *, merged: bool) -> str:
    """Writes a model, returns the name of the class that opens it."""
    policy = Policy.load(model, _ON_CPU)
    adapter = policy.layers.adapter
    if adapter is None:
        policy.save(folder)
        return "AutoModelForCausalLM"
    if merged:
        whole = AutoModelForCausalLM.from_config(policy.model.config)
        whole.load_state_dict(adapter.merged(policy.model))
        whole.save_pretrained(folder)
        policy.renderer.tokenizer.save_pretrained(folder)
        return "AutoModelForCausalLM"
    if Path(policy.model.name_or_path or "").is_dir():
        raise ExportError(
            f"{model}: an adapter on a model folder of this machine, which others do not have; "
            "--merged writes the whole model"
        )
    policy.save(folder)
    return "PeftModel"


def model_card(unit: Path, kind: str, loader: str, *, usage: str = "") -> str:
    """What a model is, in Markdown; what the run folder does not say is a dash."""
    folder = unit.parent.parent
    run: dict[str, Any] = read_json(folder / "config.json") if _is_run(folder) else {}
    measured = folder / "units" / "sft-dev" if unit.name == "sft" else unit
    dev = read_json(measured / "dev.json") if (measured / "dev.json").is_file() else {}
    base = read_json(unit / "adapter_config.json") if _is_adapter(unit) else {}
    tags = ["stepagent", "agent"]
    front = {"library_name": "peft" if loader == "PeftModel" else "transformers", "tags": tags}
    if name := base.get("base_model_name_or_path"):
        front["base_model"] = name
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", ""]
    lines += [f"# {unit.name}", "", f"This is {kind}, trained step by step with StepAgent; open it"]
    lines += [f"with `{loader}`.", "", *([usage, ""] if usage else [])]
    lines += _table("Training", _training(run, unit.name))
    lines += _table("On dev", dev)
    lines += _table("Data", {n: _short(f) for n, f in run.get("data", {}).items()})
    lines += _table("Protocol", run.get("protocol", {}))
    lines += _table("Test", _tested(folder, unit.name))
    return "\n".join(lines)


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "metrics.jsonl").is_file()


def _is_adapter(unit: Path) -> bool:
    return (unit / "adapter_config.json").is_file()


def _training(run: dict[str, Any], unit: str) -> dict[str, Any]:
    method = unit.rpartition("-round")[0] or unit
    own = run.get("config", {}).get(method, {})
    return {
        "recipe": run.get("recipe"),
        "method": METHODS.get(method, method),
        "seed": run.get("seed"),
        "settings": own,
        "versions": run.get("versions"),
    }


def _tested(folder: Path, unit: str) -> dict[str, Any]:
    """Test results, if it was this unit that was tested."""
    method, _, number = unit.rpartition("-round") if unit != "sft" else ("sft", "", "0")
    chosen, results = (
        folder / "units" / f"{method}-test" / "best_round.json",
        folder / "results.json",
    )
    if not chosen.is_file() or str(read_json(chosen)) != number or not results.is_file():
        return {}
    rows = [row for row in read_json(results) if row["method"] == method]
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
    # Text of tasks and models must not end the cell or become markup.
    return re.sub(r"([\\|\[\]!])", r"\\\1", " ".join(text.split()).replace("<", "&lt;"))
