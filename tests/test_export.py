"""Exported folders open with transformers and PEFT and compute what the policy computes."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from fakes import demonstrations, practised_trees, random_policy, rendered
from stepagent.algorithms.discriminator import Discriminator, expert_logits
from stepagent.algorithms.sft import SFTConfig, sft
from stepagent.backends.adapters import LoRAConfig
from stepagent.backends.training import OptimizerConfig
from stepagent.commands.export_model import export_model
from stepagent.commands.parsing import UsageError
from stepagent.export import model_card
from stepagent.policy import Policy
from stepagent.run import write_json

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(params=[0, 4], ids=["whole model", "adapter"])
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A unit of a run folder, with a policy and a discriminator that differ from their start."""
    base = tmp_path / "base"
    random_policy(scale=2.0).save(base)
    policy = Policy.load(base, lora=LoRAConfig(rank=request.param))
    config = SFTConfig(optimizer=OptimizerConfig(learning_rate=1e-2), epochs=2)
    sft(policy, rendered(policy, demonstrations()[:8]), config, seed=0, log=lambda _: None)
    found = Discriminator(policy.layers.copy("discriminator"))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    run = tmp_path / "run"
    folder = run / "units" / "inverse-round1"
    folder.mkdir(parents=True)
    save_file(found.state(), folder / "discriminator.safetensors")
    policy.save(folder)
    write_json(folder / "dev.json", {"score": 41.5})
    facts = {"recipe": "boxes", "seed": 7, "config": {"inverse": {"reward": "gail"}}}
    write_json(run / "config.json", {**facts, "data": {}, "protocol": {}, "versions": {}})
    (run / "metrics.jsonl").touch()
    return folder


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("merged", [True, False])
def test_an_exported_policy_computes_the_same(unit: Path, merged: bool, tmp_path: Path) -> None:
    expected = logits(Policy.load(unit).model)
    out = tmp_path / "out"
    export_model(unit, out=out, merged=merged)
    is_adapter = (out / "adapter_config.json").is_file()
    assert is_adapter == ((unit / "adapter_config.json").is_file() and not merged)
    if is_adapter:
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        opened: torch.nn.Module = PeftModel.from_pretrained(base, out)
    else:
        opened = AutoModelForCausalLM.from_pretrained(out)
        assert not any("lora" in name for name, _ in opened.named_parameters())
    torch.testing.assert_close(logits(opened), expected, rtol=1e-4, atol=1e-5)
    text = "open red box"
    assert AutoTokenizer.from_pretrained(out)(text) == AutoTokenizer.from_pretrained(unit)(text)


def test_an_exported_discriminator_gives_the_same_rewards(unit: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_model(unit, out=out, discriminator=True)
    classifier = AutoModelForSequenceClassification.from_pretrained(out)
    policy = Policy.load(unit)
    found = Discriminator(policy.layers.copy("discriminator"))
    found.load_state(load_file(unit / "discriminator.safetensors"))
    trees = practised_trees(policy, 2)
    expected = torch.cat(expert_logits(found, trees))
    given = []
    with torch.no_grad():
        for own in trees:
            for path in own.tree.paths:
                ids = torch.tensor([[own.tree.tokens[n] for n in own.tree.ancestors(path[-1])]])
                given.append(classifier(input_ids=ids).logits[0, 0])
    torch.testing.assert_close(torch.stack(given), expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0.01
    assert classifier.config.id2label == {0: "expert"}


def test_the_card_says_what_is_known_and_a_dash_for_the_rest(unit: Path) -> None:
    card = model_card(unit, "a policy", "AutoModelForCausalLM")
    assert "| recipe | boxes |" in card and "| seed | 7 |" in card
    assert '| settings | {"reward": "gail"} |' in card
    assert "| score | 41.5 |" in card
    assert "## Test\n\n-\n" in card


def test_text_of_a_run_cannot_break_the_card(unit: Path) -> None:
    write_json(unit / "dev.json", {"score": "a|b\n<script>"})
    assert "| score | a\\|b &lt;script> |" in model_card(unit, "a policy", "PeftModel")


def test_what_cannot_be_exported_is_said_in_one_line(unit: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        export_model(tmp_path / "none", out=tmp_path / "a")
    (unit / "discriminator.safetensors").unlink()
    with pytest.raises(UsageError, match="no discriminator"):
        export_model(unit, out=tmp_path / "a", discriminator=True)
    with pytest.raises(UsageError, match="exists already"):
        export_model(unit, out=unit)
    assert not (tmp_path / "a").exists()
