"""`stepagent reflect`: rounds of inspection and reflection from files, without an environment."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from stepagent.bounds import COUNT, SEED, check_bounds
from stepagent.commands.demonstrations import read_demonstrations, render_demonstrations
from stepagent.commands.models import load_policy, local_model, prepare
from stepagent.commands.outputs import check_no_input
from stepagent.commands.parsing import CONFIG, UsageError
from stepagent.evaluation import likeness
from stepagent.experiment.config import Reflection
from stepagent.experiment.follower import open_run
from stepagent.experiment.inputs import model_input
from stepagent.experiment.rounds import Rounds
from stepagent.experiment.run import Run, to_json
from stepagent.experiment.run_folder import START, round_unit, unit_path
from stepagent.experiment.shared_batches import warn_of_small_batches
from stepagent.files.atomic import file_hash
from stepagent.learners.base import LearnerConfig
from stepagent.learners.implicit import ImplicitConfig
from stepagent.learners.inverse import InverseConfig
from stepagent.methods import REFLECTIONS
from stepagent.model.device import ComputeConfig
from stepagent.model.lora import LoRAConfig
from stepagent.model.policy import Policy
from stepagent.practice import InspectionConfig, Practice
from stepagent.rendering.renderer import RenderedTrajectory

SETTINGS = ("compute", "practise_with", "lora", "inspection", *REFLECTIONS)

SHOWN = {
    "agreement": "agreement",
    "expert_logprob": "expert log-prob",
    "js_divergence": "JS divergence",
    "discriminator_accuracy": "discriminator",
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Improves a policy by rounds of inspection and reflection; needs no environment.

    In each round the policy acts in every state of the demonstrations (inspection), then learns
    from the difference between the expert's actions and its own (reflection).

    Reads POLICY and two JSONL files of trajectories. Writes the folder OUT: config.json,
    metrics.jsonl, held-out steps with their step rewards (practice/), and the policy of each round
    (units/implicit-round1, ...), with its discriminator for inverse reflection. Prints how close
    each round's policy is to the expert on the held-out trajectories. --resume continues a stopped
    run.

    For example: stepagent reflect --method implicit --policy novice
    --demonstrations demonstrations.jsonl --held-out held-out.jsonl --out reflected --rounds 2
    """

    method: Reflection
    """implicit is step-wise DPO; inverse is a discriminator whose output rewards PPO."""
    policy: str
    """The policy to start from: a model folder, a GGUF file, or the id of a model on the hub."""
    demonstrations: Path
    """Expert trajectories to learn from."""
    held_out: Path
    """Other expert trajectories, to measure on."""
    out: Path
    """Folder to write to."""
    skip_invalid: bool = False
    """Leave out, and list, invalid lines and trajectories longer than the model's context."""
    rounds: int = 1
    """Rounds of inspection and reflection."""
    resume: bool = False
    """Continue the run in OUT, if there is one."""
    storage: str | None = None
    """Where a copy of the run folder is kept: a folder, or a URL that fsspec opens. With --resume,
    machines that lack finished units bring them from there."""
    seed: int = 0
    """Seed of sampling, data order and discriminator."""
    compute: ComputeConfig = ComputeConfig()
    """Device, precision and memory."""
    practise_with: str | None = None
    """Address of a vLLM or SGLang server that samples the policy's actions, such as
    http://localhost:8000; needs --lora.rank, or a policy that is an adapter."""
    lora: LoRAConfig = LoRAConfig()
    """Train low-rank adapters instead of the whole model."""
    inspection: InspectionConfig = InspectionConfig()
    """How the agent acts in the expert's states."""
    implicit: ImplicitConfig = ImplicitConfig()
    """One round of implicit reflection."""
    inverse: InverseConfig = InverseConfig()
    """One round of inverse reflection."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for numbers out of range."""
        check_bounds(self, {"rounds": COUNT, "seed": SEED})


def main(args: Sequence[str]) -> None:
    """The command."""
    found = tyro.cli(Arguments, prog="stepagent reflect", args=args, config=CONFIG)
    if found.inverse.states == "rollout":
        raise UsageError(
            "--inverse.states rollout: reflect has no environment to act in; stepagent train has"
        )
    check_no_input(found.out, [Path(found.policy), found.demonstrations, found.held_out])
    prepare()
    warn_of_small_batches(found, unused={"implicit", "inverse"} - {found.method})
    model = local_model(found.policy)
    policy = load_policy(
        model, found.compute, found.lora, seed=found.seed, practise_with=found.practise_with
    )
    practice = Practice(
        _rendered(policy, found.demonstrations, found),
        _rendered(policy, found.held_out, found),
        found.inspection,
        seed=found.seed,
    )
    settings = _settings(found, model)
    with open_run(found.out, settings, resume=found.resume, storage=found.storage) as run:
        _reflect(found, run, policy, practice)
        print(_table(run))
    print(f"Policies: {found.out / unit_path(round_unit(found.method, 1))} to {found.rounds}")


def _rendered(policy: Policy, file: Path, args: Arguments) -> list[RenderedTrajectory]:
    trajectories = read_demonstrations(file, skip_invalid=args.skip_invalid)
    return render_demonstrations(policy, trajectories, skip_invalid=args.skip_invalid)


def _settings(args: Arguments, model: str) -> dict[str, Any]:
    """What must be unchanged when a run is resumed; inputs by content, not by path."""
    own = {name: to_json(getattr(args, name)) for name in SETTINGS}
    return {
        "recipe": f"reflect --method {args.method}",
        "seed": args.seed,
        "protocol": {},
        "config": {"rounds": args.rounds, **own},
        "inputs": {
            "policy": model_input(model),
            "demonstrations": file_hash(args.demonstrations),
            "held_out": file_hash(args.held_out),
        },
    }


def _reflect(args: Arguments, run: Run, policy: Policy, practice: Practice) -> None:
    def dev(policy: Policy, number: int) -> dict[str, float | None]:
        return _log_likeness(args, run, policy, practice.held_out, number)

    if not run.is_done(START):
        with run.unit(START) as folder:
            dev(policy, 0)
            policy.save(folder)
    config: LearnerConfig = getattr(args, args.method)
    Rounds(
        run=run,
        method=args.method,
        learner=config.learner(policy),
        practice=practice,
        novice=run.unit_folder(START),
        evaluate=dev,
    ).go(policy, args.rounds)
    if stopped := run.config["data"].get(args.method, {}).get("stopped"):
        print(f"Stopped: {stopped}")


def _log_likeness(
    args: Arguments,
    run: Run,
    policy: Policy,
    held_out: Sequence[RenderedTrajectory],
    number: int,
) -> dict[str, float | None]:
    found = likeness(
        policy,
        held_out,
        max_new_tokens=args.inspection.decoding.max_new_tokens,
    )
    metrics = {"agreement": found.agreement, "expert_logprob": found.expert_logprob}
    run.log(stage=args.method, round=number, phase="dev", **metrics)
    return {**metrics}


def _table(run: Run) -> str:
    """How close each round's policy is to the expert; a dash for what was not measured."""
    rounds: dict[int, dict[str, float | None]] = {}
    for row in run.metrics():
        if row["phase"] == "dev":
            rounds.setdefault(row["round"], {}).update(row)
    lines = ["round" + "".join(f"{title:>18}" for title in SHOWN.values())]
    for number, row in sorted(rounds.items()):
        figures = (row.get(name) for name in SHOWN)
        lines.append(
            f"{number:>5}" + "".join(f"{'-' if x is None else f'{x:.3f}':>18}" for x in figures)
        )
    return "\n".join(lines)
