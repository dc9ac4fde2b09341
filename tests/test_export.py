"""Exported folders open with transformers and PEFT, and compute the same as the policy."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from fakes import demonstrations, practised_trees, random_policy, rendered
from stepagent.algorithms.discriminator import expert_logits
from stepagent.algorithms.sft import SFTConfig, sft
from stepagent.commands.export_model import export_model
from stepagent.commands.parsing import UsageError
from stepagent.commands.sft import train_novice
from stepagent.experiment.export import ExportError, export_policy, model_card
from stepagent.experiment.run_json import read_json, write_json
from stepagent.inspection import path_logprobs
from stepagent.model.lora import Adapter, LoRAConfig
from stepagent.model.policy import Policy
from stepagent.model.updates import OptimizerConfig
from stepagent.trajectories import write_jsonl

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(params=[0, 4], ids=["whole model", "adapter"])
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A unit of a run folder, with a trained policy and discriminator."""
    base = tmp_path / "base"
    random_policy(scale=2.0).save(base)
    policy = Policy.load(base, lora=LoRAConfig(rank=request.param))
    config = SFTConfig(optimizer=OptimizerConfig(learning_rate=1e-2), epochs=2)
    sft(policy, rendered(policy, demonstrations()[:8]), config, seed=0, log=lambda _: None)
    found = policy.copy("discriminator")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    run = tmp_path / "run"
    folder = run / "units" / "inverse-round1"
    folder.mkdir(parents=True)
    found.save(folder / "discriminator")
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


def test_an_exported_policy_computes_the_same(unit: Path, tmp_path: Path) -> None:
    expected = logits(Policy.load(unit).model)
    out = tmp_path / "out"
    export_model(unit, out=out, merged=True)
    opened = AutoModelForCausalLM.from_pretrained(out)
    assert not any("lora" in name for name, _ in opened.named_parameters())
    torch.testing.assert_close(logits(opened), expected, rtol=1e-4, atol=1e-5)
    text = "open red box"
    assert AutoTokenizer.from_pretrained(out)(text) == AutoTokenizer.from_pretrained(unit)(text)


def test_an_adapter_is_exported_alone_only_if_its_base_is_public(
    unit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if not (unit / "adapter_config.json").is_file():
        export_model(unit, out=out)
        assert (out / "model.safetensors").is_file()
        return
    for discriminator in (False, True):
        with pytest.raises(ExportError, match="--merged writes the whole model"):
            export_model(unit, out=out, discriminator=discriminator)
    config = read_json(unit / "adapter_config.json")
    load = Policy.load

    def from_hub(*args: object, **kwargs: object) -> Policy:
        policy = load(*args, **kwargs)  # type: ignore[arg-type]
        policy.model.name_or_path = "someone/base"
        return policy

    monkeypatch.setattr(Policy, "load", from_hub)
    export_model(unit, out=out)
    opened = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"]), out
    )
    monkeypatch.undo()
    torch.testing.assert_close(
        logits(opened), logits(Policy.load(unit).model), rtol=1e-4, atol=1e-5
    )


def test_an_exported_discriminator_gives_the_same_rewards(unit: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_model(unit, out=out, discriminator=True, merged=True)
    opened = AutoModelForCausalLM.from_pretrained(out)
    policy, found = Policy.load(unit), Policy.load(unit / "discriminator")
    trees = practised_trees(policy, 2)
    agent = path_logprobs(policy, trees)
    expected = torch.cat(expert_logits(found, trees, agent))
    given = []
    with torch.no_grad():
        for own in trees:
            for path in own.tree.paths:
                ids = torch.tensor([[own.tree.tokens[n] for n in own.tree.ancestors(path[-1])]])
                logprobs = torch.log_softmax(opened(input_ids=ids).logits[0, :-1], -1)
                given.append(logprobs.gather(1, ids[0, 1:, None])[-len(path) :].sum())
    rewards = torch.stack(given) - torch.cat(agent)
    torch.testing.assert_close(rewards, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.01
    assert "log-probability by the policy that the round began with" in " ".join(
        (out / "README.md").read_text().split()
    )


def test_a_merged_export_keeps_stop_tokens_and_precision(tmp_path: Path) -> None:
    base = tmp_path / "base"
    start = random_policy(scale=2.0)
    start.model.generation_config.eos_token_id = [3, 7]
    start.model.generation_config.repetition_penalty = 1.1
    start.model.to(torch.bfloat16)
    start.model.save_pretrained(base)
    start.renderer.tokenizer.save_pretrained(base)
    policy = Policy.load(base, lora=LoRAConfig(rank=4))
    config = SFTConfig(optimizer=OptimizerConfig(learning_rate=1e-2), epochs=2)
    sft(policy, rendered(policy, demonstrations()[:8]), config, seed=0, log=lambda _: None)
    policy.save(tmp_path / "unit")
    export_model(tmp_path / "unit", out=tmp_path / "out", merged=True)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert opened.dtype == torch.bfloat16
    assert opened.generation_config.eos_token_id == [3, 7]
    assert opened.generation_config.repetition_penalty == 1.1
    expected = logits(policy.model)
    torch.testing.assert_close(logits(opened).float(), expected, rtol=0.1, atol=0.5)


def test_a_merged_export_with_different_logits_is_not_written(
    unit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (unit / "adapter_config.json").is_file():
        pytest.skip("there is nothing to merge")
    merged = Adapter.merged

    def slightly_wrong(self: Adapter) -> PreTrainedModel:
        whole = merged(self)
        with torch.no_grad():
            whole.get_input_embeddings().weight[7] *= 1.5
        return whole

    monkeypatch.setattr(Adapter, "merged", slightly_wrong)
    with pytest.raises(ExportError, match=r"the merged model's logits are off by .* not written"):
        export_model(unit, out=tmp_path / "out", merged=True)
    with pytest.raises(ExportError, match="are off by"):
        export_policy(unit, tmp_path / "out", merged=True)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".stepagent-*"))


def test_an_adapter_that_peft_cannot_merge_is_an_error_of_one_line(tmp_path: Path) -> None:
    base = tmp_path / "base"
    random_policy().save(base)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], lora_bias=True)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(
        tmp_path / "adapter"
    )
    with pytest.raises(ExportError, match="PEFT cannot merge an adapter of kind LORA: ") as error:
        export_model(tmp_path / "adapter", out=tmp_path / "out", merged=True)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_model_card_has_a_dash_for_unknown_values(unit: Path) -> None:
    card = model_card(unit, "a policy", "AutoModelForCausalLM")
    assert "| recipe | boxes |" in card and "| seed | 7 |" in card
    assert '| settings | {"reward": "gail"} |' in card
    assert "| score | 41.5 |" in card
    assert "## Test\n\n-\n" in card


def test_a_card_has_the_test_results_of_the_round_that_was_tested(unit: Path) -> None:
    run = unit.parent.parent
    (run / "units" / "inverse-test").mkdir()
    row = {"method": "inverse", "metric": "score", "mean": 3.5, "low": 1, "high": 6, "n": 9}
    write_json(run / "units" / "inverse-test" / "best_round.json", 1)
    assert "## Test\n\n-\n" in model_card(unit, "a policy", "PeftModel")  # no results yet
    write_json(run / "results.json", [row])
    assert "| score | 3.5 (1 to 6), n = 9 |" in model_card(unit, "a policy", "PeftModel")
    write_json(run / "units" / "inverse-test" / "best_round.json", 2)
    assert "n = 9" not in model_card(unit, "a policy", "PeftModel")


def test_text_of_a_run_cannot_break_the_card(unit: Path) -> None:
    write_json(unit / "dev.json", {"score": "a|b\n<script>"})
    assert "| score | a\\|b &lt;script> |" in model_card(unit, "a policy", "PeftModel")


def test_a_unit_that_cannot_be_exported_is_an_error_of_one_line(unit: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        export_model(tmp_path / "none", out=tmp_path / "a")
    shutil.rmtree(unit / "discriminator")
    with pytest.raises(UsageError, match="no discriminator"):
        export_model(unit, out=tmp_path / "a", discriminator=True)
    with pytest.raises(UsageError, match="already exists"):
        export_model(unit, out=unit)
    assert not (tmp_path / "a").exists()


def test_the_base_of_an_adapter_is_an_input_and_never_replaced(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    random_policy().save(base)
    Policy.load(base, lora=LoRAConfig(rank=2)).save(adapter)
    before = {file.name: file.read_bytes() for file in base.iterdir()}
    with pytest.raises(UsageError, match="it is the input"):
        export_model(adapter, out=base, merged=True, overwrite=True)
    file = tmp_path / "demonstrations.jsonl"
    write_jsonl(file, demonstrations()[:2])
    with pytest.raises(UsageError, match="it is the input"):
        train_novice(demonstrations=file, model=str(adapter), out=base, overwrite=True)
    assert {file.name: file.read_bytes() for file in base.iterdir()} == before


def test_a_merged_export_has_the_precision_of_its_bases_files(tmp_path: Path) -> None:
    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    policy = random_policy()
    policy.model.to(torch.bfloat16).save_pretrained(base)  # type: ignore[arg-type]
    policy.renderer.tokenizer.save_pretrained(base)
    config = read_json(base / "config.json")
    write_json(base / "config.json", {k: v for k, v in config.items() if k != "dtype"})
    Policy.load(base, lora=LoRAConfig(rank=2)).save(adapter)
    export_model(adapter, out=out, merged=True)
    assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == torch.bfloat16
