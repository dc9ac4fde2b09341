"""`stepagent inspect`: lets a policy act in every state of the demonstrations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from stepagent.commands.demonstrations import read_demonstrations, render_demonstrations
from stepagent.commands.models import load_policy, prepare
from stepagent.commands.outputs import check_file
from stepagent.commands.parsing import run_command
from stepagent.inspection import agreement, inspect
from stepagent.model.device import ComputeConfig
from stepagent.practice import InspectionConfig
from stepagent.processes import ranks
from stepagent.trajectories import write_jsonl

DEFAULT, DEFAULT_COMPUTE = InspectionConfig(), ComputeConfig()


def inspect_file(
    *,
    policy: str,
    demonstrations: Path,
    out: Path,
    skip_invalid: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    practise_with: str | None = None,
    compute: ComputeConfig = DEFAULT_COMPUTE,
    config: Annotated[InspectionConfig, tyro.conf.arg(name="")] = DEFAULT,
) -> None:
    """Lets a policy act in every state of the expert's trajectories; needs no environment.

    Reads POLICY and the demonstrations; writes OUT, one practised step per line of JSON: a state,
    the expert's action there, and the actions that the policy sampled. Prints how often they are
    the same.

    For example: stepagent inspect --policy novice --demonstrations held-out.jsonl --out steps.jsonl

    Args:
        policy: A model folder, a GGUF file, or the id of a model on the Hugging Face hub.
        demonstrations: The expert's trajectories, one per line of JSON.
        out: File for the practised steps; a name that ends in .gz is compressed.
        skip_invalid: Skip and list invalid lines, and trajectories longer than the model's context,
            instead of stopping at the first one.
        overwrite: Replace OUT if it exists.
        seed: Random seed of the sampled actions.
        practise_with: Address of a vLLM or SGLang server that samples the policy's actions, such as
            http://localhost:8000; the policy must be an adapter.
        compute: Device, precision and memory.
        config: How the policy acts.
    """
    check_file(out, inputs=[Path(policy), demonstrations], overwrite=overwrite)
    prepare()
    trajectories = read_demonstrations(demonstrations, skip_invalid=skip_invalid)
    agent = load_policy(policy, compute, practise_with=practise_with)
    rendered = render_demonstrations(agent, trajectories, skip_invalid=skip_invalid)
    practised = inspect(agent, rendered, config.decoding, seed=seed, num_actions=config.num_actions)
    if ranks.is_first():
        write_jsonl(out, practised, replace=overwrite)
    print(
        f"{out}: {len(practised)} practised steps of {len(rendered)} trajectories, "
        f"{agreement(practised):.1%} of the policy's actions are the expert's"
    )


def main(args: Sequence[str]) -> None:
    """The command."""
    run_command(inspect_file, "inspect", args)
