"""`stepagent evaluate`: measures a policy's score and success in a task."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import JsonValue

from stepagent.chat.client import ChatClient
from stepagent.chat.episodes import protocol_of
from stepagent.commands.chat_models import (
    PROMPTED,
    PromptedConfig,
    model_name,
    open_client,
    open_prompted,
    play_all,
    print_bill,
    print_lost,
)
from stepagent.commands.episode_journal import PLAYED, drop_journal, is_kept, journal_path, kept
from stepagent.commands.models import TaskChoice, load_policy, local_model, open_task, prepare
from stepagent.commands.outputs import check_file
from stepagent.commands.parsing import UsageError, check_at_least_one, run_command
from stepagent.evaluation import (
    EvaluationConfig,
    choose_items,
    episodes_of,
    panel_hash,
    summarize,
)
from stepagent.experiment.inputs import model_input
from stepagent.experiment.pipeline import PANEL_SEED
from stepagent.experiment.results import interval_text
from stepagent.model.device import ComputeConfig
from stepagent.processes import ranks
from stepagent.tasks.base import Split
from stepagent.tasks.tries import Lost
from stepagent.trajectories import write_jsonl
from stepagent.types import Trajectory

DEFAULT, DEFAULT_COMPUTE = EvaluationConfig(), ComputeConfig()


def evaluate_policy(
    *,
    policy: str,
    task: TaskChoice,
    out: Path,
    overwrite: bool = False,
    split: Split = "test",
    num_per_group: int = 18,
    seed: int = 0,
    practise_with: str | None = None,
    compute: ComputeConfig = DEFAULT_COMPUTE,
    config: Annotated[EvaluationConfig, tyro.conf.arg(name="")] = DEFAULT,
    prompted: Annotated[PromptedConfig, tyro.conf.arg(name="")] = PROMPTED,
) -> None:
    """Measures a policy: lets it play each item of a fixed panel (a sample of the task's items).

    Reads POLICY; writes OUT, one episode per line of JSON. Prints score (0 to 100, the best within
    each episode) and success rate, both with 95 % confidence intervals, and a hash of the panel:
    results with equal hashes are of the same items.

    Finished episodes are saved to OUT.episodes immediately. If interrupted, run the same command
    again: it resumes there and repeats no finished episode. The file is removed once OUT is
    complete. Items whose environment fails repeatedly are listed and left out; running the command
    again retries them.

    With --policy openai:MODEL a chat model is prompted, and its tokens and cost are printed too.

    For example: stepagent evaluate webshop --policy novice --out episodes.jsonl

    Args:
        policy: A model folder, a GGUF file, the id of a model on the Hugging Face hub, or
            openai:MODEL for a chat model on an OpenAI-compatible server; its key is read from
            the variable OPENAI_API_KEY.
        task: The task and its protocol.
        out: File for the episodes; a name that ends in .gz is compressed.
        overwrite: Replace OUT if it exists.
        split: The part of the task's items to choose from.
        num_per_group: Items of each group (task type, kind of question), or all if the split has
            fewer.
        seed: Random seed of a local policy's sampling; unused when greedy. It does not change the
            panel.
        practise_with: Address of a vLLM or SGLang server that samples a local policy's actions,
            such as http://localhost:8000; the policy must be an adapter.
        compute: Device, precision and memory of a local policy.
        config: How episodes are run.
        prompted: How a chat model is prompted.
    """
    name = model_name(policy, prompted)
    if name and config.decoding != DEFAULT.decoding:
        raise UsageError(f"{policy}: --decoding is for local policies only; use --temperature")
    if name and practise_with is not None:
        raise UsageError(f"{policy}: --practise-with is for local policies only")
    check_at_least_one("--num-per-group", num_per_group)
    inputs = [Path(policy), *prompted.files]
    may_replace = overwrite or is_kept(out)
    check_file(out, inputs=inputs, overwrite=may_replace)
    check_file(journal_path(out), inputs=inputs, overwrite=True)
    prepare()
    agent = (
        open_client(name, prompted)
        if name
        else load_policy(policy, compute, practise_with=practise_with)
    )
    world = open_task(task)
    try:
        panel = choose_items(world, split, num_per_group, seed=PANEL_SEED)
        if isinstance(agent, ChatClient):
            chat_model = open_prompted(agent, prompted, world)
            outcomes = play_all(chat_model, panel, out, num_parallel=config.num_parallel)
        else:
            how: dict[str, JsonValue] = {
                "policy": model_input(local_model(policy)),
                "precision": "bfloat16" if agent.layers.is_half else "float32",
                "seed": seed,
                **({"practised_with": "server"} if practise_with else {}),
                **asdict(config.decoding),
                "protocol": protocol_of(world),
            }
            play = partial(episodes_of, agent, world, config=config, seed=seed)
            with agent.acting():
                outcomes = kept(out, panel, lambda _: {PLAYED: how}, play, "Evaluation")
    finally:
        world.close()
    lost = [outcome for outcome in outcomes if isinstance(outcome, Lost)]
    result = summarize([t for t in outcomes if isinstance(t, Trajectory)], lost)
    if ranks.is_first():
        write_jsonl(out, result.episodes, replace=may_replace)
        if not lost:
            drop_journal(out)
    print_lost(lost, len(panel))
    print(f"score    {interval_text(result.score)}")
    print(f"success  {interval_text(result.success, percent=True)}")
    for metric, value in world.metrics(result.episodes).items():
        print(f"{metric:<8} {value:.4g}")
    print(f"panel    {len(panel)} {split} items, sha256 {panel_hash(panel)}")
    if name:
        print_bill(result.episodes, prompted)
    print(f"episodes {out}")


def main(args: Sequence[str]) -> None:
    """The command."""
    run_command(evaluate_policy, "evaluate", args)
